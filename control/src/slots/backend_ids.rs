//! Ids of backends: one for each ingress-published port of each task.
//!
//! Invariants: an id in the record of any task, whatever its state, is in use; ids are given in a
//! circle that starts after the one given last (kept in the store), so that a freed id rests for as
//! long as possible before a flow could meet it again.

use std::collections::BTreeSet;

use mesh_state::ids::BackendId;
use mesh_state::service::Service;
use mesh_state::spec::PublishMode;
use mesh_state::task::TaskEndpoint;
use thiserror::Error;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::Action;

/// All ids are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("all {} backend ids are in use: remove tasks, or publish fewer ports", BackendId::MAX)]
pub struct Exhausted;

/// The ids, for the length of one plan.
#[derive(Debug)]
pub struct BackendIds<'a> {
    snapshot: &'a ClusterSnapshot,
    /// Ids in use; read from the snapshot when the first id is asked for.
    used: Option<BTreeSet<u32>>,
    last: u32,
}

impl<'a> BackendIds<'a> {
    /// The ids as `snapshot` has them.
    pub fn new(snapshot: &'a ClusterSnapshot) -> Self {
        let last = snapshot.backend_cursor.as_ref().map_or(0, |cursor| cursor.value.get());
        Self { snapshot, used: None, last }
    }

    /// The endpoints of a new task of `service`: one for each ingress-published port.
    ///
    /// # Errors
    /// [`Exhausted`], and then nothing is taken.
    pub fn endpoints(&mut self, service: &Service) -> Result<Vec<TaskEndpoint>, Exhausted> {
        let before = self.last;
        let mut endpoints = Vec::new();
        for port in service.ports.iter().filter(|port| port.publish_mode == PublishMode::Ingress) {
            let Some(backend_id) = self.next() else {
                self.give_back(&endpoints, before);
                return Err(Exhausted);
            };
            endpoints.push(TaskEndpoint {
                backend_id,
                protocol: port.protocol,
                published_port: port.published_port,
                target_port: port.target_port,
            });
        }
        Ok(endpoints)
    }

    /// The write that remembers how far the circle went; `None` if nothing was given.
    pub fn into_action(self) -> Option<Action> {
        let stored = self.snapshot.backend_cursor.as_ref();
        let last = BackendId::new(self.last)?;
        if stored.is_some_and(|cursor| cursor.value == last) {
            return None;
        }
        Some(Action::SetBackendCursor { last, expected: stored.map(|cursor| cursor.mod_revision) })
    }

    fn next(&mut self) -> Option<BackendId> {
        let snapshot = self.snapshot;
        let used = self.used.get_or_insert_with(|| ids_in_use(snapshot));
        let after = (self.last + 1)..=BackendId::MAX;
        let around = 1..=self.last;
        let free = after.chain(around).find(|id| !used.contains(id))?;
        used.insert(free);
        self.last = free;
        BackendId::new(free)
    }

    fn give_back(&mut self, endpoints: &[TaskEndpoint], last: u32) {
        if let Some(used) = &mut self.used {
            for endpoint in endpoints {
                used.remove(&endpoint.backend_id.get());
            }
        }
        self.last = last;
    }
}

fn ids_in_use(snapshot: &ClusterSnapshot) -> BTreeSet<u32> {
    snapshot
        .tasks
        .values()
        .flat_map(|task| &task.endpoints)
        .map(|endpoint| endpoint.backend_id.get())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{World, endpoint, ingress, service, task};

    fn taken(ids: &mut BackendIds<'_>, ports: u16) -> Result<Vec<u32>, Exhausted> {
        let mut asked = service("s", 1);
        asked.ports = (1..=ports).map(|port| ingress(port, 80)).collect();
        ids.endpoints(&asked).map(|given| given.iter().map(|endpoint| endpoint.backend_id.get()).collect())
    }

    #[test]
    fn a_freed_id_waits_until_the_circle_has_gone_round() {
        let mut world = World::new();
        let mut ids = BackendIds::new(&world.snapshot);
        assert_eq!(taken(&mut ids, 3), Ok(vec![1, 2, 3]));
        let action = ids.into_action().unwrap();
        world.commit_actions(&[action]);
        // No task holds 1..=3 any more, yet they are not given again.
        let mut ids = BackendIds::new(&world.snapshot);
        assert_eq!(taken(&mut ids, 2), Ok(vec![4, 5]));
    }

    #[test]
    fn the_circle_closes_and_skips_what_any_task_holds() {
        let mut world = World::new();
        let mut held = task("t", "s", 1);
        held.endpoints = vec![endpoint(BackendId::MAX, 80), endpoint(1, 81)];
        world.put_task(&held);
        world.commit_actions(&[Action::SetBackendCursor {
            last: BackendId::new(BackendId::MAX - 2).unwrap(),
            expected: None,
        }]);
        let mut ids = BackendIds::new(&world.snapshot);
        assert_eq!(taken(&mut ids, 3), Ok(vec![BackendId::MAX - 1, 2, 3]));
    }

    #[test]
    fn exhaustion_takes_nothing() {
        let mut world = World::new();
        let mut held = task("t", "s", 1);
        held.endpoints = (2..=BackendId::MAX).map(|id| endpoint(id, 80)).collect();
        world.put_task(&held);
        let mut ids = BackendIds::new(&world.snapshot);
        assert_eq!(taken(&mut ids, 2), Err(Exhausted), "one id was free, two were asked for");
        assert_eq!(taken(&mut ids, 1), Ok(vec![1]));
    }

    #[test]
    fn host_ports_get_none() {
        let world = World::new();
        let mut asked = service("s", 1);
        asked.ports = vec![ingress(80, 80)];
        asked.ports[0].publish_mode = PublishMode::Host;
        let mut ids = BackendIds::new(&world.snapshot);
        assert_eq!(ids.endpoints(&asked), Ok(Vec::new()));
        assert_eq!(ids.into_action(), None);
    }
}

//! Backend ids: one for each ingress-published port of each task, and one for each network on which
//! its service has a virtual IP.
//!
//! Invariants: an id in the record of any task, whatever its state, is in use; ids are given in a
//! circle that starts after the one given last (kept in the store), so a freed id rests as long as
//! possible before it is given again and packets of old flows could meet it.

use std::collections::BTreeSet;

use mesh_state::ids::BackendId;
use mesh_state::network::Attachment;
use mesh_state::service::Service;
use mesh_state::spec::PublishMode;
use mesh_state::task::TaskEndpoint;
use thiserror::Error;

use super::networks::{has_virtual_ips, named_by};
use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::Action;

/// All ids are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "all {} backend ids are in use: remove tasks, publish fewer ports, or put services on fewer networks",
    BackendId::MAX
)]
pub struct Exhausted;

/// The parts of a new task's record by which the mesh reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskBackends {
    /// The backends of the task's published ports.
    pub endpoints: Vec<TaskEndpoint>,
    /// The task's networks, without addresses.
    pub attachments: Vec<Attachment>,
}

/// The backend ids during one plan.
#[derive(Debug)]
pub struct BackendIds<'a> {
    snapshot: &'a ClusterSnapshot,
    /// Ids in use; read from the snapshot when the first id is requested.
    used: Option<BTreeSet<u32>>,
    last: u32,
}

impl<'a> BackendIds<'a> {
    /// The ids in use in `snapshot`.
    pub fn new(snapshot: &'a ClusterSnapshot) -> Self {
        let last = snapshot.backend_cursor.as_ref().map_or(0, |cursor| cursor.value.get());
        Self { snapshot, used: None, last }
    }

    /// Takes ids for the backends of a new task of `service`: one for each ingress-published port
    /// and one for each virtual IP.
    ///
    /// # Errors
    /// [`Exhausted`] if too few ids are free; then none is taken.
    pub fn of_task(&mut self, service: &Service) -> Result<TaskBackends, Exhausted> {
        let ports: Vec<_> =
            service.ports.iter().filter(|port| port.publish_mode == PublishMode::Ingress).collect();
        let networks = named_by(&service.spec);
        let virtual_ips = if has_virtual_ips(&service.spec) { networks.len() } else { 0 };
        let mut ids = self.take(ports.len() + virtual_ips)?.into_iter();
        let endpoints = ports
            .into_iter()
            .filter_map(|port| {
                Some(TaskEndpoint {
                    backend_id: ids.next()?,
                    protocol: port.protocol,
                    published_port: port.published_port,
                    target_port: port.target_port,
                })
            })
            .collect();
        let attachments = networks
            .into_iter()
            .map(|named| Attachment { network_id: named.id, address: None, backend_id: ids.next() })
            .collect();
        Ok(TaskBackends { endpoints, attachments })
    }

    /// The write that stores the id given last; `None` if none was given.
    pub fn into_action(self) -> Option<Action> {
        let stored = self.snapshot.backend_cursor.as_ref();
        let last = BackendId::new(self.last)?;
        if stored.is_some_and(|cursor| cursor.value == last) {
            return None;
        }
        Some(Action::SetBackendCursor { last, expected: stored.map(|cursor| cursor.mod_revision) })
    }

    /// Takes this many ids, or none.
    fn take(&mut self, count: usize) -> Result<Vec<BackendId>, Exhausted> {
        let before = self.last;
        let mut taken = Vec::with_capacity(count);
        for _ in 0..count {
            let Some(id) = self.next() else {
                self.give_back(&taken, before);
                return Err(Exhausted);
            };
            taken.push(id);
        }
        Ok(taken)
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

    fn give_back(&mut self, ids: &[BackendId], last: u32) {
        if let Some(used) = &mut self.used {
            for id in ids {
                used.remove(&id.get());
            }
        }
        self.last = last;
    }
}

fn ids_in_use(snapshot: &ClusterSnapshot) -> BTreeSet<u32> {
    snapshot.tasks.values().flat_map(|task| task.backend_ids()).map(BackendId::get).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{World, endpoint, ingress, join, service, task};

    fn taken(ids: &mut BackendIds<'_>, ports: u16) -> Result<Vec<u32>, Exhausted> {
        let mut asked = service("s", 1);
        asked.ports = (1..=ports).map(|port| ingress(port, 80)).collect();
        ids.of_task(&asked)
            .map(|given| given.endpoints.iter().map(|endpoint| endpoint.backend_id.get()).collect())
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
        let none = TaskBackends { endpoints: Vec::new(), attachments: Vec::new() };
        assert_eq!(ids.of_task(&asked), Ok(none));
        assert_eq!(ids.into_action(), None);
    }

    #[test]
    fn each_virtual_ip_has_one_and_dnsrr_none() {
        let mut world = World::new();
        let mut held = task("t", "s", 1);
        held.attachments =
            vec![Attachment { network_id: "x".into(), address: None, backend_id: BackendId::new(3) }];
        world.put_task(&held);
        let mut asked = service("s", 1);
        asked.ports = vec![ingress(80, 80), ingress(81, 80)];
        join(&mut asked.spec, &["x", "y"]);
        let mut ids = BackendIds::new(&world.snapshot);
        let given = ids.of_task(&asked).unwrap();
        let seen: Vec<_> = given
            .attachments
            .iter()
            .map(|one| (one.network_id.as_str(), one.backend_id.map(BackendId::get), one.address))
            .collect();
        assert_eq!(given.endpoints.iter().map(|one| one.backend_id.get()).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(seen, [("x", Some(4), None), ("y", Some(5), None)], "3 is a task's");
        asked.spec.endpoint_spec.get_or_insert_default().mode = "dnsrr".to_owned();
        let given = ids.of_task(&asked).unwrap();
        assert!(given.attachments.iter().all(|one| one.backend_id.is_none()), "{given:?}");
    }
}

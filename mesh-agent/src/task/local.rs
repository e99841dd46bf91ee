//! Which of this node's tasks has which address: how the name server knows who asks.
//!
//! Invariant: an address belongs to the task that got it last; the end of an earlier holder doesn't
//! take it from the new one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{PoisonError, RwLock};

use mesh_state::ids::{NetworkId, TaskId};
use mesh_state::task::{Assignment, TaskState};
use tokio::sync::watch;

use super::cache::CachedTask;
use super::container_spec;
use super::network;

/// This node's running tasks by their addresses: the one on the network `mesh`, and those on their
/// services' networks.
#[derive(Debug, Default)]
pub struct LocalTasks {
    addresses: watch::Sender<BTreeMap<Ipv4Addr, TaskId>>,
    askers: RwLock<BTreeMap<TaskId, Asker>>,
}

/// What the name server needs to know of a task that asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asker {
    /// Its networks, in its user's order: the first that has a name answers.
    pub networks: Vec<NetworkId>,
    /// Whether its user gave it name servers (`--dns`), which the engine asks after ours: foreign
    /// names are theirs to answer.
    pub has_own_servers: bool,
}

impl Asker {
    /// The asker that a task of this assignment is.
    pub fn of(assignment: &Assignment) -> Self {
        Self {
            networks: assignment.networks.iter().map(|network| network.id.clone()).collect(),
            has_own_servers: container_spec::has_name_servers(&assignment.spec),
        }
    }
}

/// All addresses of a running task: the one on `mesh`, if it has one, and those on its networks.
pub fn known_addresses(assignment: &Assignment, on_mesh: Option<Ipv4Addr>) -> Vec<Ipv4Addr> {
    let own = network::addresses(assignment).into_iter().map(|network| network.address);
    on_mesh.into_iter().chain(own).collect()
}

impl LocalTasks {
    /// The tasks of `cached` that ran when an earlier agent last saw them. Their questions can be
    /// answered before the engine is asked, which then corrects what has changed.
    pub fn restored(cached: &[CachedTask]) -> Self {
        let local = Self::default();
        for CachedTask { assignment, status } in cached {
            let (task, container) = (&assignment.task.id, status.container.as_ref());
            let Some(container) = container.filter(|_| status.state == TaskState::Running) else { continue };
            let on_mesh = container.address.and_then(|address| match address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            });
            local.describe(task, Asker::of(assignment));
            local.set(task, &known_addresses(assignment, on_mesh));
        }
        local
    }

    /// The addresses and their tasks. A task is among them before it is reported running; as a
    /// rule, before its process runs.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<Ipv4Addr, TaskId>> {
        self.addresses.subscribe()
    }

    /// Replaces the addresses of `task`; none if it doesn't run.
    pub fn set(&self, task: &TaskId, addresses: &[Ipv4Addr]) {
        self.addresses.send_if_modified(|known| {
            let before = known.len();
            known.retain(|address, holder| holder != task || addresses.contains(address));
            let mut changed = known.len() != before;
            for address in addresses {
                changed |= known.insert(*address, task.clone()).as_ref() != Some(task);
            }
            changed
        });
    }

    /// Keeps what the name server needs to know of `task`, for as long as the node has it. It comes
    /// before the task's first address.
    pub fn describe(&self, task: &TaskId, asker: Asker) {
        self.askers.write().unwrap_or_else(PoisonError::into_inner).insert(task.clone(), asker);
    }

    /// Drops everything about `task`, which has left this node.
    pub fn forget(&self, task: &TaskId) {
        self.set(task, &[]);
        self.askers.write().unwrap_or_else(PoisonError::into_inner).remove(task);
    }

    /// The task at this address, as far as the name server needs to know it.
    pub fn asker_at(&self, address: Ipv4Addr) -> Option<Asker> {
        let addresses = self.addresses.borrow();
        let task = addresses.get(&address)?;
        self.askers.read().unwrap_or_else(PoisonError::into_inner).get(task).cloned()
    }

    /// Adds an address of `task`, which it has had since its network was set up.
    pub fn add(&self, task: &TaskId, address: Ipv4Addr) {
        self.addresses.send_if_modified(|known| known.insert(address, task.clone()).as_ref() != Some(task));
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::task::{ContainerStatus, TaskStatus};

    use super::*;
    use crate::task::worker::tests::assignment;

    #[test]
    fn an_address_is_its_last_holders() {
        let local = LocalTasks::default();
        let seen = local.subscribe();
        let (old, new): (TaskId, TaskId) = ("old".into(), "new".into());
        let [mesh, app, other] = [[10, 128, 0, 2], [10, 0, 5, 7], [10, 128, 0, 3]].map(Ipv4Addr::from);
        local.set(&old, &[mesh, app]);
        assert_eq!(*seen.borrow(), BTreeMap::from([(mesh, old.clone()), (app, old.clone())]));
        // The engine has given the address to the next container before the agent saw the end of
        // the first one.
        local.add(&new, mesh);
        local.set(&old, &[]);
        assert_eq!(*seen.borrow(), BTreeMap::from([(mesh, new.clone())]));
        local.set(&new, &[other]);
        assert_eq!(*seen.borrow(), BTreeMap::from([(other, new)]));
    }

    #[test]
    fn whoever_asks_is_known_by_address_until_the_task_leaves() {
        let local = LocalTasks::default();
        let (task, address) = (TaskId::from("t"), Ipv4Addr::new(10, 128, 0, 2));
        let asker = Asker { networks: vec!["app".into()], has_own_servers: true };
        local.describe(&task, asker.clone());
        assert_eq!(local.asker_at(address), None, "it has no address yet");
        local.add(&task, address);
        assert_eq!(local.asker_at(address), Some(asker));
        local.forget(&task);
        assert_eq!(local.asker_at(address), None);
        local.add(&task, address);
        assert_eq!(local.asker_at(address), None, "nothing of it is left");
    }

    #[test]
    fn tasks_that_ran_are_known_before_the_engine_is_asked() {
        let on_mesh = Ipv4Addr::new(10, 128, 0, 2);
        let cached = |id, state, address: Option<Ipv4Addr>| {
            let address = address.map(IpAddr::V4);
            let container = Some(ContainerStatus { address, ..ContainerStatus::default() });
            CachedTask {
                assignment: assignment(id),
                status: TaskStatus { state, container, ..TaskStatus::default() },
            }
        };
        let local = LocalTasks::restored(&[
            cached("running", TaskState::Running, Some(on_mesh)),
            cached("ended", TaskState::Complete, Some(Ipv4Addr::new(10, 128, 0, 3))),
            cached("prepared", TaskState::Ready, None),
        ]);
        assert_eq!(*local.subscribe().borrow(), BTreeMap::from([(on_mesh, "running".into())]));
        assert_eq!(local.asker_at(on_mesh), Some(Asker::of(&assignment("running"))));
        // The engine is asked later: the task's process has ended meanwhile.
        local.set(&"running".into(), &[]);
        assert_eq!(local.asker_at(on_mesh), None);
    }

    #[test]
    fn nobody_is_woken_for_what_is_known() {
        let local = LocalTasks::default();
        let mut seen = local.subscribe();
        let (task, address) = (TaskId::from("t"), Ipv4Addr::new(10, 128, 0, 2));
        local.set(&task, &[address]);
        assert!(seen.has_changed().expect("the sender lives"));
        seen.mark_unchanged();
        local.set(&task, &[address]);
        local.add(&task, address);
        local.set(&"unknown".into(), &[]);
        assert!(!seen.has_changed().expect("the sender lives"));
    }
}

//! Which of this node's tasks has which address: how the name server knows who asks.
//!
//! Invariant: an address belongs to the task that got it last; the end of an earlier holder doesn't
//! take it from the new one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use mesh_state::ids::TaskId;
use tokio::sync::watch;

/// This node's running tasks by their addresses: the one on the network `mesh`, and those on their
/// services' networks.
#[derive(Debug, Default)]
pub struct LocalTasks {
    addresses: watch::Sender<BTreeMap<Ipv4Addr, TaskId>>,
}

impl LocalTasks {
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

    /// Adds an address of `task`, which it has had since its network was set up.
    pub fn add(&self, task: &TaskId, address: Ipv4Addr) {
        self.addresses.send_if_modified(|known| known.insert(address, task.clone()).as_ref() != Some(task));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! Relays the load that each node measures of its backends to the other nodes of this manager.
//!
//! Invariants: in memory only, the newest figures of each node; figures older than [`FRESH`] are
//! not sent; a node reports on its own backends only; a message has each backend once, so the
//! number of backend ids bounds it.
//!
//! Non-goal: sending them to other managers. A node gets the loads of the nodes that have their
//! session with the same manager; for the rest it has what replies carry.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mesh_state::ids::NodeId;
use mesh_state::proto::{self, BackendLoad};
use tokio::time::Instant;

use crate::node_service::mesh_table::Table;

/// How long a measured load is valid.
const FRESH: Duration = Duration::from_secs(5);
/// A load that did not change is sent again after this, before it expires at the receiver.
const REPEAT: Duration = Duration::from_secs(2);
/// Valid loads: 1 (idle) to 127 (saturated).
const LOADS: std::ops::RangeInclusive<u32> = 1..=127;

/// The newest loads of all nodes with a session here.
#[derive(Debug, Default)]
pub struct Loads {
    by_node: Mutex<BTreeMap<NodeId, Measured>>,
}

/// One node's loads.
#[derive(Debug)]
struct Measured {
    heard_at: Instant,
    loads: Vec<BackendLoad>,
}

/// The loads that were sent to a node, by backend.
#[derive(Debug, Default)]
pub struct SentLoads(BTreeMap<u32, (u32, Instant)>);

impl Loads {
    /// Replaces what `node` measured before.
    pub fn put(&self, node: &NodeId, loads: Vec<BackendLoad>) {
        let mut by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
        by_node.retain(|_, measured| measured.heard_at.elapsed() < FRESH);
        if loads.is_empty() {
            by_node.remove(node);
        } else {
            by_node.insert(node.clone(), Measured { heard_at: Instant::now(), loads });
        }
    }

    /// The loads to send to `node`: those of other nodes' backends that it does not have, or has
    /// from longer than [`REPEAT`] ago; `None` if there are none.
    pub fn tell(&self, told: &mut SentLoads, node: &NodeId, table: &Table) -> Option<proto::Loads> {
        let now = Instant::now();
        let mut fresh = BTreeMap::new();
        {
            let by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
            let others = by_node
                .iter()
                .filter(|(other, measured)| *other != node && now.duration_since(measured.heard_at) < FRESH);
            for (other, measured) in others {
                let own = measured.loads.iter().filter(|measured| {
                    LOADS.contains(&measured.load)
                        && table.node_of(measured.backend_id) == Some(other.as_str())
                });
                fresh.extend(own.map(|measured| (measured.backend_id, measured.load)));
            }
        }
        told.0.retain(|backend, _| fresh.contains_key(backend));
        fresh.retain(|backend, load| {
            let before = told.0.get(backend);
            before.is_none_or(|(told, at)| told != load || now.duration_since(*at) >= REPEAT)
        });
        told.0.extend(fresh.iter().map(|(backend, load)| (*backend, (*load, now))));
        let loads: Vec<_> =
            fresh.into_iter().map(|(backend_id, load)| BackendLoad { backend_id, load }).collect();
        (!loads.is_empty()).then_some(proto::Loads { loads })
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::task::{ContainerStatus, TaskState, TaskStatus};

    use super::*;
    use crate::fixtures::{World, endpoint, ingress, service, task};

    /// Backend 7 on node `a`, backend 8 on node `b`.
    fn table() -> Table {
        let mut world = World::with_nodes(["a", "b"]);
        let mut web = service("web", 2);
        web.ports = vec![ingress(80, 80)];
        world.put_service(&web);
        for (id, slot, node, backend) in [("t1", 1, "a", 7), ("t2", 2, "b", 8)] {
            let mut one = task(id, "web", slot);
            one.node_id = Some(node.into());
            one.endpoints = vec![endpoint(backend, 80)];
            world.put_task(&one);
            let address = Some("10.128.0.2".parse().unwrap());
            let container = Some(ContainerStatus { address, ..ContainerStatus::default() });
            let status = TaskStatus { state: TaskState::Running, container, ..TaskStatus::default() };
            world.report_status(&id.into(), status);
        }
        Table::of(&world.snapshot)
    }

    fn measured(pairs: &[(u32, u32)]) -> Vec<BackendLoad> {
        pairs.iter().map(|(backend_id, load)| BackendLoad { backend_id: *backend_id, load: *load }).collect()
    }

    async fn pass(milliseconds: u64) {
        tokio::time::advance(Duration::from_millis(milliseconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_gets_loads_that_changed_or_are_about_to_expire() {
        let (table, loads, mut told) = (table(), Loads::default(), SentLoads::default());
        let (a, b) = (NodeId::from("a"), NodeId::from("b"));
        let mut tell = |loads: &Loads| loads.tell(&mut told, &a, &table).map(|message| message.loads);
        assert_eq!(tell(&loads), None);
        loads.put(&a, measured(&[(7, 9)]));
        loads.put(&b, measured(&[(8, 50)]));
        assert_eq!(tell(&loads), Some(measured(&[(8, 50)])), "the loads of other nodes only");
        pass(1000).await;
        loads.put(&b, measured(&[(8, 50)]));
        assert_eq!(tell(&loads), None, "the same a second later");
        loads.put(&b, measured(&[(8, 51)]));
        assert_eq!(tell(&loads), Some(measured(&[(8, 51)])), "a change");
        pass(2000).await;
        loads.put(&b, measured(&[(8, 51)]));
        assert_eq!(tell(&loads), Some(measured(&[(8, 51)])), "sent again before it expires");
        pass(5000).await;
        assert_eq!(tell(&loads), None, "too old");
        loads.put(&b, measured(&[(8, 51)]));
        assert_eq!(tell(&loads), Some(measured(&[(8, 51)])), "heard again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_reports_loads_of_its_own_backends_only() {
        let (table, loads) = (table(), Loads::default());
        loads.put(&"b".into(), measured(&[(7, 50), (8, 0), (9, 50), (8, 128)]));
        let seen = loads.tell(&mut SentLoads::default(), &"c".into(), &table);
        assert_eq!(seen, None, "another node's backend, an unknown one, and invalid loads");
    }
}

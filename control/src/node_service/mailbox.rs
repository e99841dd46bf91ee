//! What nodes reported and the store doesn't hold yet: the newest of each kind, until the store shows it.
//!
//! Invariants: pure; bounded by the cluster's tasks and nodes, for newer reports take the place of older ones; a report is checked
//! against the snapshot when it is written, so a node speaks for its own tasks only and an observed state only rises; a report that
//! no transaction can hold is dropped by itself, and holds up no other.
//!
//! Left to others: writing ([`super::recorder`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_state::Timestamp;
use mesh_state::codec::{self, CodecError};
use mesh_state::ids::{NodeId, TaskId};
use mesh_state::keys;
use mesh_state::node::{Liveness, Node, NodeDescription, NodeState, PortClash};
use mesh_state::store::{Compare, MAX_TXN_BYTES, Op};
use mesh_state::task::TaskStatus;
use serde::Serialize;

use crate::snapshot::{ClusterSnapshot, Stored};

/// Reports that wait for the store.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mailbox {
    statuses: BTreeMap<TaskId, (NodeId, TaskStatus)>,
    acks: BTreeMap<NodeId, u64>,
    liveness: BTreeMap<NodeId, Heard>,
    descriptions: BTreeMap<NodeId, (NodeDescription, IpAddr)>,
    clashes: BTreeMap<NodeId, Vec<PortClash>>,
}

/// Whether a node is heard, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// `Ready` or `Silent`.
    pub state: NodeState,
    /// Since when.
    pub since: Timestamp,
}

/// One write with what it stands on.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is written.
    pub op: Op,
}

impl Entry {
    /// Bytes that it takes of a transaction.
    pub fn size(&self) -> usize {
        self.op.size() + self.compares.iter().map(Compare::size).sum::<usize>()
    }
}

/// A report that was dropped, as it can't be stored.
#[derive(Debug)]
pub struct Unwritable {
    /// Under which key it would be.
    pub key: String,
    /// Why not.
    pub reason: String,
}

/// What is to be written, and what can't be.
#[derive(Debug, Default)]
pub struct Sorted {
    /// The writes, in their order.
    pub entries: Vec<Entry>,
    /// What was dropped.
    pub dropped: Vec<Unwritable>,
}

impl Sorted {
    /// Takes one write in; `false` if it can't be written, ever.
    fn take(&mut self, key: String, entry: Result<Entry, CodecError>) -> bool {
        let reason = match entry {
            Ok(entry) if entry.size() <= MAX_TXN_BYTES => {
                self.entries.push(entry);
                return true;
            }
            Ok(entry) => {
                format!("it takes {} bytes, a transaction has room for {MAX_TXN_BYTES}", entry.size())
            }
            Err(error) => error.to_string(),
        };
        self.dropped.push(Unwritable { key, reason });
        false
    }
}

/// Whether the store holds a reported status, or a later one of the same task.
pub fn holds(stored: Option<&TaskStatus>, reported: &TaskStatus) -> bool {
    stored.is_some_and(|stored| stored.clone().advance(reported.clone()) == *stored)
}

impl Mailbox {
    /// `node` observed `status` of `task`.
    pub fn put_status(&mut self, node: NodeId, task: TaskId, status: TaskStatus) {
        let newest = match self.statuses.remove(&task) {
            Some((reporter, earlier)) if reporter == node => earlier.advance(status),
            _ => status,
        };
        self.statuses.insert(task, (node, newest));
    }

    /// Tasks whose reported end the store may not hold yet, each with the node that says so.
    pub fn ended(&self) -> BTreeMap<TaskId, NodeId> {
        let ended = self.statuses.iter().filter(|(_, (_, status))| status.state.is_terminal());
        ended.map(|(task, (node, _))| (task.clone(), node.clone())).collect()
    }

    /// `node` carries traffic by this generation.
    pub fn put_ack(&mut self, node: NodeId, generation: u64) {
        self.acks.insert(node, generation);
    }

    /// `node` is heard, or isn't.
    pub fn put_heard(&mut self, node: NodeId, heard: Heard) {
        self.liveness.insert(node, heard);
    }

    /// `node` said this of itself.
    pub fn put_description(&mut self, node: NodeId, description: NodeDescription, address: IpAddr) {
        self.descriptions.insert(node, (description, address));
    }

    /// `node` can't listen on these published ports, and on all others.
    pub fn put_clashes(&mut self, node: NodeId, clashes: Vec<PortClash>) {
        self.clashes.insert(node, clashes);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Drops what the store holds by now and what nobody may write: reports on what doesn't exist or isn't the node's, and the
    /// silence of a node that another manager took over.
    pub fn settle(&mut self, snapshot: &ClusterSnapshot, manager: &str) {
        self.statuses.retain(|id, (node, status)| {
            let of_node = snapshot.tasks.get(id).is_some_and(|task| task.node_id.as_ref() == Some(node));
            of_node && !holds(stored_status(snapshot, id), status)
        });
        self.acks.retain(|id, generation| {
            let newest = u64::try_from(snapshot.revision).unwrap_or_default();
            // One that is newer than the store is no table's: an earlier version took what nodes said.
            let is_news = |acked: u64| acked < *generation || acked > newest;
            snapshot.nodes.contains_key(id) && snapshot.acks.get(id).is_none_or(|acked| is_news(acked.value))
        });
        self.liveness.retain(|id, heard| {
            let ours =
                snapshot.liveness.get(id).map(|liveness| (liveness.state, liveness.manager == manager));
            snapshot.nodes.contains_key(id)
                && match (heard.state, ours) {
                    (NodeState::Ready, ours) => ours != Some((NodeState::Ready, true)),
                    (_, ours) => ours == Some((NodeState::Ready, true)),
                }
        });
        self.descriptions.retain(|id, (description, address)| {
            let node = snapshot.nodes.get(id);
            node.is_some_and(|node| node.description != *description || node.address != Some(*address))
        });
        self.clashes.retain(|id, clashes| {
            // A node that never had any has no record.
            let stored = snapshot.clashes.get(id).map_or(&[][..], |stored| &stored.value);
            snapshot.nodes.contains_key(id) && stored != clashes.as_slice()
        });
    }

    /// The writes that wait, each standing on what `snapshot` shows. Liveness comes first: it decides where traffic goes. What has
    /// no stored form, or one that no transaction can hold, is dropped here.
    pub fn entries(&mut self, snapshot: &ClusterSnapshot, manager: &str, now: Timestamp) -> Sorted {
        let mut sorted = Sorted::default();
        self.liveness.retain(|id, heard| {
            let liveness = Liveness {
                state: heard.state,
                since: heard.since,
                message: String::new(),
                manager: manager.to_owned(),
            };
            let key = keys::liveness(id);
            sorted.take(key.clone(), write(key, snapshot.liveness.get(id), keys::node(id), &liveness))
        });
        self.statuses.retain(|id, (_, status)| {
            let stored = snapshot.statuses.get(id);
            let status =
                stored.map(|stored| stored.value.clone()).unwrap_or_default().advance(status.clone());
            let key = keys::status(id);
            sorted.take(key.clone(), write(key, stored, keys::task(id), &status))
        });
        self.descriptions.retain(|id, (description, address)| {
            let Some(stored) = snapshot.nodes.get(id) else { return true };
            let node = Node {
                description: description.clone(),
                address: Some(*address),
                updated_at: now,
                ..stored.value.clone()
            };
            let key = keys::node(id);
            sorted.take(key.clone(), write(key.clone(), Some(stored), key, &node))
        });
        self.acks.retain(|id, generation| {
            let key = keys::ack(id);
            sorted.take(key.clone(), write(key, snapshot.acks.get(id), keys::node(id), generation))
        });
        self.clashes.retain(|id, clashes| {
            let key = keys::clashes(id);
            sorted.take(key.clone(), write(key, snapshot.clashes.get(id), keys::node(id), clashes))
        });
        sorted
    }
}

/// A write of `key` over what is `stored`, as long as `owner` exists.
fn write<T, V: Serialize>(
    key: String,
    stored: Option<&Stored<T>>,
    owner: String,
    value: &V,
) -> Result<Entry, CodecError> {
    let stands = match stored {
        Some(stored) => Compare::ModRevision(key.clone(), stored.mod_revision),
        None => Compare::Absent(key.clone()),
    };
    Ok(Entry { compares: vec![stands, Compare::Exists(owner)], op: Op::put(key, codec::encode(value)?) })
}

fn stored_status<'a>(snapshot: &'a ClusterSnapshot, task: &TaskId) -> Option<&'a TaskStatus> {
    snapshot.statuses.get(task).map(|stored| &stored.value)
}

#[cfg(test)]
mod tests {
    use mesh_state::spec::Protocol;
    use mesh_state::task::TaskState;

    use super::*;
    use crate::fixtures::{World, service, task};

    /// Node `a`, heard by manager `m1`, with task `t1` assigned; node `b` with nothing.
    fn world() -> World {
        let mut world = World::with_nodes(["a", "b"]);
        world.put_service(&service("web", 1));
        let mut first = task("t1", "web", 1);
        first.node_id = Some("a".into());
        world.put_task(&first);
        world
    }

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus { state, ..TaskStatus::default() }
    }

    fn heard(state: NodeState) -> Heard {
        Heard { state, since: Timestamp::default() }
    }

    /// The keys that a manager would write, after what is settled is dropped.
    fn keys_of(mailbox: &mut Mailbox, world: &World, manager: &str) -> Vec<String> {
        mailbox.settle(&world.snapshot, manager);
        let entries = mailbox.entries(&world.snapshot, manager, world.now).entries;
        let key = |entry: Entry| match entry.op {
            Op::Put { key, .. } | Op::Delete { key } => key,
        };
        entries.into_iter().map(key).collect()
    }

    #[test]
    fn a_status_waits_until_the_store_holds_it() {
        let (mut world, mut mailbox) = (world(), Mailbox::default());
        mailbox.put_status("a".into(), "t1".into(), status(TaskState::Starting));
        mailbox.put_status("a".into(), "t1".into(), status(TaskState::Running));
        mailbox.put_status("a".into(), "t1".into(), status(TaskState::Preparing));
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), [keys::status(&"t1".into())]);
        let entry = mailbox.entries(&world.snapshot, "m1", world.now).entries.remove(0);
        let Op::Put { value, .. } = entry.op else { panic!("a status was deleted") };
        assert_eq!(
            codec::decode::<TaskStatus>(&value).unwrap().state,
            TaskState::Running,
            "the highest counts"
        );
        assert!(
            entry.compares.contains(&Compare::Exists(keys::task(&"t1".into()))),
            "no status without its task"
        );

        world.report(&"t1".into(), TaskState::Running);
        world.report_status(&"t1".into(), status(TaskState::Running));
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), Vec::<String>::new());
        assert!(mailbox.is_empty());
    }

    #[test]
    fn a_node_speaks_for_its_own_tasks_only() {
        let (world, mut mailbox) = (world(), Mailbox::default());
        mailbox.put_status("b".into(), "t1".into(), status(TaskState::Failed));
        mailbox.put_status("a".into(), "gone".into(), status(TaskState::Failed));
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), Vec::<String>::new());
    }

    #[test]
    fn a_report_that_cannot_be_stored_is_dropped_and_holds_up_no_other() {
        let (world, mut mailbox) = (world(), Mailbox::default());
        let huge = || "x".repeat(MAX_TXN_BYTES);
        let description = NodeDescription { hostname: huge(), ..NodeDescription::default() };
        mailbox.put_description("a".into(), description, "10.0.0.9".parse().unwrap());
        let clash = PortClash { protocol: Protocol::Tcp, port: 80, reason: huge() };
        mailbox.put_clashes("a".into(), vec![clash]);
        let poison = TaskStatus { message: huge(), ..status(TaskState::Running) };
        mailbox.put_status("a".into(), "t1".into(), poison);
        mailbox.put_ack("a".into(), 5);
        mailbox.put_ack("b".into(), 5);
        let sorted = mailbox.entries(&world.snapshot, "m1", world.now);
        let dropped: Vec<&str> = sorted.dropped.iter().map(|dropped| dropped.key.as_str()).collect();
        let (a, t1) = ("a".into(), "t1".into());
        assert_eq!(dropped, [keys::status(&t1), keys::node(&a), keys::clashes(&a)]);
        assert_eq!(sorted.entries.len(), 2, "the acknowledgements go on: {:?}", sorted.entries);
        assert!(sorted.dropped[0].reason.contains("1200000"), "reason: {}", sorted.dropped[0].reason);
        assert_eq!(keys_of(&mut mailbox, &world, "m1").len(), 2, "they were dropped once and for all");
    }

    #[test]
    fn a_state_that_ended_stays() {
        let (mut world, mut mailbox) = (world(), Mailbox::default());
        world.report(&"t1".into(), TaskState::Failed);
        mailbox.put_status("a".into(), "t1".into(), status(TaskState::Running));
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), Vec::<String>::new());
    }

    #[test]
    fn liveness_has_one_writer_at_a_time() {
        let (mut world, mut mailbox) = (world(), Mailbox::default());
        let key = keys::liveness(&"a".into());
        mailbox.put_heard("a".into(), heard(NodeState::Ready));
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), Vec::<String>::new(), "it is ready here already");
        mailbox.put_heard("a".into(), heard(NodeState::Ready));
        assert_eq!(keys_of(&mut mailbox, &world, "m2"), [key.as_str()], "another manager takes it over");
        let mut late = Mailbox::default();
        late.put_heard("a".into(), heard(NodeState::Silent));
        assert_eq!(keys_of(&mut late, &world, "m2"), Vec::<String>::new(), "m2 holds no stream of it");
        late.put_heard("a".into(), heard(NodeState::Silent));
        assert_eq!(keys_of(&mut late, &world, "m1"), [key], "its own manager says so");
        world.set_liveness(&"a".into(), NodeState::Down);
        assert_eq!(keys_of(&mut late, &world, "m1"), Vec::<String>::new(), "down is more than silent");
    }

    #[test]
    fn clashes_are_written_when_they_change_and_cleared_when_they_end() {
        let (mut world, mut mailbox) = (world(), Mailbox::default());
        let key = keys::clashes(&"a".into());
        mailbox.put_clashes("a".into(), Vec::new());
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), Vec::<String>::new(), "none, and none before");
        let clash = PortClash { protocol: Protocol::Tcp, port: 80, reason: "taken".to_owned() };
        mailbox.put_clashes("a".into(), vec![clash.clone()]);
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), [key.as_str()]);
        world.put(key.clone(), &vec![clash]);
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), Vec::<String>::new(), "the store holds it");
        mailbox.put_clashes("a".into(), Vec::new());
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), [key], "it is over");
    }

    #[test]
    fn an_acknowledgement_of_no_table_is_put_right() {
        let (mut world, mut mailbox) = (world(), Mailbox::default());
        world.put(keys::ack(&"a".into()), &u64::MAX);
        mailbox.put_ack("a".into(), 5);
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), [keys::ack(&"a".into())]);
    }

    #[test]
    fn acknowledgements_rise_and_descriptions_settle() {
        let (mut world, mut mailbox) = (world(), Mailbox::default());
        mailbox.put_ack("a".into(), 5);
        mailbox.put_ack("a".into(), 9);
        mailbox.put_ack("unknown".into(), 9);
        let description = NodeDescription { hostname: "host".to_owned(), ..NodeDescription::default() };
        let address: IpAddr = "10.0.0.9".parse().unwrap();
        mailbox.put_description("b".into(), description.clone(), address);
        let expected = [keys::node(&"b".into()), keys::ack(&"a".into())];
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), expected);

        world.put(keys::ack(&"a".into()), &9_u64);
        world.update_node("b", |node| {
            node.description = description;
            node.address = Some(address);
        });
        assert_eq!(keys_of(&mut mailbox, &world, "m1"), Vec::<String>::new());
    }
}

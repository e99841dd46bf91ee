//! Tests of which reports wait for the store, and which are dropped.

use mesh_state::spec::Protocol;
use mesh_state::task::TaskState;

use super::*;
use crate::fixtures::{World, service, task};

/// Node `a`, which manager `m1` hears, with task `t1`; node `b` without tasks.
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

/// The keys that a manager would write after [`Mailbox::settle`].
fn keys_of(mailbox: &mut Mailbox, world: &World, manager: &str) -> Vec<String> {
    mailbox.settle(&world.snapshot, manager);
    let entries = mailbox.entries(&world.snapshot, manager, world.now).entries;
    let key = |entry: PendingWrite| match entry.op {
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
    assert_eq!(codec::decode::<TaskStatus>(&value).unwrap().state, TaskState::Running, "the highest counts");
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
fn a_status_is_stamped_by_the_manager_that_stores_it() {
    let (mut world, mut mailbox) = (world(), Mailbox::default());
    let told = |state| TaskStatus {
        timestamp: Timestamp::default(),
        recorded_at: Some(Timestamp::default()),
        ran_recorded_at: Some(Timestamp::default()),
        ..status(state)
    };
    let mut store = |world: &mut World, state| {
        mailbox.put_status("a".into(), "t1".into(), told(state));
        mailbox.settle(&world.snapshot, "m1");
        let entry = mailbox.entries(&world.snapshot, "m1", world.now).entries.pop()?;
        let Op::Put { value, .. } = entry.op else { panic!("a status was deleted") };
        let stored: TaskStatus = codec::decode(&value).unwrap();
        world.put(keys::status(&"t1".into()), &stored);
        mailbox.settle(&world.snapshot, "m1");
        assert!(mailbox.is_empty(), "the store holds it");
        Some((stored.recorded_at, stored.ran_recorded_at))
    };
    let began = world.now;
    assert_eq!(store(&mut world, TaskState::Starting), Some((Some(began), None)));
    world.pass(1);
    let ran = world.now;
    assert_eq!(store(&mut world, TaskState::Running), Some((Some(ran), Some(ran))));
    world.pass(1);
    assert_eq!(store(&mut world, TaskState::Running), None, "nothing new");
    assert_eq!(store(&mut world, TaskState::Failed), Some((Some(world.now), Some(ran))));
}

#[test]
fn a_node_reports_on_its_own_tasks_only() {
    let (world, mut mailbox) = (world(), Mailbox::default());
    mailbox.put_status("b".into(), "t1".into(), status(TaskState::Failed));
    mailbox.put_status("a".into(), "gone".into(), status(TaskState::Failed));
    assert_eq!(keys_of(&mut mailbox, &world, "m1"), Vec::<String>::new());
}

#[test]
fn a_report_that_cannot_be_stored_is_dropped_and_blocks_no_other() {
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
    assert_eq!(sorted.entries.len(), 2, "the acknowledgements are written: {:?}", sorted.entries);
    assert!(sorted.dropped[0].reason.contains("1200000"), "reason: {}", sorted.dropped[0].reason);
    assert_eq!(keys_of(&mut mailbox, &world, "m1").len(), 2, "a dropped report is back");
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
    assert_eq!(keys_of(&mut mailbox, &world, "m1"), Vec::<String>::new(), "m1 hears it already");
    mailbox.put_heard("a".into(), heard(NodeState::Ready));
    assert_eq!(keys_of(&mut mailbox, &world, "m2"), [key.as_str()], "another manager takes it over");
    let mut late = Mailbox::default();
    late.put_heard("a".into(), heard(NodeState::Silent));
    assert_eq!(keys_of(&mut late, &world, "m2"), Vec::<String>::new(), "m2 has no session of it");
    late.put_heard("a".into(), heard(NodeState::Silent));
    assert_eq!(keys_of(&mut late, &world, "m1"), [key], "the manager of its session reports it");
    world.set_liveness(&"a".into(), NodeState::Down);
    assert_eq!(keys_of(&mut late, &world, "m1"), Vec::<String>::new(), "silent doesn't replace down");
}

#[test]
fn clashes_are_written_when_they_change_and_cleared_when_they_end() {
    let (mut world, mut mailbox) = (world(), Mailbox::default());
    let key = keys::clashes(&"a".into());
    mailbox.put_clashes("a".into(), Vec::new());
    assert_eq!(keys_of(&mut mailbox, &world, "m1"), Vec::<String>::new(), "no clash, and none before");
    let clash = PortClash { protocol: Protocol::Tcp, port: 80, reason: "taken".to_owned() };
    mailbox.put_clashes("a".into(), vec![clash.clone()]);
    assert_eq!(keys_of(&mut mailbox, &world, "m1"), [key.as_str()]);
    world.put(key.clone(), &vec![clash]);
    assert_eq!(keys_of(&mut mailbox, &world, "m1"), Vec::<String>::new(), "the store holds it");
    mailbox.put_clashes("a".into(), Vec::new());
    assert_eq!(keys_of(&mut mailbox, &world, "m1"), [key], "the clash is over");
}

#[test]
fn an_acknowledgement_of_a_table_that_never_was_is_corrected() {
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

#[test]
fn what_a_node_said_in_a_session_that_is_over_does_not_undo_what_it_says_elsewhere() {
    let (mut world, mut mailbox) = (world(), Mailbox::default());
    let described = |trusts: &[&str]| NodeDescription {
        trusts: trusts.iter().map(|&digest| digest.to_owned()).collect(),
        ..NodeDescription::default()
    };
    let address: IpAddr = "10.0.0.9".parse().unwrap();
    mailbox.put_description("b".into(), described(&["old", "new"]), address);
    mailbox.put_clashes(
        "b".into(),
        vec![PortClash { protocol: Protocol::Tcp, port: 80, reason: "taken".to_owned() }],
    );
    mailbox.put_host_networks("b".into(), vec!["10.0.0.0/24".parse().unwrap()]);
    mailbox.put_ack("b".into(), 5);
    mailbox.drop_said(&"b".into());
    // The other manager has stored the newer description.
    world.update_node("b", |node| {
        node.description = described(&["new"]);
        node.address = Some(address);
    });
    assert_eq!(
        keys_of(&mut mailbox, &world, "m1"),
        [keys::ack(&"b".into())],
        "only the acknowledgement is left"
    );
}

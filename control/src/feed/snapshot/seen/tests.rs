//! The moments that one manager's watch records, whatever the writers' clocks say.

use mesh_state::codec;
use mesh_state::store::KeyValue;
use mesh_state::task::TaskStatus;

use super::*;
use crate::fixtures::task;

fn item(key: String, value: &impl serde::Serialize, revision: i64) -> KeyValue {
    let value = codec::encode(value).unwrap();
    KeyValue { key, value, create_revision: revision, mod_revision: revision }
}

fn moment(second: i64) -> Timestamp {
    Timestamp::from_timestamp(second, 0).unwrap()
}

#[test]
fn a_change_of_liveness_is_seen_once_and_kept_over_a_new_listing() {
    let (mut snapshot, node) = (ClusterSnapshot::default(), NodeId::from("n"));
    let put = |state, revision| {
        let liveness =
            Liveness { state, since: moment(9999), message: String::new(), manager: "m".to_owned() };
        item(keys::liveness(&"n".into()), &liveness, revision)
    };
    snapshot.apply_seen(Change::Put(put(NodeState::Ready, 1)), moment(10));
    snapshot.apply_seen(Change::Put(put(NodeState::Silent, 2)), moment(20));
    snapshot.apply_seen(Change::Put(put(NodeState::Silent, 3)), moment(30));
    snapshot.revision = 3;
    assert_eq!(snapshot.liveness_seen[&node], moment(20), "the moment at which it fell silent");

    let mut listed = ClusterSnapshot::from_listing(3, vec![put(NodeState::Silent, 3)]);
    listed.see_listing(&snapshot, moment(40));
    assert_eq!(
        listed.liveness_since(&node, &listed.liveness[&node]),
        moment(20),
        "the listing changes no moment that was known before"
    );
    let mut other = ClusterSnapshot::from_listing(4, vec![put(NodeState::Down, 4)]);
    other.see_listing(&snapshot, moment(40));
    assert_eq!(
        other.liveness_since(&node, &other.liveness[&node]),
        moment(40),
        "the change was seen with the listing"
    );
    let key = keys::liveness(&node);
    snapshot.apply_seen(Change::Deleted { key, mod_revision: 5 }, moment(50));
    assert!(snapshot.liveness_seen.is_empty(), "a removed node leaves no moment");
}

#[test]
fn a_manager_that_starts_trusts_the_stamp_of_down_and_restarts_silence() {
    for (state, expected) in [(NodeState::Down, 100), (NodeState::Silent, 500)] {
        let liveness =
            Liveness { state, since: moment(100), message: String::new(), manager: "m".to_owned() };
        let node = NodeId::from("n");
        let mut listed = ClusterSnapshot::from_listing(3, vec![item(keys::liveness(&node), &liveness, 3)]);
        listed.see_listing(&ClusterSnapshot::default(), moment(500));
        assert_eq!(listed.liveness_since(&node, &liveness), moment(expected), "{}", state.as_str());
    }
}

/// The status of a task in `state`, with the stamp of a node whose clock is an hour off.
fn status(state: TaskState, second: i64) -> TaskStatus {
    TaskStatus { state, timestamp: moment(3600 + second), ..TaskStatus::default() }
}

/// The history of a task whose node and former leader have clocks that are an hour ahead, as this
/// manager saw it.
fn lived() -> (ClusterSnapshot, Task, Vec<KeyValue>) {
    let mut snapshot = ClusterSnapshot::default();
    let mut made = task("t", "web", 1);
    made.created_at = moment(3610);
    made.start_after = Some(moment(3615));
    let mut stopping = made.clone();
    stopping.desired_state = TaskState::Shutdown;
    stopping.shutdown_at = Some(moment(3640));
    let ran = TaskStatus::default().advance(status(TaskState::Running, 20));
    let ended = ran.clone().advance(status(TaskState::Failed, 30));
    let (task_key, status_key) = (keys::task(&made.id), keys::status(&made.id));
    for (second, change) in [
        (10, item(task_key.clone(), &made, 1)),
        (20, item(status_key.clone(), &ran, 2)),
        (25, item(status_key.clone(), &ran, 3)),
        (30, item(status_key.clone(), &ended, 4)),
        (40, item(task_key.clone(), &stopping, 5)),
        (45, item(task_key.clone(), &stopping, 6)),
    ] {
        snapshot.revision = change.mod_revision;
        snapshot.apply_seen(Change::Put(change), moment(second));
    }
    let listing = vec![item(task_key, &stopping, 6), item(status_key, &ended, 4)];
    (snapshot, stopping, listing)
}

fn check(snapshot: &ClusterSnapshot, task: &Task, expected: [i64; 4], what: &str) {
    let seen = [
        snapshot.may_start_at(task).unwrap(),
        snapshot.ran_at(task),
        snapshot.ended_at(task),
        snapshot.asked_to_stop_at(task).unwrap(),
    ];
    assert_eq!(seen, expected.map(moment), "{what}");
}

#[test]
fn each_step_of_a_task_is_seen_once_by_one_clock() {
    let (snapshot, task, listing) = lived();
    check(&snapshot, &task, [15, 20, 30, 40], "may start, ran, ended, asked to stop");
    let mut again = ClusterSnapshot::from_listing(6, listing);
    again.see_listing(&snapshot, moment(60));
    check(&again, &task, [15, 20, 30, 40], "after a new listing");
    let key = keys::task(&task.id);
    again.apply_seen(Change::Deleted { key, mod_revision: 7 }, moment(70));
    assert!(again.tasks_seen.is_empty(), "a removed task leaves no moments");
}

#[test]
fn steps_that_a_lost_watch_missed_are_seen_with_the_listing() {
    let (_, task, listing) = lived();
    let before = ClusterSnapshot { revision: 1, ..ClusterSnapshot::default() };
    let mut listed = ClusterSnapshot::from_listing(6, listing);
    listed.see_listing(&before, moment(60));
    check(&listed, &task, [65, 60, 60, 60], "may start, ran, ended, asked to stop");
}

#[test]
fn a_manager_that_starts_takes_no_stamp_as_later_than_now() {
    let (_, task, listing) = lived();
    let mut listed = ClusterSnapshot::from_listing(6, listing.clone());
    listed.see_listing(&ClusterSnapshot::default(), moment(60));
    check(&listed, &task, [65, 60, 60, 60], "the stamps are of a clock that is ahead");
    let mut later = ClusterSnapshot::from_listing(6, listing);
    later.see_listing(&ClusterSnapshot::default(), moment(9999));
    check(&later, &task, [3615, 3620, 3630, 3640], "the stamps that were written count");
}

#[test]
fn what_a_manager_recorded_counts_before_what_the_node_says() {
    let (_, task, _) = lived();
    let ran = TaskStatus::default().advance(status(TaskState::Running, 20)).recorded(None, moment(21));
    let ended = ran.clone().advance(status(TaskState::Failed, 30)).recorded(Some(&ran), moment(31));
    let listing = vec![item(keys::task(&task.id), &task, 6), item(keys::status(&task.id), &ended, 4)];
    let mut listed = ClusterSnapshot::from_listing(6, listing);
    listed.see_listing(&ClusterSnapshot::default(), moment(9999));
    check(&listed, &task, [3615, 21, 31, 3640], "by the managers' clocks");
}

impl ClusterSnapshot {
    /// The snapshot of a manager whose clock is `ahead` of this one's.
    pub(crate) fn as_seen_by_a_clock_ahead(&mut self, ahead: TimeDelta) {
        let shift = |moment: &mut Timestamp| *moment += ahead;
        self.liveness_seen.values_mut().for_each(shift);
        self.managers_seen.values_mut().for_each(shift);
        self.member_keys_seen.iter_mut().for_each(shift);
        for TaskSeen { made, asked_to_stop, ran, ended } in self.tasks_seen.values_mut() {
            [made, asked_to_stop, ran, ended].into_iter().flatten().for_each(shift);
        }
    }
}

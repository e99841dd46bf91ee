//! Tests of the snapshot: it follows what the store says, value by value.

use super::*;

fn item(key: String, value: &impl serde::Serialize, revision: i64) -> KeyValue {
    KeyValue { key, value: codec::encode(value).unwrap(), create_revision: revision, mod_revision: revision }
}

fn task(id: &str, node: Option<&str>) -> Task {
    Task { node_id: node.map(NodeId::from), ..crate::fixtures::task(id, "s", 1) }
}

#[test]
fn indexes_follow_a_task_through_its_life() {
    let mut snapshot = ClusterSnapshot::default();
    let key = keys::task(&"t".into());
    snapshot.apply(Change::Put(item(key.clone(), &task("t", None), 3)));
    assert_eq!(snapshot.tasks_of(&"s".into()).count(), 1);
    assert_eq!(snapshot.tasks_on(&"n".into()).count(), 0);
    snapshot.apply(Change::Put(item(key.clone(), &task("t", Some("n")), 5)));
    assert_eq!(snapshot.tasks_on(&"n".into()).count(), 1, "the task was assigned to n");
    assert_eq!((snapshot.revision, snapshot.mesh_revision), (5, 5));
    snapshot.apply(Change::Deleted { key, mod_revision: 6 });
    assert_eq!(snapshot.tasks_of(&"s".into()).count() + snapshot.tasks_on(&"n".into()).count(), 0);
}

#[test]
fn an_unreadable_value_is_named_and_the_last_good_one_kept() {
    let mut snapshot = ClusterSnapshot::default();
    let key = keys::task(&"t".into());
    snapshot.apply(Change::Put(item(key.clone(), &task("t", None), 3)));
    snapshot.apply(Change::Put(KeyValue {
        key: key.clone(),
        value: b"{".to_vec(),
        create_revision: 3,
        mod_revision: 4,
    }));
    assert!(snapshot.unreadable.contains_key(&key));
    assert_eq!(snapshot.tasks.len(), 1);
}

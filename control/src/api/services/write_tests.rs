//! What the transactions of `write` hold.

use mesh_state::Timestamp;
use mesh_state::service::{Service, UpdateState};
use mesh_state::spec::{Protocol, ServiceSpec};
use mesh_state::store::{Compare, Op};
use mesh_state::{codec, keys};

use super::write;
use crate::api::access::Transaction;
use crate::api::error::ApiError;
use crate::api::fixtures::{self, ingress_port};
use crate::snapshot::ClusterSnapshot;

fn written(transaction: &Transaction, key: &str) -> Option<Vec<u8>> {
    transaction.ops.iter().find_map(|op| match op {
        Op::Put { key: at, value, .. } if at == key => Some(value.clone()),
        _ => None,
    })
}

fn deletes(transaction: &Transaction, key: &str) -> bool {
    transaction.ops.contains(&Op::delete(key))
}

fn stored_service(transaction: &Transaction) -> Service {
    codec::decode(&written(transaction, &keys::service(&"id1".into())).expect("a service written")).unwrap()
}

fn update(snapshot: &ClusterSnapshot, spec: ServiceSpec) -> Result<Transaction, ApiError> {
    let current = &snapshot.services[&"id1".into()];
    write::update(snapshot, Timestamp::default(), current, current.mod_revision, spec)
}

fn refusal<T>(result: Result<T, ApiError>) -> (u16, String) {
    result.err().map(|error| (error.status().as_u16(), error.to_string())).expect("a refusal")
}

#[test]
fn a_creation_claims_its_name_and_ports_with_the_object() {
    let spec = fixtures::spec("web", vec![ingress_port(80, 80)]);
    let transaction =
        write::create(&ClusterSnapshot::default(), Timestamp::default(), &"id1".into(), spec.clone())
            .unwrap();
    let keys = [
        keys::service(&"id1".into()),
        keys::name(write::NAME_KIND, "web"),
        keys::spec(&"id1".into(), 1),
        keys::port(Protocol::Tcp, 80),
    ];
    for key in keys {
        assert!(transaction.compares.contains(&Compare::Absent(key.clone())), "{key} is not compared");
        assert!(written(&transaction, &key).is_some(), "{key} is not written");
    }
    assert_eq!(stored_service(&transaction).spec, spec);
}

#[test]
fn a_taken_name_is_refused() {
    let snapshot = fixtures::snapshot_with(&[fixtures::service("id1", "web", Vec::new())]);
    let spec = fixtures::spec("web", Vec::new());
    let seen = refusal(write::create(&snapshot, Timestamp::default(), &"id2".into(), spec));
    assert_eq!(seen, (409, "name conflicts with an existing object: service web already exists".to_owned()));
}

#[test]
fn an_update_keeps_what_was_and_moves_the_claims() {
    let before = fixtures::service("id1", "web", vec![ingress_port(80, 80), ingress_port(81, 81)]);
    let snapshot = fixtures::snapshot_with(std::slice::from_ref(&before));
    let spec = fixtures::spec("web", vec![ingress_port(81, 81), ingress_port(82, 80)]);
    let transaction = update(&snapshot, spec.clone()).unwrap();
    let after = stored_service(&transaction);
    assert_eq!((after.spec_version, after.previous_spec_version), (2, Some(1)));
    assert_eq!((after.spec, after.previous_spec), (spec, Some(before.spec)));
    assert!(transaction.compares.contains(&Compare::ModRevision(keys::service(&"id1".into()), 7)));
    assert!(deletes(&transaction, &keys::port(Protocol::Tcp, 80)), "port 80 is not given up");
    assert!(written(&transaction, &keys::port(Protocol::Tcp, 82)).is_some(), "port 82 is not claimed");
    let kept = keys::port(Protocol::Tcp, 81);
    assert!(!deletes(&transaction, &kept) && written(&transaction, &kept).is_none(), "port 81 is touched");
}

#[test]
fn an_update_is_refused_as_swarm_refuses_it() {
    let snapshot = fixtures::snapshot_with(&[fixtures::service("id1", "web", Vec::new())]);
    let renamed = fixtures::spec("other", Vec::new());
    assert_eq!(refusal(update(&snapshot, renamed)), (501, "renaming services is not supported".to_owned()));
    let mut global = fixtures::spec("web", Vec::new());
    global.mode = serde_json::from_str(r#"{"Global":{}}"#).unwrap();
    assert_eq!(refusal(update(&snapshot, global)), (501, "service mode change is not allowed".to_owned()));
    let current = &snapshot.services[&"id1".into()];
    let stale = write::update(&snapshot, Timestamp::default(), current, 6, fixtures::spec("web", Vec::new()));
    assert_eq!(refusal(stale), (500, "update out of sequence".to_owned()));
}

#[test]
fn a_rollback_swaps_the_specs_under_a_new_version() {
    let mut service = fixtures::service("id1", "web", vec![ingress_port(80, 80)]);
    service.previous_spec = Some(fixtures::spec("web", vec![ingress_port(90, 80)]));
    service.spec_version = 4;
    service.previous_spec_version = Some(3);
    let snapshot = fixtures::snapshot_with(std::slice::from_ref(&service));
    let current = &snapshot.services[&"id1".into()];
    let transaction =
        write::rollback(&snapshot, Timestamp::default(), current, current.mod_revision).unwrap();
    let after = stored_service(&transaction);
    assert_eq!((Some(after.spec), after.previous_spec), (service.previous_spec, Some(service.spec)));
    assert_eq!(after.spec_version, 5, "a version that tasks may refer to is never written again");
    let status = after.update_status.expect("an update status");
    assert_eq!(
        (status.state, status.message.as_str()),
        (UpdateState::RollbackStarted, "manually requested rollback")
    );
    assert!(written(&transaction, &keys::port(Protocol::Tcp, 90)).is_some(), "port 90 is not claimed back");
}

#[test]
fn without_a_previous_spec_there_is_no_rollback() {
    let snapshot = fixtures::snapshot_with(&[fixtures::service("id1", "web", Vec::new())]);
    let current = &snapshot.services[&"id1".into()];
    let seen = refusal(write::rollback(&snapshot, Timestamp::default(), current, current.mod_revision));
    assert_eq!(seen, (400, "service web does not have a previous spec".to_owned()));
}

#[test]
fn a_spec_version_rises_above_every_stored_one() {
    let mut service = fixtures::service("id1", "web", Vec::new());
    service.spec_version = 9;
    let mut snapshot = fixtures::snapshot_with(std::slice::from_ref(&service));
    // The updater's own rollback may have gone back to an older version.
    service.spec_version = 2;
    snapshot.apply(mesh_state::store::Change::Put(mesh_state::store::KeyValue {
        key: keys::service(&"id1".into()),
        value: codec::encode(&service).unwrap(),
        create_revision: 5,
        mod_revision: 8,
    }));
    let transaction = update(&snapshot, fixtures::spec("web", Vec::new())).unwrap();
    assert_eq!(stored_service(&transaction).spec_version, 10);
}

#[test]
fn a_removal_gives_up_every_claim() {
    let snapshot = fixtures::snapshot_with(&[fixtures::service("id1", "web", vec![ingress_port(80, 80)])]);
    let transaction = write::remove(&snapshot.services[&"id1".into()]);
    for key in
        [keys::service(&"id1".into()), keys::name(write::NAME_KIND, "web"), keys::port(Protocol::Tcp, 80)]
    {
        assert!(deletes(&transaction, &key), "{key} stays");
    }
    assert_eq!(transaction.compares, [Compare::ModRevision(keys::service(&"id1".into()), 7)]);
}

#[test]
fn the_largest_service_fits_a_transaction_even_when_all_its_ports_change() {
    let ports = |first: u16| (first..first + 40).map(|port| ingress_port(port, port)).collect::<Vec<_>>();
    let snapshot = fixtures::snapshot_with(&[fixtures::service("id1", "web", ports(1000))]);
    let transaction = update(&snapshot, fixtures::spec("web", ports(2000))).unwrap();
    let ops = transaction.compares.len() + transaction.ops.len();
    assert!(ops <= mesh_state::store::MAX_TXN_OPS, "expected at most 128 operations, saw {ops}");
}

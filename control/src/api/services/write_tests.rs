//! Tests of what the transactions of `write` contain.

use mesh_state::Timestamp;
use mesh_state::cluster::Sealed;
use mesh_state::service::{Service, UpdateState, UpdateStatus};
use mesh_state::spec::{PortConfig, Protocol, ServiceSpec};
use mesh_state::store::{Compare, MAX_TXN_OPS, Op};
use mesh_state::{codec, keys};

use super::write;
use crate::api::access::Transaction;
use crate::api::error::ApiError;
use crate::api::validate::INGRESS_PORTS_MAX;
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::fixtures::{self, World, ingress};
use crate::plan::Action;

const ID: &str = "id1";

/// The spec of a service `web` that publishes `ports`.
fn web(ports: &[PortConfig]) -> ServiceSpec {
    let mut spec = fixtures::service("web", 1).spec;
    spec.endpoint_spec.get_or_insert_default().ports = ports.to_vec();
    spec
}

/// The stored service with this spec.
fn stored(ports: &[PortConfig]) -> Service {
    Service { id: ID.into(), spec: web(ports), ports: ports.to_vec(), ..fixtures::service("web", 1) }
}

/// A cluster with this service and its name's claim.
fn world(service: &Service) -> World {
    let mut world = World::new();
    world.put(keys::name(write::NAME_KIND, &service.spec.name), &service.id);
    world.put_service(service);
    world
}

fn current(world: &World) -> &Stored<Service> {
    &world.snapshot.services[&ID.into()]
}

fn update(world: &World, spec: ServiceSpec) -> Result<Transaction, ApiError> {
    let current = current(world);
    write::update(&world.snapshot, world.now, current, current.mod_revision, spec, None)
}

fn rollback(world: &World) -> Result<Transaction, ApiError> {
    let current = current(world);
    write::rollback(&world.snapshot, world.now, current, current.mod_revision)
}

fn written(transaction: &Transaction, key: &str) -> Option<Vec<u8>> {
    transaction.ops.iter().find_map(|op| match op {
        Op::Put { key: at, value, .. } if at == key => Some(value.clone()),
        _ => None,
    })
}

fn deletes(transaction: &Transaction, key: &str) -> bool {
    transaction.ops.contains(&Op::delete(key))
}

fn written_service(transaction: &Transaction) -> Service {
    codec::decode(&written(transaction, &keys::service(&ID.into())).expect("a service written")).unwrap()
}

fn refusal(result: Result<Transaction, ApiError>) -> (u16, String) {
    result.err().map(|error| (error.status().as_u16(), error.to_string())).expect("a refusal")
}

#[test]
fn a_creation_claims_its_name_and_ports_with_the_object() {
    let spec = web(&[ingress(80, 80)]);
    let snapshot = ClusterSnapshot::default();
    let transaction = write::create(&snapshot, Timestamp::default(), &ID.into(), spec.clone(), None).unwrap();
    let keys = [
        keys::service(&ID.into()),
        keys::name(write::NAME_KIND, "web"),
        keys::spec(&ID.into(), 1),
        keys::port(Protocol::Tcp, 80),
    ];
    for key in keys {
        assert!(transaction.compares.contains(&Compare::Absent(key.clone())), "{key} is not compared");
        assert!(written(&transaction, &key).is_some(), "{key} is not written");
    }
    assert_eq!(written_service(&transaction).spec, spec);
}

#[test]
fn a_taken_name_and_a_taken_port_are_refused() {
    let world = world(&stored(&[ingress(80, 80)]));
    let create = |spec| refusal(write::create(&world.snapshot, world.now, &"id2".into(), spec, None));
    let taken = "name conflicts with an existing object: service web already exists";
    assert_eq!(create(web(&[])), (409, taken.to_owned()));
    let other = ServiceSpec { name: "other".to_owned(), ..web(&[ingress(80, 80)]) };
    let in_use = "port '80' is already in use by service 'web' (id1) as an ingress port";
    assert_eq!(create(other), (400, in_use.to_owned()));
}

#[test]
fn an_update_keeps_the_previous_spec_and_moves_the_claims() {
    let before = stored(&[ingress(80, 80), ingress(81, 81)]);
    let world = world(&before);
    let spec = web(&[ingress(81, 81), ingress(82, 80)]);
    let transaction = update(&world, spec.clone()).unwrap();
    let after = written_service(&transaction);
    assert_eq!((after.spec_version, after.previous_spec_version), (2, Some(1)));
    assert_eq!((after.spec, after.previous_spec), (spec, Some(before.spec)));
    let stands_on = Compare::ModRevision(keys::service(&ID.into()), current(&world).mod_revision);
    assert!(
        transaction.compares.contains(&stands_on),
        "the update doesn't compare the revision that was read"
    );
    assert!(deletes(&transaction, &keys::port(Protocol::Tcp, 80)), "port 80 is not given up");
    assert!(written(&transaction, &keys::port(Protocol::Tcp, 82)).is_some(), "port 82 is not claimed");
    let kept = keys::port(Protocol::Tcp, 81);
    assert!(!deletes(&transaction, &kept) && written(&transaction, &kept).is_none(), "port 81 is touched");
}

#[test]
fn an_update_is_refused_as_swarm_refuses_it() {
    let world = world(&stored(&[]));
    let renamed = ServiceSpec { name: "other".to_owned(), ..web(&[]) };
    assert_eq!(refusal(update(&world, renamed)), (501, "renaming services is not supported".to_owned()));
    let global = ServiceSpec { mode: fixtures::global("web").spec.mode, ..web(&[]) };
    assert_eq!(refusal(update(&world, global)), (501, "service mode change is not allowed".to_owned()));
    let current = current(&world);
    let before = world.snapshot.specs[&(ID.into(), 1)].mod_revision - 1;
    let stale = write::update(&world.snapshot, world.now, current, before, web(&[]), None);
    assert_eq!(refusal(stale), (500, "update out of sequence".to_owned()));
}

#[test]
fn the_updaters_writes_do_not_outdate_a_users_version() {
    let mut world = world(&stored(&[]));
    let read_at = current(&world).mod_revision;
    let mut rolling = current(&world).value.clone();
    rolling.update_status = Some(UpdateStatus::begun(world.now));
    world.commit_actions(&[Action::UpdateService { service: rolling, expected: read_at }]);
    let by_one_who_read_at = |world: &World, version| {
        let relabelled = ServiceSpec { labels: [("a".to_owned(), "b".to_owned())].into(), ..web(&[]) };
        write::update(&world.snapshot, world.now, current(world), version, relabelled, None)
    };
    let accepted = by_one_who_read_at(&world, read_at).unwrap();
    let stands_on = Compare::ModRevision(keys::service(&ID.into()), current(&world).mod_revision);
    assert!(accepted.compares.contains(&stands_on), "{:?}", accepted.compares);
    let written = written_service(&accepted);
    world.put_service(&written);
    let stale = (500, "update out of sequence".to_owned());
    assert_eq!(refusal(by_one_who_read_at(&world, read_at)), stale, "another user was faster");
    let ahead = current(&world).mod_revision + 1;
    assert_eq!(refusal(by_one_who_read_at(&world, ahead)), stale, "a version that never existed");
}

#[test]
fn an_update_before_the_first_tasks_has_a_status_from_the_start() {
    let mut world = world(&stored(&[]));
    let changed = |change: fn(&mut ServiceSpec)| {
        let mut spec = web(&[]);
        change(&mut spec);
        spec
    };
    let status = |world: &World, spec| written_service(&update(world, spec).unwrap()).update_status;
    let image = |spec: &mut ServiceSpec| {
        spec.task_template.container_spec.get_or_insert_default().image = "nginx:2".to_owned();
    };
    let begun = Some(UpdateStatus::begun(world.now));
    assert_eq!(status(&world, changed(image)), begun);
    assert_eq!(status(&world, changed(|spec| drop(spec.labels.insert("a".into(), "b".into())))), None);
    let idle = |spec: &mut ServiceSpec| spec.mode.replicated.get_or_insert_default().replicas = Some(0);
    let mut both = changed(image);
    idle(&mut both);
    assert_eq!(status(&world, both), None, "no task is wanted");

    let mut rolling = current(&world).value.clone();
    rolling.update_status.clone_from(&begun);
    world.put_service(&rolling);
    assert_eq!(
        status(&world, changed(|spec| drop(spec.labels.insert("a".into(), "b".into())))),
        begun,
        "an update in progress keeps its status"
    );
    world.put_task(&fixtures::task("t", ID, 1));
    assert_eq!(status(&world, changed(image)), None, "the updater finds the task");
}

#[test]
fn a_rollback_swaps_the_specs_under_a_new_version() {
    let mut service = stored(&[ingress(80, 80)]);
    service.previous_spec = Some(web(&[ingress(90, 80)]));
    service.spec_version = 4;
    service.previous_spec_version = Some(3);
    let transaction = rollback(&world(&service)).unwrap();
    let after = written_service(&transaction);
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
    let seen = refusal(rollback(&world(&stored(&[]))));
    assert_eq!(seen, (400, "service id1 does not have a previous spec".to_owned()));
}

#[test]
fn a_spec_version_rises_above_every_stored_one() {
    let mut world = world(&Service { spec_version: 9, ..stored(&[]) });
    // A rollback may have returned to an older version.
    world.put_service(&Service { spec_version: 2, ..stored(&[]) });
    assert_eq!(written_service(&update(&world, web(&[])).unwrap()).spec_version, 10);
}

#[test]
fn a_removal_gives_up_every_claim() {
    let world = world(&stored(&[ingress(80, 80)]));
    let transaction = write::remove(&world.snapshot, current(&world)).unwrap();
    let claims = [keys::name(write::NAME_KIND, "web"), keys::port(Protocol::Tcp, 80)];
    for key in claims.into_iter().chain([keys::service(&ID.into())]) {
        assert!(deletes(&transaction, &key), "{key} stays");
    }
    let stands_on = Compare::ModRevision(keys::service(&ID.into()), current(&world).mod_revision);
    assert_eq!(transaction.compares, [stands_on]);
}

#[test]
fn the_largest_service_fits_a_transaction_and_a_larger_change_is_refused_with_the_next_step() {
    let ports =
        |first: u16, count: u16| (first..first + count).map(|port| ingress(port, port)).collect::<Vec<_>>();
    let check = |transaction: &Transaction| {
        let ops = transaction.compares.len().max(transaction.ops.len());
        assert!(ops <= MAX_TXN_OPS, "expected at most {MAX_TXN_OPS} operations, saw {ops}");
    };
    let most = u16::try_from(INGRESS_PORTS_MAX).unwrap();
    let largest = ports(1000, most);
    let empty = World::new();
    check(&write::create(&empty.snapshot, empty.now, &ID.into(), web(&largest), None).unwrap());
    let world = world(&stored(&largest));
    check(&write::remove(&world.snapshot, current(&world)).unwrap());
    check(&update(&world, web(&largest)).unwrap());
    check(&update(&world, web(&[&largest[50..], &ports(2000, 50)].concat())).unwrap());
    let refused = update(&world, web(&ports(2000, most))).unwrap_err().to_string();
    assert!(refused.contains("make it in two steps"), "{refused}");
    check(&update(&world, web(&[])).unwrap());
}

#[test]
fn credentials_follow_their_spec() {
    let sealed = |text: &str| Some(Sealed(text.to_owned()));
    let mut before = stored(&[]);
    before.registry_auth = sealed("first");
    let mut world = world(&before);
    let now = world.now;
    let second = {
        let current = current(&world);
        write::update(&world.snapshot, now, current, current.mod_revision, web(&[]), sealed("second"))
            .unwrap()
    };
    let second = written_service(&second);
    assert_eq!(
        (&second.registry_auth, &second.previous_registry_auth),
        (&sealed("second"), &sealed("first"))
    );
    world.put_service(&second);
    let back = written_service(&rollback(&world).unwrap());
    assert_eq!((back.registry_auth, back.previous_registry_auth), (sealed("first"), sealed("second")));
}

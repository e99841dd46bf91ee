//! Restores onto clusters in a test's hand.

use mesh_backup::content::Origin;
use mesh_backup::{Backup, Entry, KEY_BYTES};
use mesh_state::cluster::Cluster;
use mesh_state::store::{MemoryStore, Store as _, TxnOutcome};
use mesh_state::task::Task;
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::super::difference::difference;
use super::*;
use crate::fixtures;
use crate::seal::Sealer;

/// What a cluster of a test has: secrets, networks, and services with a scale, a secret and a
/// network.
#[derive(Debug, Clone, Default)]
struct Content {
    secrets: Vec<u8>,
    networks: Vec<u8>,
    services: Vec<(u8, u64, Option<u8>, Option<u8>)>,
    label: u8,
}

/// A cluster of objects that have the numbers of `content`; those of a second life have other ids
/// and the same names.
fn entries(content: &Content) -> Vec<Entry> {
    let mut all = Vec::new();
    let mut put = |key: String, value: Vec<u8>| all.push(Entry { key, value });
    let mut cluster: Cluster = fixtures::cluster();
    cluster.labels.insert("label".to_owned(), content.label.to_string());
    put(keys::CLUSTER.to_owned(), codec::encode(&cluster).unwrap());
    let mut node = fixtures::node("n1");
    node.spec.labels.insert("label".to_owned(), content.label.to_string());
    put(keys::node(&node.id), codec::encode(&node).unwrap());
    let kind = DependencyKind::Secret;
    for number in &content.secrets {
        let mut secret = fixtures::dependency(&format!("secret{number}"));
        secret.name = format!("name{}", number % 4);
        put(keys::name("secrets", &secret.name), codec::encode(&secret.id).unwrap());
        put(keys::sealed(kind, &secret.id), vec![1, *number]);
        put(keys::dependency(kind, &secret.id), codec::encode(&secret).unwrap());
    }
    for number in &content.networks {
        let name = format!("net{}", number % 4);
        let mut network = fixtures::network(
            &format!("network{number}"),
            &format!("10.9.{number}.0/24"),
            1 + u32::from(*number),
        );
        network.name.clone_from(&name);
        put(keys::name("networks", &name), codec::encode(&network.id).unwrap());
        put(keys::network(&network.id), codec::encode(&network).unwrap());
    }
    for (number, replicas, secret, network) in &content.services {
        let mut service = fixtures::service(&format!("service{number}"), *replicas);
        service.spec.name = format!("web{}", number % 4);
        if let Some(secret) = secret.filter(|secret| content.secrets.contains(secret)) {
            let reference = serde_json::json!([{"SecretID": format!("secret{secret}"),
                "SecretName": format!("name{}", secret % 4), "File": {"Name": "a"}}]);
            let container = service.spec.task_template.container_spec.as_mut().unwrap();
            container.secrets = serde_json::from_value(reference).unwrap();
            let id = format!("secret{secret}").as_str().into();
            put(keys::reference(kind, &id, &service.id), codec::encode(&service.id).unwrap());
        }
        if let Some(network) = network.filter(|network| content.networks.contains(network)) {
            fixtures::join(&mut service.spec, &[&format!("network{network}")]);
        }
        put(keys::name("services", &service.spec.name), codec::encode(&service.id).unwrap());
        put(keys::spec(&service.id, 1), codec::encode(&service.spec).unwrap());
        put(keys::service(&service.id), codec::encode(&service).unwrap());
        let task: Task = fixtures::task(&format!("task{number}"), service.id.as_str(), 1);
        put(keys::task(&task.id), codec::encode(&task).unwrap());
    }
    all
}

fn saved(content: &Content) -> Saved {
    let origin = Origin {
        cluster: "c".into(),
        revision: 9,
        mesh: String::new(),
        manager: String::new(),
        now: Timestamp::default(),
    };
    let backup = Backup::new(origin, Zeroizing::new([1; KEY_BYTES]), entries(content)).unwrap();
    Saved::read(&backup, &Sealer::new(&Zeroizing::new([1; KEY_BYTES])), &"c".into()).unwrap()
}

async fn store_of(content: &Content) -> MemoryStore {
    let store = MemoryStore::new();
    for entry in entries(content) {
        store.txn(vec![], vec![Op::put(entry.key, entry.value)]).await.unwrap();
    }
    store
}

async fn snapshot(store: &MemoryStore) -> ClusterSnapshot {
    let listing = store.list(keys::ROOT).await.unwrap();
    ClusterSnapshot::from_listing(listing.revision, listing.items)
}

/// Takes all steps; returns what was left, and every key that was written.
async fn carry_out(store: &MemoryStore, saved: &Saved) -> (Vec<String>, Vec<String>) {
    let mut written = Vec::new();
    for _ in 0..200 {
        let live = snapshot(store).await;
        match next(&live, saved, Timestamp::default()) {
            Next::Done(left) => return (left, written),
            Next::Write(Transaction { compares, ops }) => {
                written.extend(ops.iter().map(|op| match op {
                    Op::Put { key, .. } | Op::Delete { key } => key.clone(),
                }));
                let outcome = store.txn(compares, ops).await.unwrap();
                assert!(matches!(outcome, TxnOutcome::Committed(_)), "a step met a conflict: {written:?}");
            }
        }
    }
    panic!("no end: {written:?}");
}

/// Numbers below 8, of which no two have one name.
fn numbers() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::btree_map(0_u8..4, any::<bool>(), 0..4)
        .prop_map(|chosen| chosen.into_iter().map(|(number, second)| number + 4 * u8::from(second)).collect())
}

fn content() -> impl Strategy<Value = Content> {
    let uses = prop::collection::vec((0_u64..3, prop::option::of(0_u8..8), prop::option::of(0_u8..8)), 4);
    (numbers(), numbers(), numbers(), uses, 0_u8..2).prop_map(|(secrets, networks, services, uses, label)| {
        let services = services.into_iter().zip(uses);
        let services =
            services.map(|(number, (replicas, secret, network))| (number, replicas, secret, network));
        Content { secrets, networks, services: services.collect(), label }
    })
}

proptest! {
    #[test]
    fn a_cluster_becomes_that_of_the_backup_and_no_task_is_written(before in content(), wanted in content()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (store, wanted) = (store_of(&before).await, saved(&wanted));
            let first = snapshot(&store).await;
            let differs = !difference(&first, &wanted).is_empty();
            let (left, written) = carry_out(&store, &wanted).await;
            let last = snapshot(&store).await;
            let differences = difference(&last, &wanted);
            prop_assert_eq!(left.is_empty(), differences.is_empty(), "{:?} and {:?}", left, differences);
            prop_assert_eq!(differs, !written.is_empty());
            prop_assert!(!written.iter().any(|key| key.starts_with("/mesh/v1/tasks/")), "{:?}", written);
            for (id, service) in &first.services {
                let same = wanted.snapshot.services.get(id).is_some_and(|wanted| wanted.spec == service.spec);
                let revision = last.services.get(id).map(|last| last.mod_revision);
                prop_assert!(!same || revision == Some(service.mod_revision), "{} was written", id);
            }
            // A name always belongs to an object that exists.
            for ((kind, name), id) in last.names.iter().filter(|((kind, _), _)| kind == "secrets") {
                let there = last.dependencies.contains_key(&(DependencyKind::Secret, id.value.as_str().into()));
                prop_assert!(there, "{} {} names nothing", kind, name);
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn what_others_use_is_left_and_told() {
    let web = (0, 1, None, Some(1));
    let before = Content { networks: vec![1], services: vec![web], ..Content::default() };
    let wanted = saved(&Content { services: vec![(0, 1, None, None)], ..Content::default() });
    let store = store_of(&before).await;
    let mut task = fixtures::task("task0", "service0", 1);
    task.attachments = vec![mesh_state::network::Attachment {
        network_id: "network1".into(),
        address: None,
        backend_id: None,
    }];
    let op = Op::put(keys::task(&task.id), codec::encode(&task).unwrap());
    store.txn(vec![], vec![op]).await.unwrap();
    let (left, _) = carry_out(&store, &wanted).await;
    assert_eq!(left, ["network net1: network network1 is in use by task task0"], "until the update ends");
}

#[tokio::test]
async fn a_foreign_backup_gives_no_tokens_and_its_secrets_are_sealed_anew() {
    let (theirs, ours) = ([2; KEY_BYTES], [1; KEY_BYTES]);
    let (theirs, ours) = (Sealer::new(&Zeroizing::new(theirs)), Sealer::new(&Zeroizing::new(ours)));
    let mut foreign = entries(&Content { secrets: vec![1], label: 1, ..Content::default() });
    let (kind, id) = (DependencyKind::Secret, "secret1".into());
    for entry in &mut foreign {
        if keys::parse_sealed(&entry.key).is_some() {
            entry.value = crate::vault::seal(&theirs, kind, &id, b"value").unwrap();
        }
    }
    let origin = Origin {
        cluster: "other".into(),
        revision: 9,
        mesh: String::new(),
        manager: String::new(),
        now: Timestamp::default(),
    };
    let backup = Backup::new(origin, theirs.key().clone(), foreign).unwrap();
    let saved = Saved::read(&backup, &ours, &"c".into()).unwrap();
    let store = store_of(&Content::default()).await;
    let (left, written) = carry_out(&store, &saved).await;
    assert_eq!(left, [""; 0]);
    assert!(!written.contains(&keys::CLUSTER.to_owned()), "the settings are another cluster's");
    let data = crate::vault::read(&store, &ours, kind, &id).await.unwrap().unwrap();
    assert_eq!(data.as_slice(), b"value");
}

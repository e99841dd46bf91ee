//! The networks of services, on an engine in memory.

use super::*;
use crate::task::container::{Addresses, ContainerFacts};
use crate::task::networks::NetworkFacts;
use mesh_state::network::AssignedNetwork;

/// A task on the networks `app` and `back`.
fn networked(id: &str, last_byte: u8) -> Assignment {
    let network = |number: u8, name: &str| AssignedNetwork {
        id: format!("n{number}").as_str().into(),
        name: name.to_owned(),
        number: number.into(),
        subnet: format!("10.0.{number}.0/24").parse().expect("a subnet"),
        subnet6: format!("fd00:{number}::/64").parse().ok(),
        node_address: [10, 0, number, 2].into(),
        internal: false,
        mtu: None,
        address: [10, 0, number, last_byte].into(),
        aliases: Vec::new(),
    };
    Assignment { networks: vec![network(5, "app"), network(6, "back")], ..assignment(id) }
}

fn names(engine: &Engine) -> Vec<String> {
    engine
        .with(|state| state.networks.iter().map(|network| network.name.clone()).collect())
        .expect("the engine is there")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(40);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_tasks_networks_are_made_and_go_with_its_last_user() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(Engine::default());
    let left = NetworkFacts { id: "x".to_owned(), name: "left".to_owned(), ..NetworkFacts::default() };
    let of_user = NetworkFacts { id: "y".to_owned(), name: "own".to_owned(), ..NetworkFacts::default() };
    engine
        .with(|state| {
            state.networks.push(NetworkFacts { label: Some("n9".to_owned()), ..left });
            state.networks.push(of_user);
        })
        .expect("the engine is there");
    let mut bench = Bench::start(&engine, directory.path());
    bench.assign(AssignmentChange::Full(vec![networked("t1", 7), networked("t2", 8)])).await;
    bench.until("t1", TaskState::Running).await;
    let places = |task: &str| {
        let name = format!("web.1.{task}");
        let facts: ContainerFacts =
            engine.with(|state| state.containers[&name].1.clone()).expect("the engine is there");
        facts.networks.into_iter().map(|(name, place)| (name, place.wanted)).collect::<Vec<_>>()
    };
    let wanted = |v4: [u8; 4], v6: &str| Some(Addresses { v4: v4.into(), v6: v6.parse().ok() });
    assert_eq!(
        places("t1"),
        [
            ("app".to_owned(), wanted([10, 0, 5, 7], "fd00:5::a00:507")),
            ("back".to_owned(), wanted([10, 0, 6, 7], "fd00:6::a00:607")),
            ("mesh".to_owned(), None)
        ]
    );
    until("what an earlier agent left goes", || !names(&engine).contains(&"left".to_owned())).await;
    assert_eq!(engine.with(|state| state.networks_made).expect("the engine is there"), 2, "made once each");
    bench.assign(AssignmentChange::Full(vec![networked("t1", 7)])).await;
    until("t2 is gone", || !engine.with(|state| state.containers.contains_key("web.1.t2")).expect("there"))
        .await;
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(names(&engine), ["own", "app", "back"], "t1 needs them");
    engine.set_phase("web.1.t1", Phase::Exited);
    bench.assign(AssignmentChange::Delta { set: vec![networked("t1", 7)], removed: Vec::new() }).await;
    bench.until("t1", TaskState::Complete).await;
    until("they go with their last user", || names(&engine) == ["own"]).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_network_of_this_nodes_user_is_left_alone_and_the_task_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(Engine::default());
    let own = NetworkFacts { id: "y".to_owned(), name: "back".to_owned(), ..NetworkFacts::default() };
    engine.with(|state| state.networks.push(own)).expect("the engine is there");
    let mut bench = Bench::start(&engine, directory.path());
    bench.assign(AssignmentChange::Full(vec![networked("t1", 7)])).await;
    let begun = tokio::time::Instant::now();
    let rejected = bench.until("t1", TaskState::Rejected).await;
    assert!(rejected.err.contains("docker network rm y"), "{}", rejected.err);
    assert!(begun.elapsed() >= Duration::from_secs(10), "it was waited for");
    bench.end().await;
}

#[tokio::test]
async fn a_container_that_an_agent_left_between_its_steps_gets_its_networks() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(Engine::default());
    let mut bench = Bench::start(&engine, &directory.path().join("first"));
    let mut waiting = networked("t1", 7);
    waiting.task.desired_state = TaskState::Ready;
    bench.assign(AssignmentChange::Full(vec![waiting])).await;
    bench.until("t1", TaskState::Ready).await;
    bench.end().await;
    let bare = engine.with(|state| state.containers["web.1.t1"].1.networks.len());
    assert_eq!(bare.expect("the engine is there"), 1, "it is on `mesh` only");
    // Meanwhile someone has made one of the networks anew.
    engine
        .with(|state| {
            let (_, facts) = state.containers.get_mut("web.1.t1").expect("it is there");
            let place = crate::task::container::NetworkPlace {
                network: Some("an earlier one".to_owned()),
                wanted: Some(Addresses { v4: [10, 0, 5, 7].into(), v6: None }),
            };
            facts.networks.insert("app".to_owned(), place);
        })
        .expect("the engine is there");

    let mut bench = Bench::start(&engine, &directory.path().join("second"));
    bench.assign(AssignmentChange::Full(vec![networked("t1", 7)])).await;
    bench.until("t1", TaskState::Running).await;
    let networks = engine.with(|state| state.containers["web.1.t1"].1.networks.clone());
    let networks = networks.expect("the engine is there");
    assert_eq!(networks.keys().collect::<Vec<_>>(), ["app", "back", "mesh"]);
    assert_eq!(networks["app"].network, None, "the stale place was replaced");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_network_stays_while_a_container_is_on_its_way_there() {
    let engine = Arc::new(Engine::default());
    let plan = BridgePlan { subnet: None, with_ipv6: false, mtu: 1450 };
    let (_bridge, bridge) = watch::channel(plan);
    let networks = Arc::new(Networks::new(Arc::clone(&engine) as Arc<dyn Runtime>, bridge));
    networks.need(BTreeSet::new());
    let sweeper = Arc::clone(&networks);
    let sweeping = tokio::spawn(async move { sweeper.remove_unneeded().await });
    let app = networked("t1", 7).networks.swap_remove(0);
    let holds = [networks.hold(&app.id), networks.hold(&app.id)];
    networks.ensure(&app).await.expect("the network is made");
    for hold in holds {
        tokio::time::sleep(Duration::from_secs(70)).await;
        assert_eq!(names(&engine), ["app"], "somebody holds it");
        drop(hold);
    }
    until("it goes once nobody does", || names(&engine).is_empty()).await;
    sweeping.abort();
}

#[tokio::test]
async fn a_start_looks_at_each_network_once_and_counts_no_containers() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(Engine::default());
    let mut bench = Bench::start(&engine, directory.path());
    bench.assign(AssignmentChange::Full(vec![networked("t1", 7)])).await;
    bench.until("t1", TaskState::Running).await;
    let counts =
        || engine.with(|state| (state.networks_inspected, state.users_counted)).expect("the engine is there");
    let before = counts();
    bench.assign(AssignmentChange::Delta { set: vec![networked("t2", 8)], removed: Vec::new() }).await;
    bench.until("t2", TaskState::Running).await;
    let after = counts();
    assert_eq!((after.0 - before.0, after.1 - before.1), (2, 0), "two networks, looked at and counted");
    bench.end().await;
}

#[tokio::test]
async fn a_network_that_goes_while_the_container_is_created_is_made_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(Engine::default());
    engine.with(|state| state.loses_networks = true).expect("the engine is there");
    let mut bench = Bench::start(&engine, directory.path());
    bench.assign(AssignmentChange::Full(vec![networked("t1", 7)])).await;
    bench.until("t1", TaskState::Running).await;
    let (made, places) = engine
        .with(|state| (state.networks_made, state.containers["web.1.t1"].1.networks.len()))
        .expect("the engine is there");
    assert_eq!((made, places), (4, 3), "both are made twice, and the container is on them and on mesh");
    bench.end().await;
}

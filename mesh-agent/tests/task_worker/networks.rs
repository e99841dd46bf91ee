//! The networks of tasks on a real engine.

use std::time::Duration;

use futures::StreamExt;
use mesh_agent::control_link::AssignmentChange;
use mesh_agent::task::docker::DockerEngine;
use mesh_agent::task::networks::keeper;
use mesh_agent::task::runtime::Runtime as _;
use mesh_state::network::AssignedNetwork;
use mesh_state::task::{Assignment, TaskState};

use crate::engine::{self, Engine, eventually, stderr, stdout};
use crate::{Agent, assignment, set, sleeper};

/// A task on the networks of these numbers, with this last byte of its addresses.
fn on_networks(id: &str, last_byte: u8, networks: &[(u8, &str)], internal: bool) -> Assignment {
    let network = |(number, name): &(u8, &str)| AssignedNetwork {
        id: format!("n{number}").as_str().into(),
        name: (*name).to_owned(),
        number: (*number).into(),
        subnet: format!("10.0.{number}.0/24").parse().unwrap(),
        subnet6: None,
        node_address: [10, 0, *number, 2].into(),
        internal,
        mtu: (*number == 6).then_some(1400),
        address: [10, 0, *number, last_byte].into(),
        aliases: Vec::new(),
    };
    let networks = networks.iter().map(network).collect();
    Assignment { networks, ..assignment(id, &sleeper(), TaskState::Running) }
}

fn inspected(engine: &Engine, network: &str, format: &str) -> String {
    stdout(&engine.docker(&["network", "inspect", "-f", format, network]))
}

fn networks(engine: &Engine) -> Vec<String> {
    let listed =
        stdout(&engine.docker(&["network", "ls", "--filter", "driver=bridge", "--format", "{{.Name}}"]));
    let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
    names.sort_unstable();
    names
}

fn in_task(engine: &Engine, container: &str, command: &[&str]) -> String {
    let ran = engine.docker(&[&["exec", container], command].concat());
    assert!(ran.status.success(), "{command:?}: {}", stderr(&ran));
    stdout(&ran)
}

#[test]
fn a_task_has_its_addresses_on_its_networks_also_after_the_engine_restarted() {
    let Some(mut engine) = engine::start() else { return };
    let mut agent = Agent::start(&engine, engine.path("tasks"));
    let both = [(5, "app"), (6, "back")];
    agent.assign(AssignmentChange::Full(vec![on_networks("t1", 7, &both, false)]));
    agent.until("t1", TaskState::Running);
    assert_eq!(networks(&engine), ["app", "back", "mesh"]);
    let all = "{{.Internal}} {{(index .IPAM.Config 0).Subnet}} {{(index .IPAM.Config 0).Gateway}} \
        {{index .Labels \"mesh.network\"}} {{index .Options \"com.docker.network.bridge.name\"}} \
        {{index .Options \"com.docker.network.driver.mtu\"}}";
    assert_eq!(inspected(&engine, "app", all), "true 10.0.5.0/24 10.0.5.2 n5 meshn5 1450");
    assert_eq!(inspected(&engine, "back", all), "true 10.0.6.0/24 10.0.6.2 n6 meshn6 1400");
    let interfaces = in_task(&engine, "web.1.t1", &["ip", "-o", "-4", "addr"]);
    for address in ["10.128.9.2/24", "10.0.5.7/24", "10.0.6.7/24"] {
        assert!(interfaces.contains(address), "expected {address} in: {interfaces}");
    }
    let routes = in_task(&engine, "web.1.t1", &["ip", "route"]);
    assert!(routes.starts_with("default via 10.128.9.1 ") && !routes.contains("via 10.0."), "{routes}");
    let settings = "nameserver 10.128.9.1\n";
    let resolv_conf = in_task(&engine, "web.1.t1", &["cat", "/etc/resolv.conf"]);
    assert!(resolv_conf.starts_with(settings) && resolv_conf.ends_with("options ndots:0"), "{resolv_conf}");
    in_task(&engine, "web.1.t1", &["sh", "-c", "echo '# changed' >> /etc/resolv.conf"]);
    let asked = stdout(&engine.docker(&[
        "inspect",
        "-f",
        "{{.HostConfig.Dns}} {{.HostConfig.DnsOptions}}",
        "web.1.t1",
    ]));
    assert_eq!(asked, "[10.128.9.1] [timeout:5]", "whom the engine's resolver asks");
    let known: Vec<String> = agent.local_tasks().into_iter().map(|(address, _)| address).collect();
    assert_eq!(known, ["10.0.5.7", "10.0.6.7", "10.128.9.2"], "all of them are the task's");

    // The engine's end is the task's; the next one gets on the same networks.
    engine.halt();
    engine.boot();
    agent.until("t1", TaskState::Complete);
    agent.assign(AssignmentChange::Full(vec![on_networks("t2", 8, &both, false)]));
    agent.until("t2", TaskState::Running);
    let interfaces = in_task(&engine, "web.1.t2", &["ip", "-o", "-4", "addr"]);
    assert!(interfaces.contains("10.0.5.8/24") && interfaces.contains("10.0.6.8/24"), "{interfaces}");

    // Only `app` is still needed; then none.
    agent.assign(AssignmentChange::Full(vec![on_networks("t3", 9, &both[..1], false)]));
    agent.until("t3", TaskState::Running);
    eventually("`back` goes with its last user", || networks(&engine) == ["app", "mesh"]);
    agent.assign(AssignmentChange::Full(Vec::new()));
    eventually("`app` goes too", || networks(&engine) == ["mesh"]);
    agent.stop();

    // Taking mesh off the node leaves what a user made, and what containers use.
    let made = engine.docker(&["network", "create", "--subnet", "10.99.0.0/24", "own"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let used = ["network", "create", "--subnet", "10.0.7.0/24", "--label", "mesh.network=n7", "used"];
    assert!(engine.docker(&used).status.success());
    let ran = engine.docker(&["run", "-d", "--network", "used", "busybox", "sleep", "600"]);
    assert!(ran.status.success(), "{}", stderr(&ran));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(keeper::remove_all(&DockerEngine::new(engine.socket()))).unwrap();
    assert_eq!(networks(&engine), ["own", "used"]);
}

#[test]
fn what_is_in_the_way_of_a_network_is_told_and_waited_for() {
    let Some(engine) = engine::start() else { return };
    let mut agent = Agent::start(&engine, engine.path("tasks"));
    let made = engine.docker(&["network", "create", "--subnet", "10.99.0.0/24", "app"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let own = stdout(&made);
    agent.assign(AssignmentChange::Full(vec![on_networks("t1", 7, &[(5, "app")], false)]));
    let told = format!(
        "this node has a Docker network app of its own, which hides the cluster's: remove it there (docker network rm {own})"
    );
    agent.until_err("t1", &told);
    assert_eq!(inspected(&engine, "app", "{{.Id}}"), own, "a user's network is left alone");
    engine.docker(&["network", "rm", &own]);
    agent.until("t1", TaskState::Running);

    // A container of the node's user has the address of the next task: when it goes, the task runs.
    let ran = engine.docker(&[
        "run",
        "-d",
        "--network",
        "app",
        "--ip",
        "10.0.5.8",
        "--name",
        "squatter",
        "busybox",
        "sleep",
        "600",
    ]);
    assert!(ran.status.success(), "{}", stderr(&ran));
    agent.assign(set(on_networks("t2", 8, &[(5, "app")], false)));
    agent.until("t2", TaskState::Starting);
    agent.until_err(
        "t2",
        "starting container failed: Address already in use: another container of this node has an address of this task \
         (10.0.5.8 on network app); find it with docker network inspect",
    );
    engine.docker(&["rm", "-f", "squatter"]);
    agent.until("t2", TaskState::Running);

    // The name is also the beginning of another network's id, which is not that network.
    let prefix = inspected(&engine, "app", "{{.Id}}")[..3].to_owned();
    agent.assign(set(on_networks("t3", 9, &[(6, prefix.as_str())], false)));
    agent.until("t3", TaskState::Running);
    assert_eq!(inspected(&engine, &prefix, "{{.Name}}"), prefix);
    agent.stop();
}

#[test]
fn a_task_on_internal_networks_alone_has_no_way_out() {
    let Some(engine) = engine::start() else { return };
    let mut agent = Agent::start(&engine, engine.path("tasks"));
    agent.assign(AssignmentChange::Full(vec![on_networks("t1", 7, &[(5, "app"), (6, "back")], true)]));
    let running = agent.until("t1", TaskState::Running);
    assert_eq!(running.container.and_then(|container| container.address), None);
    let interfaces = in_task(&engine, "web.1.t1", &["ip", "-o", "-4", "addr"]);
    assert!(interfaces.contains("10.0.5.7/24") && interfaces.contains("10.0.6.7/24"), "{interfaces}");
    assert!(!interfaces.contains("10.128.9."), "it is on mesh: {interfaces}");
    let routes = in_task(&engine, "web.1.t1", &["ip", "route"]);
    assert!(!routes.contains("10.128."), "{routes}");
    assert_eq!(agent.links(), ["started t1 "]);
    let resolv_conf = in_task(&engine, "web.1.t1", &["cat", "/etc/resolv.conf"]);
    assert!(resolv_conf.starts_with("nameserver 10.0.5.2\n"), "{resolv_conf}");
    agent.stop();
}

#[test]
fn a_tasks_address_is_known_as_soon_as_the_engine_gives_it() {
    let Some(engine) = engine::start() else { return };
    let made = engine.docker(&["network", "create", "--subnet", "10.128.9.0/24", "mesh"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut joins = DockerEngine::new(engine.socket()).bridge_joins();
    let joined = runtime.spawn(async move { joins.next().await });
    // Events are sent from the subscription on, which takes a moment: containers are started until
    // one is seen.
    let names = (1..100).map(|number| format!("web.1.t{number}"));
    let mut started = Vec::new();
    for name in names {
        let ran =
            engine.docker(&["run", "-d", "--network", "mesh", "--name", &name, "busybox", "sleep", "600"]);
        assert!(ran.status.success(), "{}", stderr(&ran));
        started.push(name);
        if joined.is_finished() {
            break;
        }
    }
    let (task, address) = runtime.block_on(joined).unwrap().expect("the stream lives").unwrap();
    let name = format!("web.1.{task}");
    assert!(started.contains(&name), "{name} of {started:?}");
    let format = "{{.NetworkSettings.Networks.mesh.IPAddress}}";
    assert_eq!(stdout(&engine.docker(&["inspect", "-f", format, &name])), address.to_string());
}

#[test]
fn the_network_of_tasks_comes_back_whoever_prunes_it() {
    let Some(engine) = engine::start() else { return };
    let agent = Agent::start(&engine, engine.path("tasks"));
    let id = || stdout(&engine.docker(&["network", "inspect", "-f", "{{.Id}}", "mesh"]));
    eventually("the network is made", || !id().is_empty());
    let first = id();
    let pruned = std::time::Instant::now();
    assert_eq!(stdout(&engine.docker(&["network", "prune", "--force"])), "Deleted Networks:\nmesh");
    eventually("the network is made again", || !["", first.as_str()].contains(&id().as_str()));
    assert!(pruned.elapsed() < Duration::from_secs(5), "it was back after {:?}", pruned.elapsed());
    agent.stop();
}

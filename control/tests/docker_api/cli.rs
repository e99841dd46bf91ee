//! Tests with the unmodified `docker` CLI as the client.

use std::path::PathBuf;
use std::process::Output;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::cluster::{Cluster, node_id};

/// The CLI and the socket of the API.
struct Docker {
    cluster: Cluster,
    socket: PathBuf,
}

impl Docker {
    /// `None`, with a notice, where there is no CLI. In CI that is a failure.
    async fn start() -> Option<Self> {
        let found = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|directory| directory.join("docker").is_file())
        });
        if !found {
            assert!(std::env::var_os("CI").is_none(), "the docker CLI is not installed");
            println!("skipped: the docker CLI is not installed");
            return None;
        }
        let cluster = Cluster::start().await;
        let socket = cluster.serve();
        Some(Self { cluster, socket })
    }

    async fn run(&self, arguments: &str) -> Output {
        Command::new("docker")
            .args(arguments.split_whitespace())
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env_remove("DOCKER_CONTEXT")
            .output()
            .await
            .unwrap()
    }

    /// The output of a command, which must succeed.
    async fn ok(&self, arguments: &str) -> String {
        let output = self.run(arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {arguments}: {errors}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The error output of a command, which must fail.
    async fn refused(&self, arguments: &str) -> String {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "docker {arguments} was expected to fail");
        String::from_utf8_lossy(&output.stderr).trim().to_owned()
    }

    async fn inspect(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.ok(arguments).await).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_converges_and_is_shown() {
    let Some(docker) = Docker::start().await else { return };
    let output = docker.run("service create --name myweb --replicas 2 -p 80:80 nginx").await;
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{complained}");
    assert!(said.contains("Service") && said.contains("converged"), "expected convergence, saw {said}");

    let format = "{{.Name}}|{{.Mode}}|{{.Replicas}}|{{.Image}}|{{.Ports}}";
    let listed = docker.ok(&format!("service ls --format {format}")).await;
    assert_eq!(listed, "myweb|replicated|2/2|nginx:latest|*:80->80/tcp");
    let tasks = docker.ok("service ps myweb --format {{.Name}}|{{.Node}}|{{.DesiredState}}").await;
    assert_eq!(tasks, "myweb.1|node-1|Running\nmyweb.2|node-2|Running");
    let pretty = docker.ok("service inspect --pretty myweb").await;
    for line in [
        "Service Mode:\tReplicated",
        "Replicas:\t2",
        "PublishedPort = 80",
        "Parallelism:\t1",
        "Endpoint Mode:\tvip",
    ] {
        assert!(pretty.contains(line), "expected {line:?} in\n{pretty}");
    }
    let filtered = docker.ok("service ls -q --filter name=nope").await;
    assert_eq!(filtered, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_scaled_updated_rolled_back_and_removed() {
    let Some(docker) = Docker::start().await else { return };
    docker.ok("service create -d --name web --replicas 1 nginx:1.10").await;
    docker.ok("service scale -d web=3").await;
    let replicas = "service ls --format {{.Name}}={{.Replicas}}";
    docker.cluster.until("three tasks", |snapshot| snapshot.statuses.len() == 3).await;
    assert_eq!(docker.ok(replicas).await, "web=3/3");

    docker.ok("service update -d --label-add mesh.lb.policy=least-connections web").await;
    docker.ok("service update -d --image nginx:1.11 --env-add A=1 --update-delay 2s web").await;
    let spec = &docker.inspect("service inspect web").await[0]["Spec"];
    assert_eq!(spec["Labels"], json!({"mesh.lb.policy": "least-connections"}));
    assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Env"], json!(["A=1"]));
    assert_eq!(spec["UpdateConfig"]["Delay"], 2_000_000_000_i64);
    docker.ok("service rollback -d web").await;
    let spec = &docker.inspect("service inspect web").await[0]["Spec"];
    assert!(
        spec["TaskTemplate"]["ContainerSpec"]["Image"]
            .as_str()
            .is_some_and(|image| image.starts_with("nginx:1.10")),
        "expected the image before, saw {spec}"
    );
    docker.ok("service rm web").await;
    assert_eq!(docker.ok("service ls -q").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_and_udp_share_a_number() {
    let Some(docker) = Docker::start().await else { return };
    docker.ok("service create -d --name dns -p 53:5353/udp -p 53:5353/tcp nginx").await;
    let ports = docker.ok("service ls --format {{.Ports}}").await;
    assert_eq!(ports, "*:53->5353/tcp, *:53->5353/udp");
    let refused = docker.refused("service create -d --name other -p 53:53/udp nginx").await;
    assert!(refused.contains("port '53' is already in use by service 'dns'"), "saw {refused}");
    docker.ok("service update -d --publish-rm 5353/udp dns").await;
    docker.ok("service create -d --name other -p 53:53/udp nginx").await;
    assert_eq!(docker.ok("service ls --filter name=dns --format {{.Ports}}").await, "*:53->5353/tcp");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_ports_are_shown_with_each_task_and_exclude_ingress_ports() {
    let Some(docker) = Docker::start().await else { return };
    let publish = "--publish mode=host,published=8080,target=80";
    docker.ok(&format!("service create -d --name web --replicas 2 {publish} nginx")).await;
    docker.cluster.until("two tasks", |snapshot| snapshot.statuses.len() == 2).await;
    let shown = docker.ok("service ps web --format {{.Node}}|{{.Ports}}").await;
    assert_eq!(shown, "node-1|*:8080->80/tcp\nnode-2|*:8080->80/tcp");
    let ports = &docker.inspect("service inspect web").await[0]["Endpoint"]["Ports"];
    assert_eq!((&ports[0]["PublishMode"], &ports[0]["PublishedPort"]), (&json!("host"), &json!(8080)));
    let refused = docker.refused("service create -d --name other -p 8080:80 nginx").await;
    assert!(refused.contains("as a host-published port"), "saw {refused}");
    docker.ok(&format!("service create -d --name beside --replicas 1 {publish} nginx")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_global_service_runs_everywhere() {
    let Some(docker) = Docker::start().await else { return };
    docker.ok("service create -d --mode global --name everywhere nginx").await;
    docker.cluster.until("three tasks", |snapshot| snapshot.statuses.len() == 3).await;
    assert_eq!(docker.ok("service ls --format {{.Mode}}|{{.Replicas}}").await, "global|3/3");
    let mut tasks: Vec<_> = docker
        .ok("service ps everywhere --no-trunc --format {{.Name}}|{{.Node}}")
        .await
        .lines()
        .map(str::to_owned)
        .collect();
    tasks.sort();
    let expected: Vec<_> =
        (1..=3).map(|number| format!("everywhere.{}|node-{number}", node_id(number))).collect();
    assert_eq!(tasks, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_listed_inspected_and_updated() {
    let Some(docker) = Docker::start().await else { return };
    let format =
        "{{.Hostname}}|{{.Self}}|{{.Status}}|{{.Availability}}|{{.ManagerStatus}}|{{.EngineVersion}}";
    let listed = docker.ok(&format!("node ls --format {format}")).await;
    assert_eq!(
        listed,
        "node-1|true|Ready|Active|Leader|20.10.24\nnode-2|false|Ready|Active||20.10.24\nnode-3|false|Ready|Active||20.10.24"
    );
    docker.ok("node update --availability drain --label-add zone=a node-2").await;
    let node = &docker.inspect("node inspect node-2").await[0];
    assert_eq!(node["Spec"]["Availability"], "drain");
    assert_eq!(node["Spec"]["Labels"], json!({"zone": "a"}));
    let pretty = docker.ok("node inspect self --pretty").await;
    for line in ["Hostname:", "node-1", "Leader:", "Yes", "Address:", "10.77.0.11"] {
        assert!(pretty.contains(line), "expected {line:?} in\n{pretty}");
    }
    docker.ok("service create -d --name web --replicas 3 nginx").await;
    docker.cluster.until("three tasks", |snapshot| snapshot.statuses.len() == 3).await;
    assert_eq!(docker.ok("node ps node-3 --format {{.Name}}").await, "web.3");
    let token = docker.ok("swarm join-token -q worker").await;
    assert!(token.starts_with("SWMTKN-1-"), "expected a token, saw {token}");
    let info = docker
        .ok("info --format {{.Swarm.LocalNodeState}}|{{.Swarm.ControlAvailable}}|{{.Swarm.Nodes}}")
        .await;
    assert_eq!(info, "active|true|3");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_configs_are_kept_shown_and_used() {
    let Some(docker) = Docker::start().await else { return };
    let value = docker.socket.with_extension("value");
    std::fs::write(&value, "s3cr3t").unwrap();
    let file = value.display();
    for kind in ["secret", "config"] {
        let id = docker.ok(&format!("{kind} create --label a=b old {file}")).await;
        docker.ok(&format!("{kind} create new {file}")).await;
        assert_eq!(docker.ok(&format!("{kind} ls -q --filter name=old")).await, id);
        assert_eq!(docker.ok(&format!("{kind} ls --format {{{{.Name}}}} --filter label=a")).await, "old");
        let shown = &docker.inspect(&format!("{kind} inspect old")).await[0]["Spec"];
        let expected = if kind == "config" {
            json!({"Name": "old", "Labels": {"a": "b"}, "Data": "czNjcjN0"})
        } else {
            json!({"Name": "old", "Labels": {"a": "b"}})
        };
        assert_eq!(shown, &expected);
        let pretty = docker.ok(&format!("{kind} inspect --pretty old")).await;
        assert!(pretty.contains("Name:") && pretty.contains("- a=b"), "saw {pretty}");
        assert_eq!(pretty.contains("s3cr3t"), kind == "config", "saw {pretty}");
        let again = docker.refused(&format!("{kind} create old {file}")).await;
        assert!(again.contains(&format!("{kind} old already exists")), "saw {again}");
    }
    docker
        .ok("service create -d --name web --secret old --secret source=old,target=/etc/b,uid=7,mode=0400 --config source=old,target=/c nginx")
        .await;
    docker
        .ok("service update -d --secret-rm old --secret-add new --config-rm old --config-add new web")
        .await;
    let container = &docker.inspect("service inspect web").await[0]["Spec"]["TaskTemplate"]["ContainerSpec"];
    let files: Vec<_> = ["Secrets", "Configs"].map(|kind| container[kind][0]["File"].clone()).into();
    let plain = json!({"Name": "new", "UID": "0", "GID": "0", "Mode": 0o444});
    assert_eq!(files, [plain.clone(), plain]);
    let used = docker.refused("secret rm new").await;
    assert!(used.contains("secret 'new' is in use by the following service: web"), "saw {used}");
    docker.ok("secret rm old").await;
    let gone = docker.refused("service rollback -d web").await;
    assert!(gone.contains("secret not found: old"), "saw {gone}");
    let driver = docker.refused(&format!("config create --template-driver jinja t {file}")).await;
    assert!(driver.contains("unrecognized template driver"), "saw {driver}");
    docker.ok(&format!("config create --template-driver golang t {file}")).await;
    let templating = docker.inspect("config inspect t").await[0]["Spec"]["Templating"].clone();
    assert_eq!(templating, json!({"Name": "golang"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_shown_with_their_reason() {
    let Some(docker) = Docker::start().await else { return };
    let id = docker.ok("service create -d --name web -p 80:80 nginx").await;
    let id = id.lines().next().unwrap();
    for (command, expected) in [
        ("service create -d --name web nginx", "service web already exists"),
        (
            "service create -d --name other -p 80:80 nginx",
            &format!("port '80' is already in use by service 'web' ({id}) as an ingress port"),
        ),
        (
            "service update -d --label-add mesh.lb.policy=fastest web",
            "must be one of round-robin, random, least-connections, least-load, source-hash",
        ),
        ("service create -d --label mesh.lb.polcy=random nginx", "unknown label mesh.lb.polcy"),
        (
            "service create -d --label mesh.lb.allow=10.0.0.1/8 nginx",
            "10.0.0.1/8 has host bits set: the network is 10.0.0.0/8",
        ),
        (
            "service create -d --label mesh.lb.mode=proxy -p 53:53/udp nginx",
            "invalid label mesh.lb.mode=proxy: port 53/udp can't be proxied",
        ),
        ("node update --label-add mesh.lb.policy=random node-2", "a node has mesh.lb.weight only"),
        ("node update --label-add mesh.lb.weight=0 node-2", "must be a whole number from 1 to 1000"),
        ("service create -d --name Bad.Name nginx", "name must be valid as a DNS name component"),
        (
            "service create -d --constraint node.role=worker nginx",
            "constraint expected one operator from ==, !=",
        ),
        ("service create -d -p 1/sctp nginx", "can't be published: mesh carries tcp and udp"),
        ("service create -d --endpoint-mode dnsrr -p 81:81 nginx", "can't be used with dnsrr mode"),
        ("service create -d --limit-memory 1k nginx", "Must be at least 4MiB"),
        (
            "service create -d --mode replicated-job --update-delay 1s nginx",
            "update and rollback configuration is not supported for jobs",
        ),
        ("service create -d --network web nginx", "network web not found"),
        ("service inspect nope", "no such service: nope"),
        ("service ps nope", "no such service: nope"),
        ("service rollback -d web", "does not have a previous spec"),
        ("service logs nope", "no such task or service: nope"),
        ("service logs --tail x web", "tail value must be a positive integer or"),
        ("service logs web", "is not available"),
        ("service ls --filter foo=bar", "Invalid filter 'foo'"),
        ("node rm node-2", "is not down and can't be removed"),
        ("node demote node-1", "attempting to demote the last manager of the swarm"),
        ("node rm --force node-1", "must be demoted to worker before removal"),
        ("swarm init", "This node is already part of a swarm."),
        ("swarm leave", "You are attempting to leave the swarm"),
        ("swarm unlock-key", "no unlock key is set"),
        ("swarm unlock-key --rotate", "cannot rotate because autolock is not turned on"),
        ("secret inspect x", "secret x not found"),
    ] {
        let seen = docker.refused(command).await;
        assert!(seen.contains(expected), "docker {command}: expected {expected:?}, saw {seen:?}");
    }
    assert_eq!(docker.ok("service ls --format {{.Name}}").await, "web", "a refused command left something");
    assert_eq!(docker.ok("secret ls -q").await, "");
    assert_eq!(docker.ok("config ls -q").await, "");
    assert_eq!(docker.ok("stack ls --format {{.Name}}").await, "");
}

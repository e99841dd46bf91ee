//! Tests that every flag of `docker service create` reaches the task's container, and so does every
//! change of one.
#![cfg(feature = "cluster")]

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::{Cluster, Docker, eventually};
use mesh_tests::resolver::{ANSWER, Resolver};
use mesh_tests::{PATIENCE, Service, cluster};
use serde_json::{Value, json};

/// The resolver that `--dns` names below.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

const FLAGS: &[&str] = &[
    "--env=A=b",
    "--env=SLOT={{.Task.Slot}} on {{.Node.Hostname}}",
    "--workdir=/tmp",
    "--user=65534:65534",
    "--group=10",
    "--hostname=h-{{.Task.Slot}}",
    // In the order in which the CLI sorts mounts at every update.
    "--mount=type=tmpfs,target=/scratch,tmpfs-size=1048576,tmpfs-mode=0770",
    "--mount=type=bind,source=/etc,target=/host,readonly,bind-propagation=rprivate",
    "--mount=type=volume,source=flags-{{.Task.Slot}},target=/vol,volume-label=a=b,volume-driver=local,\
     volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-nocopy=true",
    "--label=service=1",
    "--container-label=container=2",
    "--limit-cpu=0.5",
    "--limit-memory=64m",
    "--limit-pids=50",
    "--reserve-cpu=0.1",
    "--reserve-memory=16m",
    "--generic-resource=mesh-test=1",
    "--ulimit=nofile=512:1024",
    "--cap-add=NET_ADMIN",
    "--cap-drop=CHOWN",
    "--sysctl=net.core.somaxconn=100",
    "--init",
    "--read-only",
    "--tty",
    "--stop-signal=SIGUSR1",
    "--stop-grace-period=3s",
    "--health-cmd=true",
    "--health-interval=1s",
    "--health-timeout=5s",
    "--health-retries=7",
    "--health-start-period=9s",
    "--dns=192.0.2.53",
    "--dns-search=example.com",
    "--dns-option=ndots:2",
    "--host=db:192.0.2.9",
    "--isolation=default",
    "--log-driver=json-file",
    "--log-opt=max-size=1m",
    "--restart-condition=on-failure",
    "--restart-delay=1s",
    "--restart-max-attempts=2",
    "--restart-window=1m",
    "--constraint=node.platform.os==linux",
    "--placement-pref=spread=node.labels.zone",
    "--replicas-max-per-node=1",
    "--endpoint-mode=vip",
    "--publish=8101:80",
    "--publish=published=8102,target=81,protocol=udp",
    "--publish=published=8103,target=82,mode=host",
    "--publish=83",
    "--update-delay=1s",
    "--rollback-order=start-first",
    "--entrypoint=sh",
    "busybox",
    "-c",
    "sleep 600",
];

#[test]
fn every_flag_reaches_the_container() -> Result<()> {
    let cluster = cluster()?;
    let service = Service::create(&cluster, "flags", FLAGS)?;
    let (node, seen) = container(&cluster, service.name())?;
    let config = json!({
        "Hostname": "h-1", "User": "65534:65534", "WorkingDir": "/tmp", "Tty": true, "StopSignal": "SIGUSR1",
        "StopTimeout": 3, "Entrypoint": ["sh"], "Cmd": ["-c", "sleep 600"], "Image": "busybox:latest",
        "Labels": {"container": "2", "com.docker.swarm.service.name": "flags"},
        "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 1_000_000_000, "Timeout": 5_000_000_000_u64,
                        "StartPeriod": 9_000_000_000_u64, "Retries": 7},
    });
    holds("Config", &config, &seen["Config"])?;
    let env: Vec<&str> =
        seen["Config"]["Env"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for wanted in ["A=b", &format!("SLOT=1 on {node}"), "DOCKER_RESOURCE_MESH-TEST=1"] {
        ensure!(env.contains(&wanted), "expected {wanted} in {env:?}");
    }
    let host = json!({
        "NanoCpus": 500_000_000, "Memory": 64 << 20, "PidsLimit": 50, "MemoryReservation": 16 << 20,
        "Ulimits": [{"Name": "nofile", "Soft": 512, "Hard": 1024}],
        "CapAdd": ["CAP_NET_ADMIN"], "CapDrop": ["CAP_CHOWN"], "Sysctls": {"net.core.somaxconn": "100"},
        "Init": true, "ReadonlyRootfs": true, "GroupAdd": ["10"],
        "Dns": ["192.0.2.53"], "DnsSearch": ["example.com"], "DnsOptions": ["ndots:2"], "ExtraHosts": ["db:192.0.2.9"],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
        "RestartPolicy": {"Name": "no"},
        "PortBindings": {"82/tcp": [{"HostPort": "8103"}]},
        "Mounts": [
            {"Type": "tmpfs", "Target": "/scratch", "TmpfsOptions": {"SizeBytes": 1_048_576, "Mode": 0o770}},
            {"Type": "bind", "Source": "/etc", "Target": "/host", "ReadOnly": true, "BindOptions": {"Propagation": "rprivate"}},
            {"Type": "volume", "Source": "flags-1", "Target": "/vol", "VolumeOptions": {"NoCopy": true, "Labels": {"a": "b"},
             "DriverConfig": {"Name": "local", "Options": {"type": "tmpfs", "device": "tmpfs"}}}},
        ],
    });
    holds("HostConfig", &host, &seen["HostConfig"])?;
    let ports = cluster.docker()?.run(&[
        "service",
        "inspect",
        "--format",
        "{{json .Endpoint.Ports}}",
        service.name(),
    ])?;
    let ports: Vec<Value> = serde_json::from_str(&ports).with_context(|| format!("the ports: {ports}"))?;
    let automatic =
        ports.iter().find(|port| port["TargetPort"] == 83).and_then(|port| port["PublishedPort"].as_u64());
    ensure!(automatic.is_some_and(|port| port >= 30_000), "expected a port from 30000 for 83, saw {ports:?}");

    questions_reach_the_given_resolver(&cluster, &node, &seen)?;
    unread_flags_restart_nothing(&cluster, service.name())?;
    flags_are_taken_back(&cluster, service.name())
}

/// The service is on no network, so its `resolv.conf` names the resolver of `--dns`, with the given
/// domains and options, and questions reach it.
fn questions_reach_the_given_resolver(cluster: &Cluster, node: &str, container: &Value) -> Result<()> {
    let client = cluster.client();
    client.ip(&["address", "add", &format!("{RESOLVER}/32"), "dev", "lo"])?;
    let asked = Resolver::start(&client, RESOLVER).and_then(|resolver| {
        let docker = Docker::towards(&cluster.node(node)?.mesh_host);
        let container = container["Id"].as_str().context("the container has no id")?;
        let settings = docker.run(&["exec", container, "cat", "/etc/resolv.conf"])?;
        ensure!(
            settings.contains("search example.com") && settings.contains("options ndots:2"),
            "resolv.conf: {settings}"
        );
        let said = docker.run(&["exec", container, "nslookup", "asked"])?;
        ensure!(said.contains(&ANSWER.to_string()), "nslookup said: {said}");
        Ok(resolver.asked())
    });
    client.ip(&["address", "delete", &format!("{RESOLVER}/32"), "dev", "lo"])?;
    let asked = asked?;
    ensure!(asked.iter().any(|name| name == "asked.example.com"), "the resolver was asked for {asked:?}");
    Ok(())
}

/// Settings that don't affect the container restart nothing, and the spec comes back as it was.
fn unread_flags_restart_nothing(cluster: &Cluster, service: &str) -> Result<()> {
    let docker = cluster.docker()?;
    let spec = |docker: &Docker| docker.run(&["service", "inspect", "--format", "{{json .Spec}}", service]);
    let (before, task) = (spec(&docker)?, docker.run(&["service", "ps", "-q", service])?);
    docker.run(&["service", "update", "--quiet", "--label-add", "more=1", service])?;
    docker.run(&["service", "update", "--quiet", "--label-rm", "more", service])?;
    let after = spec(&docker)?;
    ensure!(after == before, "expected the spec to come back as\n{before}, saw\n{after}");
    ensure!(docker.run(&["service", "ps", "-q", service])? == task, "a label restarted the task");
    Ok(())
}

fn flags_are_taken_back(cluster: &Cluster, service: &str) -> Result<()> {
    cluster.docker()?.run(&[
        "service",
        "update",
        "--quiet",
        "--env-rm=A",
        "--env-add=B=c",
        "--mount-rm=/scratch",
        "--host-rm=db:192.0.2.9",
        "--dns-rm=192.0.2.53",
        "--dns-search-rm=example.com",
        "--dns-option-rm=ndots:2",
        "--group-rm=10",
        "--container-label-rm=container",
        "--ulimit-rm=nofile",
        "--sysctl-rm=net.core.somaxconn",
        "--publish-rm=target=82,published=8103,mode=host",
        "--generic-resource-rm=mesh-test",
        "--no-healthcheck",
        "--init=false",
        "--read-only=false",
        "--limit-pids=0",
        "--cap-add=CHOWN",
        "--args=-c 'sleep 500'",
        service,
    ])?;
    let (_, seen) = container(cluster, service)?;
    let config =
        json!({"Healthcheck": {"Test": ["NONE"]}, "Cmd": ["-c", "sleep 500"], "Labels": {"container": null}});
    holds("Config", &config, &seen["Config"])?;
    let host = json!({
        "DnsSearch": null, "DnsOptions": ["timeout:5"], "ExtraHosts": null, "GroupAdd": null, "Init": false, "ReadonlyRootfs": false,
        "PidsLimit": null, "PortBindings": null, "CapAdd": ["CAP_NET_ADMIN"], "CapDrop": null, "Sysctls": null,
    });
    holds("HostConfig", &host, &seen["HostConfig"])?;
    let servers = &seen["HostConfig"]["Dns"];
    ensure!(
        servers.as_array().is_some_and(|servers| servers.len() == 1) && servers[0] != "192.0.2.53",
        "expected the node's own name server alone, saw {servers}"
    );
    let mounts = seen["HostConfig"]["Mounts"].as_array().map(Vec::len);
    ensure!(mounts == Some(2), "expected two mounts, saw {}", seen["HostConfig"]["Mounts"]);
    let env = seen["Config"]["Env"].to_string();
    ensure!(
        env.contains("B=c") && !env.contains("A=b") && !env.contains("DOCKER_RESOURCE"),
        "the environment: {env}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_served_is_refused_or_shown() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    for (flag, said) in [
        ("--isolation=hyperv", "isolation"),
        ("--credential-spec=file://x", "credential specs are not supported by mesh"),
    ] {
        let refusal = docker.refused(&["service", "create", "--detach", flag, "busybox"])?;
        ensure!(refusal.message.contains(said), "{flag}: expected {said}, saw {}", refusal.message);
    }
    let service = Service::create(
        &cluster,
        "greedy",
        &["--detach", "--generic-resource=mesh-test=3", "busybox", "sleep", "600"],
    )?;
    eventually("a task that says what is missing", PATIENCE, || {
        let rows = docker.tasks(service.name())?;
        let missing = "no suitable node (insufficient resources on 3 nodes)";
        ensure!(rows.iter().any(|row| row.error.contains(missing)), "tasks: {rows:#?}");
        Ok(())
    })?;
    docker.run(&["service", "update", "--quiet", "--generic-resource-rm=mesh-test", service.name()]).map(drop)
}

#[test]
fn a_host_port_of_the_engines_choice_is_shown_and_answers() -> Result<()> {
    let cluster = cluster()?;
    let arguments = ["--constraint=node.hostname==node-2", "--publish=target=80,mode=host", "nginx"];
    let service = Service::create(&cluster, "chosen", &arguments)?;
    let shown = cluster.docker()?.run(&["service", "ps", "--format", "{{.Ports}}", service.name()])?;
    let port = shown.trim().strip_prefix("*:").and_then(|rest| rest.strip_suffix("->80/tcp"));
    let port: u16 =
        port.with_context(|| format!("`docker service ps` shows the ports {shown:?}"))?.parse()?;
    let server = SocketAddrV4::new(cluster.node("node-2")?.ip, port);
    let page = eventually("the page", PATIENCE, || cluster.ask(server, "/"))?;
    ensure!(page.contains("nginx"), "{server} showed {page}");
    Ok(())
}

/// The node that runs the service's only task, and its engine's description of the container.
fn container(cluster: &Cluster, service: &str) -> Result<(String, Value)> {
    let (node, id) = cluster
        .containers(service)?
        .into_iter()
        .find_map(|(node, tasks)| tasks.into_iter().next().map(|(id, _)| (node, id)))
        .context("no container runs")?;
    let said =
        Docker::towards(&cluster.node(&node)?.mesh_host).run(&["inspect", "--format", "{{json .}}", &id])?;
    let said = serde_json::from_str(&said).with_context(|| format!("docker inspect said {said}"))?;
    Ok((node, said))
}

/// Checks that `seen` has everything in `wanted`. Lists must be equal; null stands for an absent or
/// empty value.
fn holds(path: &str, wanted: &Value, seen: &Value) -> Result<()> {
    match (wanted, seen) {
        (Value::Object(fields), Value::Object(_)) => {
            fields.iter().try_for_each(|(key, wanted)| holds(&format!("{path}.{key}"), wanted, &seen[key]))
        }
        (Value::Array(items), Value::Array(found)) if items.len() == found.len() => {
            items.iter().zip(found).try_for_each(|(wanted, seen)| holds(path, wanted, seen))
        }
        (Value::Null, Value::Array(items)) if items.is_empty() => Ok(()),
        (Value::Null, Value::Object(fields)) if fields.is_empty() => Ok(()),
        _ => {
            ensure!(wanted == seen, "{path}: expected {wanted}, saw {seen}");
            Ok(())
        }
    }
}

//! IPv6 on a network: tasks of two nodes reach each other, and a stranger reaches nobody.

use std::net::{Ipv6Addr, SocketAddrV6, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mesh_lab::cluster::Docker;
use mesh_tests::{PATIENCE, Service, cluster};
use serde_json::Value;

use crate::dns::{NOERROR, Question};
use crate::shop::Network;
use crate::task::{self, Task};

const HTTP: u16 = 80;
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

#[test]
fn tasks_have_ipv6_addresses_on_a_network_with_ipv6() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        return Ok(());
    }
    let docker = cluster.docker()?;
    let (six, other) = (
        Network::create(&cluster, "six", &["--ipv6"])?,
        Network::create(&cluster, "six-other", &["--ipv6"])?,
    );
    let subnet6 = subnet6(&docker, six.name())?;
    let create = |name, node: &str, network: &Network| {
        let here = format!("--constraint=node.hostname=={node}");
        Service::create(&cluster, name, &["--detach", &here, "--network", network.name(), "whoami"])
    };
    let server = create("six-server", "node-2", &six)?;
    let client = create("six-client", "node-3", &six)?;
    let stranger = create("six-stranger", "node-2", &other)?;
    let only = |service: &Service, node: &str| -> Result<Task> {
        cluster.wait_running(service.name(), 1, PATIENCE)?;
        let task = task::of_service(&cluster, service.name())?.remove(node);
        task.with_context(|| format!("no task of {} on {node}", service.name()))
    };
    let (server, client, stranger) =
        (only(&server, "node-2")?, only(&client, "node-3")?, only(&stranger, "node-2")?);
    let address_of = |task: &Task, network: &Network| -> Result<Ipv6Addr> {
        let engine = Docker::towards(&cluster.node(&task.node)?.docker_host);
        let shown =
            engine.run(&["inspect", "--format", "{{json .NetworkSettings.Networks}}", &task.container])?;
        let networks: Value = serde_json::from_str(&shown).context("understand the networks")?;
        let address = networks[network.name()]["GlobalIPv6Address"].as_str().context("no IPv6 address")?;
        address.parse().with_context(|| format!("an IPv6 address in {networks}"))
    };
    let (to, from) = (address_of(&server, &six)?, address_of(&client, &six)?);
    ensure!(to.segments()[..4] == subnet6.segments()[..4], "{to} is not in {subnet6}/64");
    let shown = docker.run(&["inspect", "--format", "{{json .NetworksAttachments}}", task_id(&server)?])?;
    let attachments: Value = serde_json::from_str(&shown).context("understand the attachments")?;
    let [v4, v6] = attachments[0]["Addresses"].as_array().map_or(&[][..], Vec::as_slice) else {
        return Err(anyhow!("expected an address of each version, saw {attachments}"));
    };
    ensure!(
        *v6 == format!("{to}/64") && v4.as_str().is_some_and(|v4| v4.starts_with("10.")),
        "{attachments}"
    );
    for (task, other) in [(&client, to), (&server, from)] {
        ensure!(pings(task, other)?, "{} gets no echo of {other}", task.name);
        ensure!(connects(task, other)?, "{} can't connect to {other}", task.name);
    }
    let reply = client.ask(Question::Aaaa("tasks.six-server"))?;
    ensure!(reply.code == NOERROR && reply.records == 1, "AAAA of the tasks: {reply:?}");
    let reply = client.ask(Question::Aaaa("six-server"))?;
    ensure!(reply.code == NOERROR && reply.records == 0, "AAAA of the virtual IP: {reply:?}");
    for address in [to, from] {
        ensure!(!pings(&stranger, address)?, "a stranger gets an echo of {address}");
        ensure!(!connects(&stranger, address)?, "a stranger connects to {address}");
    }
    Ok(())
}

/// The network's IPv6 subnet, which the cluster chose.
fn subnet6(docker: &Docker, network: &str) -> Result<Ipv6Addr> {
    let shown = docker.run(&["network", "inspect", "--format", "{{json .}}", network])?;
    let shown: Value = serde_json::from_str(&shown).context("understand the network")?;
    ensure!(shown["EnableIPv6"] == true, "no IPv6: {shown}");
    let subnet = shown["IPAM"]["Config"][1]["Subnet"].as_str().context("one subnet only")?;
    let subnet = subnet.strip_suffix("/64").with_context(|| format!("{subnet} is no /64"))?;
    subnet.parse().with_context(|| format!("{subnet} is no IPv6 subnet"))
}

fn task_id(task: &Task) -> Result<&str> {
    task.name.rsplit('.').next().context("a task's name ends with its id")
}

fn pings(from: &Task, to: Ipv6Addr) -> Result<bool> {
    from.inside(|| {
        let status = Command::new("busybox")
            .args(["ping", "-6", "-c", "1", "-W", "1", &to.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("start ping")?;
        Ok(status.success())
    })
}

fn connects(from: &Task, to: Ipv6Addr) -> Result<bool> {
    from.inside(|| {
        let server = SocketAddrV6::new(to, HTTP, 0, 0);
        Ok(TcpStream::connect_timeout(&server.into(), ANSWER_WITHIN).is_ok())
    })
}

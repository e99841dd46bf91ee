//! Tests of networks as objects, of stacks from a compose file, and of tasks that share no network
//! and can't reach each other.
#![cfg(feature = "cluster")]

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::{Docker, eventually};
use mesh_tests::{PATIENCE, Service, cluster};
use serde_json::Value;

const COMPOSE: &str = r#"
version: "3.8"
services:
  web:
    image: nginx
    deploy: {replicas: 2, labels: {tier: front}}
    networks: {front: {}, back: {aliases: [www]}}
  db:
    image: nginx:1.10
    networks: [back]
networks:
  front: {}
  back: {driver: overlay, labels: {of: test}}
"#;

/// A stack that is removed when the test ends.
struct Stack<'a> {
    docker: &'a Docker,
    name: &'static str,
}

impl<'a> Stack<'a> {
    fn deploy(docker: &'a Docker, name: &'static str, compose: &str) -> Result<Self> {
        let stack = Self { docker, name };
        let arguments = ["stack", "deploy", "--detach", "--resolve-image", "never", "-c", "-", name];
        let mut deploying = docker
            .command(&arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start docker stack deploy")?;
        deploying.stdin.take().context("no stdin")?.write_all(compose.as_bytes())?;
        let output = deploying.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "docker stack deploy failed: {said}");
        Ok(stack)
    }
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.docker.run(&["stack", "rm", self.name]) {
            eprintln!("can't remove stack {}: {error:#}", self.name);
        }
    }
}

#[test]
fn a_stack_comes_and_goes_with_its_networks() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let stack = Stack::deploy(&docker, "shop", COMPOSE)?;
    cluster.wait_running("shop_web", 2, PATIENCE)?;
    cluster.wait_running("shop_db", 1, PATIENCE)?;
    let listed =
        docker.run(&["stack", "services", "shop", "--format", "{{.Name}} {{.Replicas}} {{.Image}}"])?;
    ensure!(listed == "shop_db 1/1 nginx:1.10\nshop_web 2/2 nginx:latest\n", "stack services: {listed}");
    ensure!(networks(&docker)? == ["shop_back", "shop_front"], "networks: {:?}", networks(&docker)?);

    let attached = attachments(&docker, "shop_web.1")?;
    for network in ["shop_back", "shop_front"] {
        ensure!(attached.contains(&network.to_owned()), "shop_web.1 is attached to {attached:?}");
    }
    let refusal = docker.refused(&["network", "rm", "shop_back"])?;
    ensure!(refusal.message.contains("is in use by"), "said: {}", refusal.message);

    // The same file again changes nothing.
    let ids = || docker.run(&["stack", "ps", "shop", "-q", "--no-trunc"]);
    let before = ids()?;
    std::mem::forget(Stack::deploy(&docker, "shop", COMPOSE)?);
    ensure!(ids()? == before, "deploying the same file again made other tasks");

    drop(stack);
    eventually("nothing left of the stack", PATIENCE, || {
        let left = docker.run(&["stack", "ls", "--format", "{{.Name}}"])?;
        ensure!(left.is_empty() && networks(&docker)?.is_empty(), "left: {left}, {:?}", networks(&docker)?);
        Ok(())
    })
}

/// Every task requests the pages of those on other nodes, by their addresses on `mesh`.
#[test]
fn tasks_that_share_no_network_dont_reach_each_other() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        eprintln!("not run: the userspace data path has no tunnel between tasks");
        return Ok(());
    }
    let service = Service::create(&cluster, "peers", &["--mode", "global", "--publish", "8099:80", "nginx"])?;
    let docker = cluster.docker()?;
    let addresses = addresses(&docker, service.name())?;
    ensure!(addresses.len() == cluster.record.nodes.len(), "a task on each node, saw {addresses:?}");
    for (node, containers) in cluster.containers(service.name())? {
        let engine = Docker::towards(&cluster.node(&node)?.mesh_host);
        for (container, _) in containers {
            let own: Vec<&IpAddr> =
                addresses.iter().filter(|address| is_of(&engine, &container, address)).collect();
            ensure!(own.len() == 1, "{container} has the addresses {own:?}");
            for address in &addresses {
                // The image's wget, which is static, can't look an address up beside the server's
                // own libraries.
                let request = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 1 {address} 80 || true");
                let page = engine.run(&["exec", &container, "sh", "-c", &request])?;
                let is_reached = page.contains("Welcome to nginx");
                ensure!(
                    is_reached == own.contains(&address),
                    "{address}, asked from {node}, answered: {page}"
                );
            }
        }
    }
    Ok(())
}

/// Whether the container has this address.
fn is_of(engine: &Docker, container: &str, address: &IpAddr) -> bool {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
    let shown = engine.run(&["inspect", "--format", format, container]).unwrap_or_default();
    shown.split_whitespace().any(|shown| shown == address.to_string())
}

/// A packet in the tunnel from an outsider reaches no task.
#[test]
fn a_stranger_reaches_no_task_through_the_tunnel() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        return Ok(());
    }
    let service = Service::create(&cluster, "shy", &["-p", "8194:80", "nginx"])?;
    let docker = cluster.docker()?;
    let address = *addresses(&docker, service.name())?.first().context("the task has no address")?;
    let rows = docker.tasks(service.name())?;
    let node = cluster.node(&rows.first().context("no task")?.node)?;
    let reached = Command::new("ip")
        .args(["netns", "exec", &cluster.record.client.netns, "sh", "-c", &intrude(node.ip, address)])
        .output()
        .context("intrude from the client's namespace")?;
    let said = String::from_utf8_lossy(&reached.stdout);
    ensure!(said.trim_end().ends_with("unanswered"), "the stranger saw: {said}");
    Ok(())
}

/// A VXLAN device with the VNI of packets between tasks, a route through it, a ping, and all taken
/// away again.
fn intrude(node: std::net::Ipv4Addr, task: IpAddr) -> String {
    format!(
        "ip link add intruder type vxlan external dstport 4799 && ip link set intruder arp off up && \
         ip route add {task}/32 encap ip id 2097152 dst {node} dev intruder && \
         if busybox ping -c 2 -W 1 {task} > /dev/null; then echo answered; else echo unanswered; fi; \
         ip link delete intruder"
    )
}

fn networks(docker: &Docker) -> Result<Vec<String>> {
    let listed = docker.run(&["network", "ls", "--filter", "name=shop_", "--format", "{{.Name}}"])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// The networks that a task is attached to.
fn attachments(docker: &Docker, task: &str) -> Result<Vec<String>> {
    let name = format!("name={task}");
    let service = task.split_once('.').map_or(task, |(service, _)| service);
    let id = docker.run(&["service", "ps", "-q", "--no-trunc", "--filter", &name, service])?;
    let inspected: Value = serde_json::from_str(&docker.run(&[
        "inspect",
        "--format",
        "{{json .NetworksAttachments}}",
        id.trim(),
    ])?)?;
    let names =
        inspected.as_array().into_iter().flatten().filter_map(|a| a["Network"]["Spec"]["Name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// The addresses of a service's running tasks.
fn addresses(docker: &Docker, service: &str) -> Result<Vec<IpAddr>> {
    let ids =
        docker.run(&["service", "ps", "-q", "--no-trunc", "--filter", "desired-state=running", service])?;
    let format = "{{range .NetworksAttachments}}{{range .Addresses}}{{.}} {{end}}{{end}}";
    let mut found = Vec::new();
    for id in ids.lines() {
        let inspected = docker.run(&["inspect", "--format", format, id])?;
        let first = inspected.split_whitespace().next().context("a task without an address")?;
        found.push(first.split_once('/').map_or(first, |(address, _)| address).parse()?);
    }
    Ok(found)
}

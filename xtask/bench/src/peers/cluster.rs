//! A client, two nodes and their tasks, each in a namespace of its own, with a bridge between
//! client and nodes.
//!
//! Every way has a cluster of its own, all of them up at the same time, so that rounds can
//! alternate. Nodes are as an engine leaves them: forwarding is on, and the tasks' own connections
//! are masqueraded, which switches connection tracking on.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use mesh_checkout::command::Program;
use mesh_lab::netns::Netns;

use super::load::{FIRST_CPU, last_cpu};

/// The client's address. Nodes and tasks have the numbers 1 and 2.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// The MTU of tasks that are reached through a tunnel.
pub(super) const TUNNEL_MTU: u16 = 1450;

/// The namespaces, and the processes in them. Dropping it removes both.
pub(super) struct Cluster {
    pub(super) bridge: Netns,
    pub(super) client: Netns,
    nodes: [Netns; 2],
    tasks: [Netns; 2],
    processes: Vec<Child>,
}

/// The address of the node with this number.
pub(super) fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 10 + number)
}

/// The address of the task on the node with this number.
pub(super) fn task_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 128, number, 2)
}

/// The MAC address of the node with this number.
pub(super) fn node_mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

/// The MAC address of the task on the node with this number.
pub(super) fn task_mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 2, number]
}

impl Cluster {
    /// Makes the namespaces and links, with a server in both tasks.
    pub(super) fn new(prefix: &str, task_mtu: u16, load: &Path) -> Result<Self> {
        let named = |what: &str| Netns::named(format!("{prefix}-{what}"));
        let mut cluster = Self {
            bridge: named("bridge"),
            client: named("client"),
            nodes: [named("node-1"), named("node-2")],
            tasks: [named("task-1"), named("task-2")],
            processes: Vec::new(),
        };
        cluster.build(task_mtu)?;
        for number in [1, 2] {
            let serve = [load.display().to_string(), "serve".to_owned(), "0.0.0.0:8080".to_owned()];
            let task = cluster.task(number).clone();
            cluster.start(&task, &serve, true)?;
        }
        Ok(cluster)
    }

    /// The namespace of the node with this number.
    pub(super) fn node(&self, number: u8) -> &Netns {
        &self.nodes[usize::from(number) - 1]
    }

    /// The namespace of the task on the node with this number.
    pub(super) fn task(&self, number: u8) -> &Netns {
        &self.tasks[usize::from(number) - 1]
    }

    fn build(&self, task_mtu: u16) -> Result<()> {
        for netns in [&self.bridge, &self.client].into_iter().chain(&self.nodes).chain(&self.tasks) {
            netns.add()?;
            for (key, value) in [
                ("net.ipv4.ip_local_port_range", "1024 65535"),
                // Otherwise a client of 20 000 connections per second runs out of ports.
                ("net.ipv4.tcp_tw_reuse", "1"),
                ("net.core.somaxconn", "8192"),
                // An algorithm that every kernel has and every namespace may use: without losses it
                // never limits. A machine's default may pace by its estimate of the bandwidth
                // (bbr), and that estimate would be measured.
                ("net.ipv4.tcp_congestion_control", "reno"),
            ] {
                netns.sysctl(key, value)?;
            }
        }
        self.bridge.sysctl("net.bridge.bridge-nf-call-iptables", "0")?;
        self.bridge.ip(&["link", "add", "br0", "type", "bridge", "stp_state", "0", "mcast_snooping", "0"])?;
        self.bridge.ip(&["link", "set", "br0", "up"])?;
        plug(&self.bridge, "client", &self.client, CLIENT, [2, 0, 0, 0, 0, 1])?;
        for number in [1, 2] {
            self.build_node(number, task_mtu)?;
        }
        Ok(())
    }

    fn build_node(&self, number: u8, task_mtu: u16) -> Result<()> {
        let (node, task) = (self.node(number), self.task(number));
        plug(&self.bridge, &format!("up{number}"), node, node_address(number), node_mac(number))?;
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
            ("net.ipv4.conf.eth0.rp_filter", "0"),
        ] {
            node.sysctl(key, value)?;
        }
        let (gateway, mtu) = (format!("10.128.{number}.1"), task_mtu.to_string());
        node.ip(&["link", "add", "mesh0", "type", "bridge"])?;
        node.ip(&["address", "add", &format!("{gateway}/24"), "dev", "mesh0"])?;
        node.ip(&["link", "set", "mesh0", "up"])?;
        let mac = dotted(task_mac(number));
        let peer =
            ["type", "veth", "peer", "name", "eth0", "mtu", &mtu, "address", &mac, "netns", task.name()];
        node.ip(&[&["link", "add", "task0", "mtu", &mtu], peer.as_slice()].concat())?;
        node.ip(&["link", "set", "task0", "master", "mesh0", "up"])?;
        task.ip(&["address", "add", &format!("{}/24", task_address(number)), "dev", "eth0"])?;
        task.ip(&["link", "set", "eth0", "up"])?;
        task.ip(&["route", "add", "default", "via", &gateway])?;
        self.nft(
            number,
            &format!(
                "table ip engine {{\nchain postrouting {{\ntype nat hook postrouting priority srcnat;\n\
                 ip saddr 10.128.{number}.0/24 oifname != mesh0 masquerade\n}}\n}}\n"
            ),
        )
    }

    /// Adds firewall rules to a node.
    pub(super) fn nft(&self, number: u8, rules: &str) -> Result<()> {
        self.node(number).run(|| {
            let mut nft = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .context("start nft")?;
            nft.stdin.take().context("nft's input")?.write_all(rules.as_bytes()).context("write to nft")?;
            let output = nft.wait_with_output().context("wait for nft")?;
            ensure!(output.status.success(), "nft refused: {}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        })
    }

    /// Runs `doing` while every process that was started here is confined to [`FIRST_CPU`].
    pub(super) fn on_first_cpu<T>(&self, doing: impl FnOnce() -> Result<T>) -> Result<T> {
        let confine = |cpus: &str| {
            self.processes.iter().try_for_each(|process| {
                Program::new("taskset").args(["-a", "-p", "-c", cpus, &process.id().to_string()]).run()
            })
        };
        confine(FIRST_CPU)?;
        let done = doing();
        confine(&format!("{FIRST_CPU}-{}", last_cpu()))?;
        done
    }

    /// Starts a program on a node.
    pub(super) fn start_on(&mut self, number: u8, command: &[String]) -> Result<()> {
        let node = self.node(number).clone();
        self.start(&node, command, false)
    }

    /// Starts a program; if `greets`, waits for its first line.
    fn start(&mut self, netns: &Netns, command: &[String], greets: bool) -> Result<()> {
        let [program, arguments @ ..] = command else { return Ok(()) };
        let mut child = netns.run(|| {
            Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(if greets { Stdio::piped() } else { Stdio::null() })
                .process_group(0)
                .spawn()
                .with_context(|| format!("start {program}"))
        })?;
        let output = child.stdout.take();
        self.processes.push(child);
        if let Some(output) = output {
            BufReader::new(output)
                .read_line(&mut String::new())
                .with_context(|| format!("hear of {program}"))?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // With its children, such as nginx's workers. A program that has ended by itself needs
            // no kill.
            if let Some(group) = i32::try_from(process.id()).ok().and_then(rustix::process::Pid::from_raw) {
                rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
            }
            drop(process.wait());
        }
        for netns in self.tasks.iter().chain(&self.nodes).chain([&self.client, &self.bridge]) {
            if let Err(error) = netns.delete() {
                eprintln!("bench: {error:#}");
            }
        }
    }
}

/// Connects `inside` to the bridge, by a device `eth0`.
fn plug(bridge: &Netns, port: &str, inside: &Netns, address: Ipv4Addr, mac: [u8; 6]) -> Result<()> {
    Program::new("ip")
        .args(["link", "add", "eth0", "netns", inside.name(), "address", &dotted(mac), "type", "veth"])
        .args(["peer", "name", port, "netns", bridge.name()])
        .run()?;
    bridge.ip(&["link", "set", port, "master", "br0", "up"])?;
    inside.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
    inside.ip(&["link", "set", "eth0", "up"])
}

/// The MAC address as `ip` reads it.
pub(super) fn dotted(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

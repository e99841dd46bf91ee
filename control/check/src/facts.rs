//! What is known of a node and its cluster, and what mesh expects of them.

use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde_json::Value;
use toml::Table;

use crate::firewall::Ruleset;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP, as agents' streams and the relay use it.
    Tcp,
    /// UDP, as tunnels use it.
    Udp,
}

impl Transport {
    /// As in `4799/udp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port that mesh listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededPort {
    /// The protocol that mesh listens for.
    pub transport: Transport,
    /// The port's number on this node.
    pub port: u16,
    /// What it is for.
    pub purpose: &'static str,
    /// How to choose another one.
    pub choice: &'static str,
    /// The programs that may hold it.
    pub owners: &'static [&'static str],
    /// Whether other nodes connect to it.
    pub is_reached_by_nodes: bool,
}

impl NeededPort {
    /// As in `4799/udp (the tunnel between nodes)`.
    pub fn title(&self) -> String {
        format!("{}/{} ({})", self.port, self.transport.as_str(), self.purpose)
    }
}

/// What mesh expects of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The engine's socket.
    pub engine: PathBuf,
    /// The ports that mesh listens on.
    pub ports: Vec<NeededPort>,
    /// The cluster's pools of addresses.
    pub pools: Vec<Ipv4Net>,
    /// Whether kernel programs carry the traffic, or sockets alone.
    pub has_kernel_programs: bool,
    /// The etcd that a manager on this node runs.
    pub etcd: Option<OwnEtcd>,
}

/// The etcd that a manager runs for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnEtcd {
    /// The file of its database.
    pub database: PathBuf,
    /// The most bytes of it.
    pub quota: u64,
}

impl Expected {
    /// By the settings in force of the daemons that are installed; without them, everything at its
    /// default.
    pub fn by_settings(
        agent: Option<&Table>,
        control: Option<&Table>,
        (pool, etcd_quota): (Ipv4Net, u64),
    ) -> Self {
        let empty = Table::new();
        let settings = agent.unwrap_or(&empty);
        let text = |table: &Table, key: &str| Some(table.get(key)?.as_str()?.to_owned());
        let usual = AgentPorts::default();
        let number = |key: &str| u16::try_from(settings.get(key)?.as_integer()?).ok();
        let behind = |key: &str| text(settings, key)?.rsplit_once(':')?.1.parse::<u16>().ok();
        let agent = AgentPorts {
            tunnel: number("vxlan-port").unwrap_or(usual.tunnel),
            encryption: number("wireguard-port").unwrap_or(usual.encryption),
            relay: behind("relay-listen").unwrap_or(usual.relay),
            metrics: behind("metrics-listen").unwrap_or(usual.metrics),
        };
        let (mut ports, mut etcd) = (agent.needed(), None);
        if let Some(control) = control {
            let has_own_etcd = control.get("etcd").and_then(toml::Value::as_array).is_none_or(Vec::is_empty);
            ports.extend(manager_ports().into_iter().filter(|port| has_own_etcd || port.owners != ["etcd"]));
            ports.extend(text(control, "docker-listen").and_then(|listen| remote_api(&listen)));
            let data = text(control, "data-dir").unwrap_or_else(|| "/var/lib/mesh/control".to_owned());
            let database = PathBuf::from(data).join("etcd/data/member/snap/db");
            etcd = has_own_etcd.then_some(OwnEtcd { database, quota: etcd_quota });
        }
        let engine = text(settings, "engine").unwrap_or_else(|| "/var/run/docker.sock".to_owned());
        let pool =
            control.and_then(|control| text(control, "default-addr-pool")?.parse().ok()).unwrap_or(pool);
        Self {
            engine: engine.strip_prefix("unix://").unwrap_or(&engine).into(),
            ports,
            pools: vec![pool],
            has_kernel_programs: text(settings, "datapath").is_none_or(|datapath| datapath != "userspace"),
            etcd,
        }
    }

    /// The port of the agent's metrics.
    pub fn metrics_port(&self) -> Option<u16> {
        self.ports.iter().find(|port| port.purpose == AGENT_METRICS).map(|port| port.port)
    }
}

/// What the port of an agent's metrics is for.
const AGENT_METRICS: &str = "the agent's metrics";

/// The ports that an agent is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentPorts {
    /// The UDP port in `vxlan-port`.
    pub tunnel: u16,
    /// The UDP port in `wireguard-port`.
    pub encryption: u16,
    /// The port of `relay-listen`.
    pub relay: u16,
    /// The port of `metrics-listen`.
    pub metrics: u16,
}

impl Default for AgentPorts {
    fn default() -> Self {
        Self { tunnel: 4799, encryption: 4801, relay: 4800, metrics: 9464 }
    }
}

impl AgentPorts {
    /// As ports that are needed.
    pub fn needed(self) -> Vec<NeededPort> {
        let port = |transport, port, purpose, choice, is_reached_by_nodes| NeededPort {
            transport,
            port,
            purpose,
            choice,
            owners: &["mesh-agent"],
            is_reached_by_nodes,
        };
        let (tcp, udp) = (Transport::Tcp, Transport::Udp);
        vec![
            port(
                udp,
                self.tunnel,
                "the tunnel between nodes",
                "vxlan-port in /etc/mesh/agent.toml, alike on all nodes",
                true,
            ),
            port(udp, self.encryption, "encrypted tunnels", "wireguard-port in /etc/mesh/agent.toml", true),
            port(
                tcp,
                self.relay,
                "the relay between nodes",
                "relay-listen in /etc/mesh/agent.toml, alike on all nodes",
                true,
            ),
            port(tcp, self.metrics, AGENT_METRICS, "metrics-listen in /etc/mesh/agent.toml", false),
        ]
    }
}

/// The ports of a manager that runs its own etcd.
pub fn manager_ports() -> Vec<NeededPort> {
    let port = |port, purpose, choice, owners, is_reached_by_nodes| NeededPort {
        transport: Transport::Tcp,
        port,
        purpose,
        choice,
        owners,
        is_reached_by_nodes,
    };
    let etcd = "an etcd of yours, etcd in /etc/mesh/control.toml";
    vec![
        port(2377, "agents' streams to managers", "docker swarm init --listen-addr", &["mesh-control"], true),
        port(
            9465,
            "the manager's metrics",
            "metrics-listen in /etc/mesh/control.toml",
            &["mesh-control"],
            false,
        ),
        port(4802, "clients of mesh's etcd", etcd, &["etcd"], false),
        port(4803, "members of mesh's etcd", etcd, &["etcd"], true),
    ]
}

/// The port of a manager's Docker API for clients on other machines, which listens on `listen`.
fn remote_api(listen: &str) -> Option<NeededPort> {
    Some(NeededPort {
        transport: Transport::Tcp,
        port: listen.rsplit_once(':')?.1.parse().ok()?,
        purpose: "remote clients of the Docker API",
        choice: "docker-listen in /etc/mesh/control.toml",
        owners: &["mesh-control"],
        is_reached_by_nodes: false,
    })
}

/// A socket that takes connections or datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The protocol of what it takes.
    pub transport: Transport,
    /// The port that it is bound to.
    pub port: u16,
    /// Whether it is bound to all addresses.
    pub is_wildcard: bool,
    /// The program that holds it; absent if it is the kernel's, or another user's.
    pub owner: Option<String>,
}

/// A network device that packets of other machines come by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The device's name.
    pub name: String,
    /// The largest packet that it sends, in bytes.
    pub mtu: Option<u32>,
}

/// A route of this machine's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// The route's destination.
    pub network: Ipv4Net,
    /// The device that it leads to.
    pub device: String,
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Engine {
    /// The engine's version, as in `20.10.24`.
    pub version: String,
    /// The newest version of its API.
    pub api: String,
    /// `LocalNodeState`: whether it is in a Swarm of its own.
    pub swarm: String,
}

/// What is known of a node.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// Whether this process may see everything.
    pub is_root: bool,
    /// The kernel's release.
    pub kernel: String,
    /// Whether the kernel describes its own types (BTF).
    pub has_btf: bool,
    /// `net.core.bpf_jit_enable`; absent in network namespaces of their own.
    pub jit: Option<String>,
    /// Whether a BPF file system is mounted at `/sys/fs/bpf`.
    pub has_bpffs: bool,
    /// Whether `/dev/net/tun` is there.
    pub has_tun: bool,
    /// Whether control groups are of version 2 alone.
    pub has_cgroup2: bool,
    /// What the engine answers, or why it can't be asked.
    pub engine: Option<Result<Engine, String>>,
    /// Everything that listens.
    pub listeners: Vec<Listener>,
    /// Whether mesh's tunnel device exists, whose port the kernel holds.
    pub has_tunnel_device: bool,
    /// The firewall's rules, by program.
    pub rulesets: Vec<Ruleset>,
    /// Devices with a default route.
    pub uplinks: Vec<Uplink>,
    /// The kernel's setting `net.ipv4.conf.all.rp_filter`.
    pub reverse_path_filter: Option<String>,
    /// Routes that are neither mesh's nor default routes.
    pub routes: Vec<HostRoute>,
    /// The bytes of the database of the manager's own etcd, if it has one that can be read.
    pub etcd_bytes: Option<u64>,
    /// Whether something keeps the clock by NTP; absent if nobody knows.
    pub is_clock_kept: Option<bool>,
}

/// What a node's or manager's metrics say, or why they can't be read.
#[derive(Debug, Clone)]
pub struct Scrape {
    /// The node's name.
    pub node: String,
    /// Whether it is the manager's listener, and not the agent's.
    pub is_manager: bool,
    /// The text of `/metrics`.
    pub metrics: Result<String, String>,
    /// `/readyz`: what is not ready, if anything.
    pub not_ready: Option<String>,
}

/// What is known of a cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterFacts {
    /// `GET /info`.
    pub info: Value,
    /// `GET /nodes`.
    pub nodes: Vec<Value>,
    /// `GET /swarm`.
    pub swarm: Value,
    /// Metrics of agents and managers.
    pub scrapes: Vec<Scrape>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(agent: &str, control: Option<&str>) -> Expected {
        let pool = "10.128.0.0/12".parse().expect("a network");
        let control: Option<Table> = control.map(|text| text.parse().expect("settings"));
        Expected::by_settings(Some(&agent.parse().expect("settings")), control.as_ref(), (pool, 9))
    }

    #[test]
    fn settings_say_what_is_expected() {
        let ports = |expected: &Expected| expected.ports.iter().map(|port| port.port).collect::<Vec<_>>();
        let plain = expected("", None);
        assert_eq!(ports(&plain), [4799, 4801, 4800, 9464]);
        assert!(plain.has_kernel_programs && plain.engine.ends_with("docker.sock"));
        let text = "vxlan-port = 1\nrelay-listen = \"[::]:2\"\ndatapath = \"userspace\"\nengine = \"unix:///e.sock\"\n";
        let set = expected(text, Some("default-addr-pool = \"10.99.0.0/16\"\ndata-dir = \"/d\"\n"));
        assert_eq!(ports(&set), [1, 4801, 2, 9464, 2377, 9465, 4802, 4803]);
        assert_eq!((set.engine.to_str(), set.metrics_port()), (Some("/e.sock"), Some(9464)));
        let etcd = set.etcd.as_ref().expect("an etcd of its own");
        assert_eq!((etcd.database.to_str(), etcd.quota), (Some("/d/etcd/data/member/snap/db"), 9));
        assert!(!set.has_kernel_programs && set.pools[0].to_string() == "10.99.0.0/16", "{set:?}");
        let other_etcd = expected("", Some("etcd = [\"https://10.0.0.1:2379\"]\n"));
        assert_eq!(ports(&other_etcd), [4799, 4801, 4800, 9464, 2377, 9465]);
        let remote =
            expected("", Some("etcd = [\"https://10.0.0.1:2379\"]\ndocker-listen = \"[::]:2376\"\n"));
        assert_eq!(ports(&remote), [4799, 4801, 4800, 9464, 2377, 9465, 2376]);
        assert_eq!(other_etcd.etcd, None);
    }
}

//! The settings in force: flags checked against each other, and completed with what the machine
//! says.
//!
//! Invariant: a [`Config`] is complete; no other module reads flags, variables or the hostname.

pub mod mtu;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use mesh_state::node::OwnPort;
use mesh_state::spec::Protocol;
use thiserror::Error;

use crate::cli::{Datapath, MetricsBackends, RunArgs, TcHooks};
use crate::control_link::token::{JoinToken, TokenError};
use crate::datapath::TableSizes;
use crate::proxy::{ProxySettings, UdpLimits};

/// The default port of the metrics.
pub const METRICS_PORT: u16 = 9464;
/// How long proxied connections may go on once the agent stops.
const DRAIN_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// The agent's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's name.
    pub name: String,
    /// The address on which other nodes reach this one.
    pub address: Ipv4Addr,
    /// The kernel's release.
    pub kernel: String,
    /// The uplinks; empty for those with a default route.
    pub interfaces: Vec<String>,
    /// The managers to connect to.
    pub managers: Vec<SocketAddr>,
    /// The file with the join token.
    pub join_token_file: Option<PathBuf>,
    /// The local engine's socket.
    pub engine: PathBuf,
    /// The path of the docker.sock to serve.
    pub socket: PathBuf,
    /// The group that may use that socket, beside root.
    pub socket_group: String,
    /// The local manager's socket.
    pub control_socket: PathBuf,
    /// The directory of the agent's state.
    pub data_dir: PathBuf,
    /// The directory of tasks' secrets and configs.
    pub task_files: PathBuf,
    /// Who takes the packets of published ports.
    pub datapath: Datapath,
    /// How TC programs are attached.
    pub tc_hooks: TcHooks,
    /// The directory of pinned programs and maps.
    pub bpffs: PathBuf,
    /// UDP port of the tunnel.
    pub vxlan_port: u16,
    /// UDP port of encrypted tunnels.
    pub wireguard_port: u16,
    /// Sizes of the flow tables.
    pub tables: TableSizes,
    /// SYNs per second for which each CPU makes flow entries; 0: all.
    pub syn_guard_rate: u32,
    /// Settings of the userspace proxy.
    pub proxy: ProxySettings,
    /// The address of /metrics.
    pub metrics_listen: SocketAddr,
    /// The backends that have series.
    pub metrics_backends: MetricsBackends,
    /// Whether components can be made to panic.
    pub debug_faults: bool,
}

/// Why the settings are invalid.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No manager is named.
    #[error("no manager: name at least one with --manager IP:2377")]
    NoManager,
    /// The node's address can't be found out.
    #[error("can't find out on which address other nodes reach this one: give it with --address")]
    NoAddress {
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The address is reachable on this machine only.
    #[error("address {0} is good on this machine only: give one that other nodes reach with --address")]
    LocalAddress(Ipv4Addr),
    /// A fact of the machine can't be read.
    #[error("read {path}: give the node's name with --name")]
    Machine {
        /// The file that names the machine.
        path: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// No file with a join token is named.
    #[error("this node has not joined yet: name a file with the join token with --join-token-file")]
    NoToken,
    /// The token's file can't be read.
    #[error("read join token {}", path.display())]
    TokenFile {
        /// The file that was to hold the join token.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The file holds no valid token.
    #[error("read join token {}", path.display())]
    Token {
        /// The file that holds the join token.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: TokenError,
    },
}

impl Config {
    /// Completes the flags with what the machine says. Blocks for an instant.
    ///
    /// # Errors
    /// What is missing or wrong, and which flag fixes it.
    pub fn new(args: RunArgs) -> Result<Self, ConfigError> {
        if args.manager.is_empty() {
            return Err(ConfigError::NoManager);
        }
        let address = match args.address {
            Some(address) => address,
            None => address_towards(&args.manager)?,
        };
        if address.is_loopback() || address.is_unspecified() {
            return Err(ConfigError::LocalAddress(address));
        }
        let name = match args.name {
            Some(name) => name,
            None => hostname()?,
        };
        let mut config = Self {
            name,
            address,
            kernel: machine_fact("/proc/sys/kernel/osrelease")?,
            interfaces: args.interface,
            managers: args.manager,
            join_token_file: args.join_token_file,
            engine: args.engine,
            socket: args.socket,
            socket_group: args.socket_group,
            control_socket: args.control_socket,
            data_dir: args.data_dir,
            task_files: args.task_files,
            datapath: args.datapath,
            tc_hooks: args.tc_hooks,
            bpffs: args.bpffs,
            vxlan_port: args.vxlan_port,
            wireguard_port: args.wireguard_port,
            tables: TableSizes { established: args.flows_max, half_open: args.half_open_max },
            syn_guard_rate: args.syn_guard_rate,
            proxy: ProxySettings {
                listen_address: args.listen_address,
                relay_listen: args.relay_listen,
                relay_port: args.relay_listen.port(),
                own_ports: BTreeMap::new(),
                connections_max: usize::try_from(args.proxy_connections_max).unwrap_or(usize::MAX),
                idle_limit: args.idle_timeout,
                udp_limits: UdpLimits::default(),
                drain_limit: DRAIN_LIMIT,
            },
            metrics_listen: args
                .metrics_listen
                .unwrap_or_else(|| SocketAddr::new(address.into(), METRICS_PORT)),
            metrics_backends: args.metrics_backends,
            debug_faults: args.debug_faults,
        };
        let own = config.own_ports();
        config.proxy.own_ports = own.into_iter().map(|own| ((own.protocol, own.port), own.purpose)).collect();
        Ok(config)
    }

    /// Reads the join token from its file.
    ///
    /// # Errors
    /// There is no file, or no token in it.
    pub fn join_token(&self) -> Result<JoinToken, ConfigError> {
        let path = self.join_token_file.clone().ok_or(ConfigError::NoToken)?;
        let text = fs::read_to_string(&path)
            .map_err(|source| ConfigError::TokenFile { path: path.clone(), source })?;
        text.trim().parse().map_err(|source| ConfigError::Token { path, source })
    }

    /// Ports of this node that no service can take: the agent's own, and those by which it reaches
    /// managers, as one may run here.
    pub fn own_ports(&self) -> Vec<OwnPort> {
        let own = [
            OwnPort::new(Protocol::Udp, self.vxlan_port, OwnPort::TUNNEL),
            OwnPort::new(Protocol::Udp, self.wireguard_port, OwnPort::ENCRYPTION),
            OwnPort::new(Protocol::Tcp, self.proxy.relay_port, "the relay between nodes"),
            OwnPort::new(Protocol::Tcp, self.metrics_listen.port(), OwnPort::AGENT_METRICS),
        ];
        let managers: BTreeSet<u16> = self.managers.iter().map(SocketAddr::port).collect();
        let managers =
            managers.into_iter().map(|port| OwnPort::new(Protocol::Tcp, port, "agents' streams to managers"));
        own.into_iter().chain(managers).collect()
    }

    /// The directory of this node's tasks as they were last seen.
    pub fn task_cache(&self) -> PathBuf {
        self.data_dir.join("tasks")
    }

    /// Address and port of the manager on this node, if it runs one.
    pub fn manager_here(&self) -> Option<SocketAddr> {
        self.managers.iter().find(|manager| manager.ip() == IpAddr::V4(self.address)).copied()
    }
}

/// This machine's name.
///
/// # Errors
/// The kernel doesn't tell it.
pub fn hostname() -> Result<String, ConfigError> {
    machine_fact("/proc/sys/kernel/hostname")
}

/// The local address from which the first IPv4 manager would be reached. Sends no packet.
fn address_towards(managers: &[SocketAddr]) -> Result<Ipv4Addr, ConfigError> {
    let ask = || {
        let manager = managers
            .iter()
            .find(|manager| manager.is_ipv4())
            .ok_or_else(|| io::Error::other("no manager has an IPv4 address"))?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(manager)?;
        match socket.local_addr()?.ip() {
            IpAddr::V4(address) => Ok(address),
            IpAddr::V6(_) => Err(io::Error::other("the route has an IPv6 address")),
        }
    };
    ask().map_err(|source| ConfigError::NoAddress { source })
}

fn machine_fact(path: &'static str) -> Result<String, ConfigError> {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|source| ConfigError::Machine { path, source })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn config(words: &[&str]) -> Result<Config, ConfigError> {
        let cli = Cli::try_parse_from(std::iter::once(&"mesh-agent").chain(words)).expect("flags that parse");
        Config::new(cli.run)
    }

    #[test]
    fn what_is_missing_is_named_with_its_flag() {
        for (words, expected) in [
            (&["--address", "10.0.0.9"][..], "--manager"),
            (&["--manager", "127.0.0.1"], "--address"),
            (&["--manager", "10.0.0.1", "--address", "0.0.0.0"], "--address"),
        ] {
            let error = config(words).expect_err("settings that can't work").to_string();
            assert!(error.contains(expected), "{words:?}: expected {expected} in: {error}");
        }
    }

    #[test]
    fn metrics_are_served_on_the_nodes_address_by_default() {
        let listen = |flags: &[&str]| {
            let flags = [&["--manager", "10.0.0.1", "--address", "10.0.0.9"], flags].concat();
            config(&flags).expect("good settings").metrics_listen.to_string()
        };
        assert_eq!(listen(&[]), "10.0.0.9:9464");
        assert_eq!(listen(&["--metrics-listen", "0.0.0.0:1"]), "0.0.0.0:1");
    }

    #[test]
    fn a_token_is_read_from_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        let flags = |path: &str| {
            config(&["--manager", "10.0.0.1", "--address", "10.0.0.9", "--join-token-file", path])
                .expect("good settings")
        };
        let config = flags(path.to_str().expect("a path"));
        assert!(matches!(config.join_token(), Err(ConfigError::TokenFile { .. })), "no such file");
        fs::write(&path, "SWMTKN-nonsense\n").expect("the file is written");
        assert!(matches!(config.join_token(), Err(ConfigError::Token { .. })), "no token in it");
        let token = format!("SWMTKN-1-{}-{}", "0f".repeat(32), "a".repeat(25));
        fs::write(&path, format!("{token}\n")).expect("the file is written");
        assert_eq!(config.join_token().expect("a token").as_str(), token);
    }

    #[test]
    fn the_ports_that_mesh_needs_are_those_that_it_is_set_to() {
        let flags = [
            ["--manager", "10.0.0.1:7000,10.0.0.2:7000"],
            ["--address", "10.0.0.9"],
            ["--vxlan-port", "7001"],
            ["--wireguard-port", "7004"],
            ["--relay-listen", "0.0.0.0:7002"],
            ["--metrics-listen", "[::]:7003"],
        ];
        let own = config(&flags.concat()).expect("good settings").own_ports();
        let ports: Vec<(Protocol, u16)> = own.iter().map(|own| (own.protocol, own.port)).collect();
        let tcp = |port| (Protocol::Tcp, port);
        assert_eq!(ports, [(Protocol::Udp, 7001), (Protocol::Udp, 7004), tcp(7002), tcp(7003), tcp(7000)]);
    }

    #[test]
    fn the_manager_here_has_our_address() {
        let manager_at = |address| {
            let flags = ["--manager", "10.0.0.1,10.0.0.9", "--address", address];
            config(&flags).expect("good settings").manager_here().map(|manager| manager.to_string())
        };
        assert_eq!(manager_at("10.0.0.9").as_deref(), Some("10.0.0.9:2377"));
        assert_eq!(manager_at("10.0.0.8"), None, "the managers are on other nodes");
    }
}

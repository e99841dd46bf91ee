//! The command line: every flag can also be set by an environment variable, or in agent.toml.
//!
//! Invariant: text only; [`crate::config`] parses the values and checks them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_ebpf::abi::names;
use mesh_ebpf::guard;
use mesh_runtime::settings::SettingsArgs;
use mesh_state::api_paths::CONTROL_SOCKET;
use mesh_state::node::{ENCRYPTION_PORT, TUNNEL_PORT};

/// mesh's agent on a node: carries the traffic of published ports, runs the node's tasks and serves
/// its docker.sock.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The command; `run` if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What one call of `mesh-agent` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent (the default).
    Run(Box<RunArgs>),
    /// Look for what would keep the agent from working on this machine; each finding has its cure.
    ///
    /// Exits with 1 if there are errors. `mesh check` also looks at the running agent and the
    /// cluster.
    Check(CheckArgs),
    /// Remove what mesh has put on this node: attached programs, their pins, the tunnel device, the
    /// firewall table and the tmpfs of tasks.
    ///
    /// The agent must not run (see --stop). Tasks and the contents of the data directory stay.
    Uninstall(UninstallArgs),
}

/// The flags of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The file with further settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// This node's name in the cluster [default: the hostname].
    #[arg(long, env = "MESH_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// The IPv4 address on which other nodes reach this one [default: the local address of
    /// connections to the managers].
    #[arg(long, env = "MESH_ADDRESS", value_name = "IPv4")]
    pub address: Option<Ipv4Addr>,
    /// Uplinks, on which kernel programs serve published ports [default: those with a default
    /// route]; the one with this node's address is added in any case.
    #[arg(long, env = "MESH_INTERFACE", value_name = "IF", value_delimiter = ',')]
    pub interface: Vec<String>,
    /// Managers to connect to. Without any, and without a join token, the node is in no cluster
    /// until `docker swarm join` on its socket.
    #[arg(long, env = "MESH_MANAGER", value_name = "IP:PORT", value_delimiter = ',', value_parser = manager)]
    pub manager: Vec<SocketAddr>,
    /// File with the join token, which is read until the node has joined. After `docker swarm
    /// leave` it counts no more: use `docker swarm join`.
    #[arg(long, env = "MESH_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// Socket of the local Docker engine.
    #[arg(long, env = "MESH_ENGINE", value_name = "unix://PATH", default_value = "unix:///var/run/docker.sock", value_parser = unix_socket)]
    pub engine: PathBuf,
    /// The docker.sock that mesh serves.
    #[arg(long, env = "MESH_SOCKET", value_name = "PATH", default_value = "/run/mesh/docker.sock")]
    pub socket: PathBuf,
    /// Group that may use that socket beside root; empty for none. A socket that systemd passes
    /// keeps the group that its unit names.
    #[arg(long, env = "MESH_SOCKET_GROUP", value_name = "GROUP", default_value = "docker")]
    pub socket_group: String,
    /// Socket of the manager on this node. Where nothing listens on it, this node has no manager.
    #[arg(long, env = "MESH_CONTROL_SOCKET", value_name = "PATH", default_value = CONTROL_SOCKET)]
    pub control_socket: PathBuf,
    /// Directory of the node's identity, and of its latest mesh table and tasks.
    #[arg(long, env = "MESH_DATA_DIR", value_name = "DIR", default_value = "/var/lib/mesh/agent")]
    pub data_dir: PathBuf,
    /// Directory of tasks' secrets and configs while the tasks run. It is on a tmpfs; if it isn't,
    /// one is mounted there.
    #[arg(long, env = "MESH_TASK_FILES", value_name = "DIR", default_value = "/run/mesh/tasks")]
    pub task_files: PathBuf,
    /// Which data path takes the packets of published ports.
    #[arg(long, env = "MESH_DATAPATH", value_enum, default_value_t = Datapath::Auto)]
    pub datapath: Datapath,
    /// How TC programs are attached. For tests: `auto` asks the kernel.
    #[arg(long, env = "MESH_TC_HOOKS", value_enum, default_value_t = TcHooks::Auto, hide = true)]
    pub tc_hooks: TcHooks,
    /// Directory in which kernel programs and maps are pinned.
    #[arg(long, env = "MESH_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/mesh")]
    pub bpffs: PathBuf,
    /// UDP port of the tunnel between nodes, the same on all of them.
    #[arg(long, env = "MESH_VXLAN_PORT", value_name = "PORT", default_value_t = TUNNEL_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub vxlan_port: u16,
    /// UDP port of the encrypted tunnels between nodes, for networks made with `--opt encrypted`.
    #[arg(long, env = "MESH_WIREGUARD_PORT", value_name = "PORT", default_value_t = ENCRYPTION_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub wireguard_port: u16,
    /// Room for connections in the kernel programs' flow tables; applies to tables that are made
    /// anew.
    #[arg(long, env = "MESH_FLOWS_MAX", value_name = "COUNT", default_value_t = names::ESTABLISHED_MAX, value_parser = clap::value_parser!(u32).range(1024..=1 << 26))]
    pub flows_max: u32,
    /// Room for unconfirmed connections in the kernel programs' flow tables; applies to tables that
    /// are made anew.
    #[arg(long, env = "MESH_HALF_OPEN_MAX", value_name = "COUNT", default_value_t = names::HALF_OPEN_MAX, value_parser = clap::value_parser!(u32).range(1024..=1 << 26))]
    pub half_open_max: u32,
    /// SYNs per second for which each CPU makes a flow entry. Further SYNs, a flood, are balanced
    /// by addresses and ports alone, and get an entry once the client has answered; 0: every SYN
    /// gets one.
    #[arg(long, env = "MESH_SYN_GUARD_RATE", value_name = "COUNT", default_value_t = guard::RATE)]
    pub syn_guard_rate: u32,
    /// Address to which published ports are bound; `::` takes IPv4 as well.
    #[arg(long, env = "MESH_LISTEN_ADDRESS", value_name = "IP", default_value = "::")]
    pub listen_address: IpAddr,
    /// Address on which the relay accepts proxied connections of other nodes; the same port on all
    /// nodes.
    #[arg(long, env = "MESH_RELAY_LISTEN", value_name = "IP:PORT", default_value = "0.0.0.0:4800")]
    pub relay_listen: SocketAddr,
    /// The most proxied connections and UDP flows at once, of clients and of other nodes each;
    /// fewer if the limit of open files is too low. Further TCP clients wait in the kernel's
    /// backlog.
    #[arg(long, env = "MESH_PROXY_CONNECTIONS_MAX", value_name = "COUNT", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub proxy_connections_max: u32,
    /// Idle limit of proxied TCP connections whose service has no `mesh.lb.idle-timeout`.
    #[arg(long, env = "MESH_IDLE_TIMEOUT", value_name = "DURATION", default_value = "2h", value_parser = humantime::parse_duration)]
    pub idle_timeout: Duration,
    /// Address of /metrics, /healthz and /readyz [default: port 9464 of the address in --address].
    #[arg(long, env = "MESH_METRICS_LISTEN", value_name = "IP:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// The backends that have series: those to which this node has sent a connection, all, its own,
    /// or none.
    #[arg(long, env = "MESH_METRICS_BACKENDS", value_enum, default_value_t = MetricsBackends::Seen)]
    pub metrics_backends: MetricsBackends,
    /// What to log: error, warn, info, debug or trace, also by module
    /// (`info,mesh_agent::proxy=debug`).
    #[arg(long, env = "MESH_LOG", value_name = "LEVEL", default_value = "info")]
    pub log: String,
    /// Lets every client of the metrics listener make a part of this process panic. For tests.
    #[arg(long, env = "MESH_DEBUG_FAULTS", hide = true)]
    pub debug_faults: bool,
}

/// The flags of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Look at the machine alone, which is all that this command does.
    #[arg(long)]
    pub pre: bool,
    /// Print only warnings and errors.
    #[arg(short, long)]
    pub quiet: bool,
    /// File with the agent's settings [default: /etc/mesh/agent.toml, if it exists].
    #[arg(long, env = "MESH_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Socket of the local Docker engine.
    #[arg(long, env = "MESH_ENGINE", value_name = "unix://PATH", default_value = "unix:///var/run/docker.sock", value_parser = unix_socket)]
    pub engine: PathBuf,
    /// Which data path takes the packets of published ports.
    #[arg(long, env = "MESH_DATAPATH", value_enum, default_value_t = Datapath::Auto)]
    pub datapath: Datapath,
    /// UDP port of the tunnel between nodes.
    #[arg(long, env = "MESH_VXLAN_PORT", value_name = "PORT", default_value_t = TUNNEL_PORT)]
    pub vxlan_port: u16,
    /// UDP port of the encrypted tunnels between nodes.
    #[arg(long, env = "MESH_WIREGUARD_PORT", value_name = "PORT", default_value_t = ENCRYPTION_PORT)]
    pub wireguard_port: u16,
    /// Address of the relay.
    #[arg(long, env = "MESH_RELAY_LISTEN", value_name = "IP:PORT", default_value = "0.0.0.0:4800")]
    pub relay_listen: SocketAddr,
    /// Address of the agent's metrics [default: port 9464 of the node's address].
    #[arg(long, env = "MESH_METRICS_LISTEN", value_name = "IP:PORT")]
    pub metrics_listen: Option<SocketAddr>,
}

/// The flags of `uninstall`.
#[derive(Debug, Clone, Args)]
pub struct UninstallArgs {
    /// First end the agent that runs on this node, with SIGTERM.
    #[arg(long)]
    pub stop: bool,
    /// Directory of the agent's data, by which a running agent is found.
    #[arg(long, env = "MESH_DATA_DIR", value_name = "DIR", default_value = "/var/lib/mesh/agent")]
    pub data_dir: PathBuf,
    /// File with the agent's settings [default: /etc/mesh/agent.toml, if it exists].
    #[arg(long, env = "MESH_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory in which kernel programs and maps are pinned.
    #[arg(long, env = "MESH_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/mesh")]
    pub bpffs: PathBuf,
    /// Directory of tasks' secrets and configs.
    #[arg(long, env = "MESH_TASK_FILES", value_name = "DIR", default_value = "/run/mesh/tasks")]
    pub task_files: PathBuf,
    /// Socket of the local Docker engine.
    #[arg(long, env = "MESH_ENGINE", value_name = "unix://PATH", default_value = "unix:///var/run/docker.sock", value_parser = unix_socket)]
    pub engine: PathBuf,
    /// What to log.
    #[arg(long, env = "MESH_LOG", value_name = "LEVEL", default_value = "info")]
    pub log: String,
}

/// The data paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Datapath {
    /// XDP on uplinks whose driver runs it natively, TC on all others; userspace where the kernel
    /// takes no programs.
    Auto,
    /// XDP programs, with TC programs behind them.
    Xdp,
    /// TC programs.
    Tc,
    /// No kernel programs: sockets and a relay between nodes.
    Userspace,
}

/// The ways to attach TC programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TcHooks {
    /// By tcx links where the kernel has them, by filters of clsact elsewhere.
    Auto,
    /// By tcx links.
    Tcx,
    /// By filters of clsact.
    Clsact,
}

/// The backends that have series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetricsBackends {
    /// Those to which this node has sent a connection.
    Seen,
    /// Every backend of the cluster.
    All,
    /// Those whose task runs on this node.
    Local,
    /// No backends.
    Off,
}

/// The managers' default port.
const MANAGER_PORT: u16 = 2377;

fn manager(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, MANAGER_PORT)))
        .map_err(|_| format!("expected an address like 10.0.0.1 or 10.0.0.1:{MANAGER_PORT}"))
}

fn unix_socket(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text.strip_prefix("unix://").unwrap_or(text));
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("expected the engine's socket on this machine, like unix:///var/run/docker.sock".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"mesh-agent").chain(words))
    }

    #[test]
    fn the_command_line_is_sound_and_every_flag_has_its_variable() {
        let command = Cli::command();
        command.clone().debug_assert();
        for flag in command.get_arguments().filter_map(|arg| arg.get_long().map(|long| (long, arg.get_env())))
        {
            let expected = format!("MESH_{}", flag.0.replace('-', "_").to_uppercase());
            if !matches!(flag.0, "help" | "version" | "print-config" | "check-config" | "write-man-pages") {
                let seen = flag.1.map(|variable| variable.to_string_lossy().into_owned());
                assert_eq!(seen, Some(expected), "variable of --{}", flag.0);
            }
        }
    }

    #[test]
    fn managers_and_engines_are_read_in_their_usual_spellings() {
        let cli =
            parse(&["--manager", "10.0.0.1,10.0.0.2:99", "--engine", "unix:///e.sock"]).expect("good flags");
        let managers: Vec<_> = cli.run.manager.iter().map(ToString::to_string).collect();
        assert_eq!(managers, ["10.0.0.1:2377", "10.0.0.2:99"]);
        assert_eq!(cli.run.engine, PathBuf::from("/e.sock"));
        for bad in [["--manager", "node-1"], ["--engine", "tcp://1.2.3.4:2375"], ["--datapath", "dpdk"]] {
            let error = parse(&bad).expect_err("a bad value").to_string();
            assert!(error.contains(bad[0]), "expected the flag's name, saw: {error}");
        }
    }

    #[test]
    fn the_packages_file_is_good_with_all_its_examples() {
        let examples = include_str!("../../xtask/packaging/agent.toml").replace("\n#", "\n");
        let keys = examples.lines().filter(|line| line.contains(" = "));
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, keys.collect::<Vec<_>>().join("\n")).expect("the file is written");
        let read = mesh_runtime::settings::read::<Cli>(["mesh-agent".into()], &path).expect("good settings");
        assert_eq!(read.cli.run.manager.len(), 3);
        assert_eq!(read.cli.run.control_socket, PathBuf::from(CONTROL_SOCKET));
    }

    #[test]
    fn run_is_the_default() {
        assert!(parse(&[]).expect("no words").command.is_none());
        let flagged = parse(&["run", "--name", "n"]).expect("run with flags").command;
        assert!(matches!(flagged, Some(Command::Run(args)) if args.name.as_deref() == Some("n")));
        assert!(matches!(parse(&["uninstall"]).expect("uninstall").command, Some(Command::Uninstall(_))));
    }
}

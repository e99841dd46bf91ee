//! The four daemons of a node, and their command lines. Pure: nothing is started here.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::layout::{CLIENT_IP, NodeLayout, PREFIX_BITS};
use super::record::Record;
use super::{clock, etcd_keys};
use crate::artifacts::Binaries;

/// etcd's port for its health in plain text, on loopback.
pub(super) const ETCD_HEALTH_PORT: u16 = 2381;

/// A daemon of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Component {
    /// The Docker engine
    Dockerd,
    /// etcd, on managers
    Etcd,
    /// mesh-control, on managers
    Control,
    /// mesh-agent
    Agent,
}

impl Component {
    /// All daemons, in the order in which they start.
    pub const ALL: [Self; 4] = [Self::Dockerd, Self::Etcd, Self::Control, Self::Agent];

    /// True if only managers run it.
    pub fn managers_only(self) -> bool {
        matches!(self, Self::Etcd | Self::Control)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dockerd => "dockerd",
            Self::Etcd => "etcd",
            Self::Control => "control",
            Self::Agent => "agent",
        })
    }
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandLine {
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
}

impl CommandLine {
    fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new() }
    }

    fn flag(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.args.push(name.into());
        self.args.push(value.into());
        self
    }

    fn switch(mut self, name: &str) -> Self {
        self.args.push(name.into());
        self
    }
}

/// The command line of a component of a node in the lab that `record` describes.
pub(super) fn command_line(
    component: Component,
    node: &NodeLayout,
    record: &Record,
    binaries: &Binaries,
) -> CommandLine {
    match component {
        Component::Dockerd => dockerd(node, record.emulated),
        Component::Etcd => etcd(node, record),
        Component::Control => with_clock(control(node, record, &binaries.control()), node, record),
        Component::Agent => with_clock(agent(node, record, &binaries.agent()), node, record),
    }
}

/// The command line with the node's clock, if the lab has clocks of its own.
fn with_clock(line: CommandLine, node: &NodeLayout, record: &Record) -> CommandLine {
    let Some(directory) = &record.clocks else { return line };
    let mut args = clock::variables(&directory.join(node.name()));
    args.push(line.program.into_os_string());
    args.extend(line.args);
    CommandLine { program: "env".into(), args }
}

/// A killed engine leaves files with process ids, which may be other processes' by now: the next
/// engine would take those for its own. The lab runs this only if no engine runs.
const FORGETFUL_DOCKERD: &str =
    r#"rm -f /run/docker.pid /run/docker/containerd/containerd.pid; exec dockerd "$@""#;

/// The same on an emulated machine: an engine gives up on a containerd of its own after 15 seconds,
/// so containerd is started first and the engine once it listens. Argument: containerd's directory.
const PATIENT_DOCKERD: &str = r#"directory=$1; shift
rm -f /run/docker.pid; mkdir -p /run/containerd "$directory"
socket=/run/containerd/containerd.sock; rm -f $socket
echo 'disabled_plugins = ["io.containerd.grpc.v1.cri"]' > "$directory/config.toml"
containerd --config "$directory/config.toml" --address $socket --root "$directory/root" --state /run/containerd/state &
while ! [ -S $socket ]; do kill -0 $! ; sleep 0.2; done
exec dockerd "$@" --containerd $socket"#;

/// The node has mount and network namespaces of its own, so only what shares the disk and the
/// cgroup tree needs a unique name.
fn dockerd(node: &NodeLayout, emulated: bool) -> CommandLine {
    let state = node.state_dir();
    let shell = CommandLine::new("sh");
    let shell = if emulated {
        shell.flag("-ec", PATIENT_DOCKERD).flag("sh", state.join("containerd"))
    } else {
        shell.flag("-ec", FORGETFUL_DOCKERD).switch("dockerd")
    };
    shell
        .flag("--host", unix_url(&node.engine_socket()))
        .flag("--data-root", state.join("docker-data"))
        .flag("--config-file", node.engine_config())
        .flag("--exec-opt", "native.cgroupdriver=cgroupfs")
        .flag("--cgroup-parent", Path::new("/").join(node.cgroup()).join("containers"))
        .flag("--storage-driver", "overlay2")
        // Registries that run in the lab have no certificates.
        .flag("--insecure-registry", format!("{CLIENT_IP}/{PREFIX_BITS}"))
        .flag("--node-generic-resource", "mesh-test=2")
}

fn etcd(node: &NodeLayout, record: &Record) -> CommandLine {
    let peers =
        managers(record).map(|m| format!("{}=https://{}:2380", m.name, m.ip)).collect::<Vec<_>>().join(",");
    let client = format!("https://{}:2379", node.ip());
    let peer = format!("https://{}:2380", node.ip());
    CommandLine::new("etcd")
        .flag("--name", node.name())
        .flag("--data-dir", node.state_dir().join("etcd"))
        .flag("--listen-client-urls", format!("{client},https://127.0.0.1:2379"))
        .flag("--advertise-client-urls", client)
        .flag("--listen-peer-urls", &peer)
        .flag("--initial-advertise-peer-urls", peer)
        .flag("--initial-cluster", peers)
        .flag("--initial-cluster-state", "new")
        .flag("--initial-cluster-token", format!("mesh-lab-{}", node.lab().name()))
        .switch("--client-cert-auth")
        .flag("--trusted-ca-file", etcd_keys::ca(node))
        .flag("--cert-file", etcd_keys::member_certificate(node))
        .flag("--key-file", etcd_keys::member_key(node))
        .switch("--peer-client-cert-auth")
        .flag("--peer-trusted-ca-file", etcd_keys::ca(node))
        .flag("--peer-cert-file", etcd_keys::member_certificate(node))
        .flag("--peer-key-file", etcd_keys::member_key(node))
        .flag("--peer-cert-allowed-cn", etcd_keys::MEMBER_NAME)
        // The lab polls etcd's health without a certificate.
        .flag("--listen-metrics-urls", format!("http://127.0.0.1:{ETCD_HEALTH_PORT}"))
}

fn control(node: &NodeLayout, record: &Record, program: &Path) -> CommandLine {
    let line = CommandLine::new(program);
    // Without a cluster, it runs an etcd of its own and waits for docker swarm init.
    let line = if record.empty {
        line
    } else {
        line.flag("--etcd", record.etcd.join(","))
            .flag("--etcd-ca", etcd_keys::ca(node))
            .flag("--etcd-cert", etcd_keys::client_certificate(node))
            .flag("--etcd-key", etcd_keys::client_key(node))
            .flag("--advertise", node.ip().to_string())
    };
    line.flag("--docker-listen", "0.0.0.0:2376")
        .flag("--data-dir", node.control_dir())
        .flag("--name", node.name())
        .flag("--socket", node.control_socket())
        .flag("--log", "info")
        .switch("--debug-faults")
        .switch("--debug-short-certificates")
}

fn agent(node: &NodeLayout, record: &Record, program: &Path) -> CommandLine {
    let datapath =
        record.node(&node.name()).map_or(record.datapath.as_str(), |entry| record.datapath_of(entry));
    let line = CommandLine::new(program)
        .switch("run")
        .flag("--name", node.name())
        .flag("--address", node.ip().to_string());
    let line = if record.empty {
        line
    } else {
        let managers = managers(record).map(|m| format!("{}:2377", m.ip)).collect::<Vec<_>>().join(",");
        line.flag("--manager", managers).flag("--join-token-file", node.join_token())
    };
    line.flag("--engine", unix_url(&node.engine_socket()))
        .flag("--socket", node.mesh_socket())
        .flag("--control-socket", node.control_socket())
        .flag("--data-dir", node.state_dir().join("agent"))
        .flag("--datapath", datapath)
        .flag("--bpffs", node.bpf_dir())
        .switch("--debug-faults")
}

fn managers(record: &Record) -> impl Iterator<Item = &super::record::NodeRecord> {
    record.nodes.iter().filter(|node| node.manager)
}

/// A socket in the form of `DOCKER_HOST`.
pub(super) fn unix_url(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

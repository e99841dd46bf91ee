//! The command line of `mesh-control`. Every flag has an environment variable, and a key in
//! control.toml.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use ipnet::Ipv4Net;
use mesh_runtime::settings::SettingsArgs;
use mesh_state::api_paths::CONTROL_SOCKET;

/// mesh's control plane: keeps the cluster's state in etcd, decides what runs where, serves
/// Docker's swarm API and the nodes.
#[derive(Debug, Clone, Parser)]
#[command(name = "mesh-control", version)]
pub struct Cli {
    /// The file with further settings.
    #[command(flatten)]
    pub settings: SettingsArgs,

    /// Client addresses of an etcd cluster of yours: https://HOST:PORT, or http:// for an etcd on
    /// this machine. Without any, this manager runs an etcd of its own, and waits for `docker swarm
    /// init` or `join` on its node.
    #[arg(long, env = "MESH_ETCD", value_name = "URL[,URL]", value_delimiter = ',')]
    pub etcd: Vec<String>,

    /// The program of the etcd that this manager runs (Debian's package etcd-server).
    #[arg(long, env = "MESH_ETCD_PROGRAM", value_name = "PATH", default_value = "etcd")]
    pub etcd_program: PathBuf,

    /// Directory of the private keys of the etcd that this manager runs, on a tmpfs: they are on no
    /// disk [default: `etcd` beside --socket].
    #[arg(long, env = "MESH_ETCD_RUN_DIR", value_name = "DIR", conflicts_with = "etcd")]
    pub etcd_run_dir: Option<PathBuf>,

    /// The CA that signed the certificates of etcd's members, PEM. `mesh etcd-certificates` makes
    /// one.
    #[arg(long, env = "MESH_ETCD_CA", value_name = "FILE", requires = "etcd")]
    pub etcd_ca: Option<PathBuf>,

    /// The certificate that this manager presents to etcd, PEM. Read again for each new connection.
    #[arg(long, env = "MESH_ETCD_CERT", value_name = "FILE", requires_all = ["etcd", "etcd_key"])]
    pub etcd_cert: Option<PathBuf>,

    /// The key of that certificate, PEM; readable by its owner alone (mode 0600).
    #[arg(long, env = "MESH_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,

    /// This manager's user in etcd, if etcd's authentication is on and doesn't go by the
    /// certificate's common name.
    #[arg(long, env = "MESH_ETCD_USER", value_name = "NAME", requires = "etcd_password_file")]
    pub etcd_user: Option<String>,

    /// File with that user's password; readable by its owner alone (mode 0600).
    #[arg(long, env = "MESH_ETCD_PASSWORD_FILE", value_name = "FILE", requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,

    /// Use plain text with an etcd on another machine. Anyone on that network can then read and
    /// change everything.
    #[arg(long, env = "MESH_ETCD_INSECURE")]
    pub etcd_insecure: bool,

    /// Directory of the cluster's key file (`key`) and the join tokens; made with mode 0700.
    /// With --etcd, further managers need the first one's `key`.
    #[arg(long, env = "MESH_DATA_DIR", value_name = "DIR", default_value = "/var/lib/mesh/control")]
    pub data_dir: PathBuf,

    /// Create a new cluster in an etcd that holds none, though this manager has the key of a
    /// cluster. Without this flag such a manager waits, as an etcd that lost its data is no new
    /// cluster. Nodes of the old cluster have to join the new one.
    #[arg(long, env = "MESH_NEW_CLUSTER")]
    pub new_cluster: bool,

    /// This manager's name, unique among managers. Default: the hostname.
    #[arg(long, env = "MESH_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// The address at which agents and other managers reach this manager. With an etcd of its own,
    /// `docker swarm init` says it.
    #[arg(long, env = "MESH_ADVERTISE", value_name = "IP", requires = "etcd")]
    pub advertise: Option<IpAddr>,

    /// Address for agents' connections (gRPC over TLS). With an etcd of its own, `docker swarm init
    /// --listen-addr` says it.
    #[arg(long, env = "MESH_NODE_LISTEN", value_name = "IP:PORT", default_value = "0.0.0.0:2377")]
    pub node_listen: SocketAddr,

    /// Socket for the swarm part of Docker's API, open to its owner alone.
    #[arg(long, env = "MESH_SOCKET", value_name = "PATH", default_value = CONTROL_SOCKET)]
    pub socket: PathBuf,

    /// Address for the Docker API over mutual TLS, for `docker -H tcp://MANAGER:2376` with a
    /// certificate of `mesh client create`; 0.0.0.0:2376 is usual. Without it, the API is served on
    /// this machine alone.
    #[arg(long, env = "MESH_DOCKER_LISTEN", value_name = "IP:PORT")]
    pub docker_listen: Option<SocketAddr>,

    /// Further names and addresses by which clients reach that API, for its certificate. It has
    /// this manager's address and host name anyway.
    #[arg(
        long,
        env = "MESH_DOCKER_NAMES",
        value_name = "HOST[,HOST]",
        value_delimiter = ',',
        requires = "docker_listen"
    )]
    pub docker_names: Vec<String>,

    /// Address for /metrics, /healthz, /readyz and /prometheus-targets [default: port 9465 of the
    /// address in --advertise].
    #[arg(long, env = "MESH_METRICS_LISTEN", value_name = "IP:PORT")]
    pub metrics_listen: Option<SocketAddr>,

    /// The pool of the addresses that nodes give their tasks, for published ports and the way out.
    /// Used when the cluster is created; choose one that contains no client and no route of the
    /// nodes.
    #[arg(long, env = "MESH_DEFAULT_ADDR_POOL", value_name = "CIDR")]
    pub default_addr_pool: Option<Ipv4Net>,

    /// The prefix length of each node's subnet of that pool: 24 leaves room for 253 tasks on a
    /// node.
    #[arg(long, env = "MESH_DEFAULT_ADDR_POOL_MASK_LENGTH", value_name = "BITS")]
    pub default_addr_pool_mask_length: Option<u8>,

    /// The pool of the subnets of networks that are created without `--subnet`, as `docker swarm
    /// init --default-addr-pool` [default: 10.0.0.0/8]. Used when the cluster is created.
    #[arg(long, env = "MESH_NETWORK_ADDR_POOL", value_name = "CIDR")]
    pub network_addr_pool: Option<Ipv4Net>,

    /// The prefix length of such a subnet [default: 24].
    #[arg(long, env = "MESH_NETWORK_ADDR_POOL_MASK_LENGTH", value_name = "BITS")]
    pub network_addr_pool_mask_length: Option<u8>,

    /// How often the leader makes a backup, as in `12h`. Set it alike on all managers: each keeps
    /// the files that it made while it led. `mesh backup` restores them.
    #[arg(
        long,
        env = "MESH_BACKUP_EVERY",
        value_name = "DURATION",
        value_parser = humantime::parse_duration,
        requires = "backup_passphrase_file"
    )]
    pub backup_every: Option<Duration>,

    /// Directory of the backups [default: `backups` in the data directory].
    #[arg(long, env = "MESH_BACKUP_DIR", value_name = "DIR", requires = "backup_every")]
    pub backup_dir: Option<PathBuf>,

    /// How many backups of the cluster stay in that directory.
    #[arg(
        long,
        env = "MESH_BACKUP_KEEP",
        value_name = "NUMBER",
        default_value_t = 14,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub backup_keep: u16,

    /// File with the passphrase that seals backups; readable by its owner alone (mode 0600).
    #[arg(long, env = "MESH_BACKUP_PASSPHRASE_FILE", value_name = "FILE", requires = "backup_every")]
    pub backup_passphrase_file: Option<PathBuf>,

    /// Log level, or directives as in `info,mesh_control::leader::driver=debug`.
    #[arg(long, env = "MESH_LOG", value_name = "LEVEL", default_value = "info")]
    pub log: String,

    /// Let clients of the metrics listener make a component of this process panic. For tests.
    #[arg(long, env = "MESH_DEBUG_FAULTS", hide = true)]
    pub debug_faults: bool,

    /// Let `docker swarm update --cert-expiry` choose a minute or more, instead of an hour. For
    /// tests.
    #[arg(long, env = "MESH_DEBUG_SHORT_CERTIFICATES", hide = true)]
    pub debug_short_certificates: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_flag_has_a_variable() {
        Cli::command().debug_assert();
        let no_settings = ["help", "version", "print_config", "check_config", "write_man_pages"];
        for argument in Cli::command()
            .get_arguments()
            .filter(|argument| !no_settings.contains(&argument.get_id().as_str()))
        {
            let expected = format!("MESH_{}", argument.get_id().as_str().to_uppercase());
            let seen = argument.get_env().map(|name| name.to_string_lossy().into_owned());
            assert_eq!(seen, Some(expected), "variable of --{}", argument.get_id());
        }
    }

    #[test]
    fn the_packages_file_is_good_with_all_its_examples() {
        let examples = include_str!("../../xtask/packaging/control.toml").replace("\n#", "\n");
        let keys = examples.lines().filter(|line| line.contains(" = "));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.toml");
        std::fs::write(&path, keys.collect::<Vec<_>>().join("\n")).unwrap();
        let read = mesh_runtime::settings::read::<Cli>(["mesh-control".into()], &path).unwrap();
        assert_eq!(read.cli.etcd.len(), 3);
        assert!(read.cli.etcd_key.is_some());
    }

    #[test]
    fn several_etcd_addresses_are_taken() {
        let cli = Cli::try_parse_from([
            "mesh-control",
            "--etcd",
            "http://a:1,http://b:1",
            "--advertise",
            "10.0.0.1",
        ]);
        assert_eq!(cli.unwrap().etcd, ["http://a:1", "http://b:1"]);
    }
}

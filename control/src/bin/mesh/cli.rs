//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use mesh_etcd_pki::{CA_FILE, CLIENT_FILE};
use mesh_state::api_paths::CONTROL_SOCKET;
use mesh_state::lb::Policy;

use crate::backup::BackupCommand;
use crate::client::Host;

/// Shows the mesh and changes its settings.
///
/// Everything else is docker's: use the docker CLI on the same host to see and change services,
/// tasks, nodes and join tokens.
#[derive(Debug, Parser)]
#[command(name = "mesh", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Docker API to talk to: unix:///path or tcp://host:port.
    #[arg(long, env = "MESH_HOST", default_value = "unix:///run/mesh/docker.sock", global = true)]
    pub(crate) host: Host,
    /// Output format.
    #[arg(short, long, env = "MESH_OUTPUT", value_enum, default_value_t = Output::Table, global = true)]
    pub(crate) output: Output,
    /// What the call does.
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 no such object; 4 the host can't be \
                          reached, is no manager, or has lost etcd; 5 check found errors, or warnings with --strict; 6 check \
                          or status still found some after --wait.";

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What one call of `mesh` does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check this machine, make a cluster with it as the first manager, and print what to do next.
    /// The same as `docker swarm init` beside that.
    Up {
        /// Address or interface by which other nodes reach this one; needed if it has several.
        #[arg(long, value_name = "ADDRESS|INTERFACE")]
        advertise_addr: Option<String>,
        /// Don't check the machine first.
        #[arg(long)]
        skip_check: bool,
    },
    /// Check this machine, and let it join a cluster. The same as `docker swarm join` beside that.
    Join {
        /// The cluster's token, from `mesh token worker` or `mesh token manager` on a manager.
        #[arg(long)]
        token: String,
        /// A manager's address; its port is 2377 if it has none.
        #[arg(value_name = "MANAGER[:PORT]")]
        manager: String,
        /// Address or interface by which other nodes reach this one; needed if it has several.
        #[arg(long, value_name = "ADDRESS|INTERFACE")]
        advertise_addr: Option<String>,
        /// Don't check the machine first.
        #[arg(long)]
        skip_check: bool,
    },
    /// Show or set how new connections are spread over a service's tasks.
    Policy {
        /// Get or set.
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Show how the mesh serves a service: all of its mesh.lb.* settings, and the weight of each of
    /// its tasks.
    Service {
        /// What the call does with services.
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// Show what is wrong, then nodes with their liveness and weight, the leader, and services with
    /// their policy, running and desired tasks.
    Status(StatusArgs),
    /// Show why the slots of a service have the tasks that they have, or none: what each waits for,
    /// the nodes that refuse it and why, exit codes and the last log lines of what failed.
    Why {
        /// A service or a task: name, id or id prefix; or a slot, as web.3.
        #[arg(value_name = "SERVICE|TASK")]
        asked: String,
    },
    /// Look for what keeps mesh from working on this node or in its cluster; each finding has its
    /// cure. Without --pre, --node or --cluster: this node, and its cluster if it has a manager.
    Check(CheckArgs),
    /// Save the cluster to a sealed file, and restore it: onto this cluster, or on a new machine.
    Backup {
        /// What the call does with backups.
        #[command(subcommand)]
        command: BackupCommand,
    },
    /// Print the token that lets a node join, for mesh-agent's --join-token-file.
    Token {
        /// The role of the node that joins.
        role: Role,
    },
    /// Issue, list and revoke certificates by which docker on other machines uses the cluster, if
    /// managers serve it (docker-listen in control.toml). Runs on a manager, as root.
    Client(ClientArgs),
    /// Make a context of the docker CLI for this user, so that `docker --context mesh` finds the
    /// cluster, or let it go to the address in --host if there is one.
    Context {
        /// Also make it the current context: then `docker` alone finds the cluster.
        #[arg(long = "use")]
        make_current: bool,
    },
    /// Print the completions for a shell. The package installs those of bash, zsh and fish.
    Completions {
        /// The shell whose completions are printed.
        shell: Shell,
    },
    /// Write the manual pages to a directory. For packages.
    #[command(hide = true)]
    ManPages {
        /// The directory of the pages; made if it doesn't exist.
        directory: PathBuf,
    },
    /// Make the certificates by which etcd's members and mesh-control authenticate one another, or
    /// renew them with the CA in the directory. Contacts no server.
    EtcdCertificates {
        /// Directory of the CA; gets NAME.pem and NAME.key for each member, client.pem and
        /// client.key for mesh-control and etcdctl.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Validity in days.
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u64).range(1..=7300))]
        days: u64,
        /// etcd's members with their addresses and host names, as etcd-1=10.0.0.1,etcd-1.example.
        #[arg(required = true, value_name = "NAME=ADDRESS[,ADDRESS]", value_parser = member)]
        members: Vec<Member>,
    },
}

/// What `mesh client` does, and where the manager is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientArgs {
    /// The socket of mesh-control on this machine.
    #[arg(long, env = "MESH_CONTROL_SOCKET", value_name = "PATH", default_value = CONTROL_SOCKET, global = true)]
    pub(crate) socket: PathBuf,
    /// What the call does with clients.
    #[command(subcommand)]
    pub(crate) command: ClientCommand,
}

/// What `mesh client` does.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ClientCommand {
    /// Make a key and have a certificate issued for it. Whoever has both commands the cluster until
    /// the certificate expires or is revoked.
    Create {
        /// The client's name: it is in the certificate, and in managers' logs beside what it does.
        name: String,
        /// Directory that gets ca.pem, cert.pem and key.pem (mode 0600); made if it doesn't exist.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How long the certificate is valid, from 1m to 730d. It isn't renewed: issue another one.
        #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = humantime::parse_duration)]
        expires: Duration,
        /// Also make a context of that name for this user's docker.
        #[arg(long)]
        context: bool,
    },
    /// List clients with the state of their certificates.
    Ls,
    /// Refuse a client from now on, on all managers, and close its connections.
    Revoke {
        /// The client's name.
        name: String,
    },
}

/// How `mesh status` waits.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct StatusArgs {
    /// Wait until there is no error and every service has its tasks, at most this long; exit with 6
    /// if that isn't so by then.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) wait: Option<Duration>,
}

/// What `mesh check` looks at.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CheckArgs {
    /// Look at this machine alone, as before mesh is installed.
    #[arg(long, conflicts_with_all = ["node", "cluster"])]
    pub(crate) pre: bool,
    /// Look at this machine and its agent.
    #[arg(long)]
    pub(crate) node: bool,
    /// Look at the cluster, through its API and the metrics of its nodes.
    #[arg(long)]
    pub(crate) cluster: bool,
    /// Look again until there is no error, at most this long.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) wait: Option<Duration>,
    /// Fail on warnings as well.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Print only warnings and errors.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// A member of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// The member's name, and that of its files.
    pub(crate) name: String,
    /// Its addresses and host names.
    pub(crate) addresses: Vec<String>,
}

/// Parses `etcd-1=10.0.0.1,etcd-1.example`.
fn member(text: &str) -> Result<Member, String> {
    let is_plain = |word: &str| {
        !word.is_empty()
            && !word.starts_with('.')
            && word.chars().all(|character| character.is_ascii_alphanumeric() || "-_.:".contains(character))
    };
    let (name, addresses) = text.split_once('=').ok_or("expected NAME=ADDRESS, as etcd-1=10.0.0.1")?;
    let addresses: Vec<String> = addresses.split(',').map(str::to_owned).collect();
    if !is_plain(name) || !addresses.iter().all(|address| is_plain(address)) {
        return Err("names and addresses have letters, digits, '-', '_', '.' and ':'".to_owned());
    }
    if [CA_FILE, CLIENT_FILE].contains(&name) {
        return Err(format!("a member can't be called {name}: another file has that name"));
    }
    Ok(Member { name: name.to_owned(), addresses })
}

/// Get or set.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Print a service's policy.
    Get {
        /// Name, id or id prefix.
        service: String,
    },
    /// Set a service's policy. It applies to new connections at once; no task restarts, live
    /// connections stay.
    Set {
        /// Name, id or id prefix.
        service: String,
        /// How new connections get their backend.
        #[arg(value_parser = PossibleValuesParser::new(Policy::ALL.iter().map(|policy| policy.as_str())).try_map(|text| text.parse::<Policy>()))]
        policy: Policy,
    },
}

/// The commands for one service.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Print every setting with its label, and the tasks with the weights in effect. Change
    /// settings with docker service update --label-add.
    Show {
        /// Name, id or id prefix.
        service: String,
    },
}

/// A node's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Runs tasks.
    Worker,
    /// Also runs the control plane.
    Manager,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn members_of_etcd_are_parsed_and_bad_ones_refused() {
        let read = member("etcd-1=10.0.0.1,etcd-1.example").unwrap();
        assert_eq!(read.name, "etcd-1");
        assert_eq!(read.addresses, ["10.0.0.1", "etcd-1.example"]);
        for bad in ["etcd-1", "=10.0.0.1", "a=", "../a=10.0.0.1", "a=10.0.0.1,", "ca=10.0.0.1", "client=a"] {
            assert!(member(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_unknown_policy_is_refused_with_the_known_ones() {
        let error = Cli::try_parse_from(["mesh", "policy", "set", "web", "fastest"]).unwrap_err().to_string();
        for policy in Policy::ALL {
            assert!(error.contains(policy.as_str()), "expected {policy} in {error}");
        }
    }
}

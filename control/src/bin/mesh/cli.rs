//! The command line.

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Parser, Subcommand, ValueEnum};
use mesh_state::lb::Policy;

use crate::client::Host;

/// Shows the mesh and turns its knobs.
///
/// Everything else is docker's: services, tasks, nodes and join tokens are seen and changed with the docker CLI on the same host.
#[derive(Debug, Parser)]
#[command(name = "mesh", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Docker API to talk to: unix:///path or tcp://host:port.
    #[arg(long, env = "MESH_HOST", default_value = "unix:///run/mesh/docker.sock", global = true)]
    pub(crate) host: Host,
    /// How to print.
    #[arg(short, long, env = "MESH_OUTPUT", value_enum, default_value_t = Output::Table, global = true)]
    pub(crate) output: Output,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 no such object; 4 the host can't be \
                          reached, is no manager, or has lost etcd.";

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// How new connections are spread over a service's tasks.
    Policy {
        /// Get or set.
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// How the mesh serves a service: all of its mesh.lb.* settings, and what each of its tasks weighs.
    Service {
        /// What to do with it.
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// Nodes with their liveness and weight, the leader, and services with their policy, running and desired tasks.
    Status,
    /// The token that lets a node join, for mesh-agent's --join-token-file.
    Token {
        /// The role that it joins in.
        role: Role,
    },
}

/// Get or set.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Print a service's policy.
    Get {
        /// Name, id or the beginning of an id.
        service: String,
    },
    /// Set a service's policy. It applies to new connections at once; no task restarts, live connections stay.
    Set {
        /// Name, id or the beginning of an id.
        service: String,
        /// The policy.
        #[arg(value_parser = PossibleValuesParser::new(Policy::ALL.map(Policy::as_str)).try_map(|text| text.parse::<Policy>()))]
        policy: Policy,
    },
}

/// What to do with a service.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Print every setting with its label, and the tasks with the weights in effect. Change settings with docker service update
    /// --label-add.
    Show {
        /// Name, id or the beginning of an id.
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
    fn an_unknown_policy_is_refused_with_the_good_ones() {
        let error = Cli::try_parse_from(["mesh", "policy", "set", "web", "fastest"]).unwrap_err().to_string();
        for policy in Policy::ALL {
            assert!(error.contains(policy.as_str()), "expected {policy} in {error}");
        }
    }
}

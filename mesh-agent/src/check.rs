//! `mesh-agent check`: what would keep the agent from working on this machine. Its unit prints that
//! at each start.
//!
//! Left to others: the rules (mesh-check), and the running agent and its cluster (`mesh check`).

use anyhow::ensure;
use mesh_check::facts::AgentPorts;
use mesh_check::show::{self, Style};
use mesh_check::{Expected, collect, errors, rules};
use mesh_state::cluster::task_pool;

use crate::cli::{CheckArgs, Datapath};
use crate::config::METRICS_PORT;

/// Prints what is found. Blocks.
///
/// # Errors
/// Something is found that keeps mesh from working.
pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let expected = expected(args);
    let findings = rules::node(&collect::host(&expected), &expected);
    let said = show::text(&findings, Style { is_quiet: args.quiet, ..Style::default() });
    if !said.is_empty() {
        println!("{said}");
    }
    ensure!(errors(&findings) == 0, "this machine is not ready for mesh");
    Ok(())
}

/// What the settings make the agent need.
fn expected(args: &CheckArgs) -> Expected {
    let ports = AgentPorts {
        tunnel: args.vxlan_port,
        encryption: args.wireguard_port,
        relay: args.relay_listen.port(),
        metrics: args.metrics_listen.map_or(METRICS_PORT, |listen| listen.port()),
    };
    Expected {
        engine: args.engine.clone(),
        ports: ports.needed(),
        pools: vec![task_pool()],
        has_kernel_programs: args.datapath != Datapath::Userspace,
        etcd: None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn the_agents_settings_say_what_is_needed() {
        let words =
            ["mesh-agent", "check", "--pre", "--quiet", "--vxlan-port", "7", "--datapath", "userspace"];
        let Some(Command::Check(args)) = Cli::try_parse_from(words).expect("good flags").command else {
            panic!("another command")
        };
        let seen = expected(&args);
        assert!(args.pre && args.quiet && !seen.has_kernel_programs);
        assert_eq!(seen.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [7, 4801, 4800, 9464]);
    }
}

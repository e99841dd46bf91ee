//! `mesh check`: collects facts of this node and its cluster, and prints what mesh-check finds in
//! them.

use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use mesh_check::show::{self, Style};
use mesh_check::{ClusterFacts, Expected, Finding, Scrape, collect, errors, rules, warnings};
use mesh_control::managed_etcd::arguments::QUOTA_BYTES;
use mesh_state::cluster::task_pool;
use serde_json::Value;

use crate::cli::{CheckArgs, Output};
use crate::client::{Client, ClientError, Host};

/// The pause between two looks of `--wait`.
const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// Metrics that are read at once.
const SCRAPES_AT_ONCE: usize = 32;
/// The cure of a check that panics.
const FAULT: &str = "report this as a fault of mesh";
/// The ports of metrics where no setting says another.
const AGENT_METRICS: u16 = 9464;
const MANAGER_METRICS: u16 = 9465;

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scope {
    machine: bool,
    agent: bool,
    cluster: bool,
}

/// Prints the findings; the exit code tells whether there are errors.
pub(crate) async fn run(host: &Host, args: &CheckArgs, output: Output) -> ExitCode {
    let client = Client::new(host.clone());
    let scope = scope(args);
    let begun = Instant::now();
    loop {
        let findings = look(&client, scope).await;
        let fails = fails(&findings, args.strict);
        let is_late = args.wait.is_none_or(|limit| begun.elapsed() >= limit);
        if fails && !is_late {
            tokio::time::sleep(LOOK_PAUSE).await;
            continue;
        }
        let said = match output {
            Output::Json => show::json(&findings),
            Output::Table => show::text(&findings, style(args.quiet)),
        };
        if !said.is_empty() {
            println!("{said}");
        }
        return ExitCode::from(exit_code(fails, args.wait.is_some()));
    }
}

fn scope(args: &CheckArgs) -> Scope {
    let all = !(args.pre || args.node || args.cluster);
    Scope { machine: args.pre || args.node || all, agent: args.node || all, cluster: args.cluster || all }
}

fn fails(findings: &[Finding], strict: bool) -> bool {
    errors(findings) > 0 || (strict && warnings(findings) > 0)
}

/// The exit codes that `--help` documents.
fn exit_code(fails: bool, has_waited: bool) -> u8 {
    match (fails, has_waited) {
        (false, _) => 0,
        (true, false) => 5,
        (true, true) => 6,
    }
}

fn style(is_quiet: bool) -> Style {
    // Any value of NO_COLOR but an empty one (no-color.org).
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Style { is_coloured: !is_plain && std::io::stdout().is_terminal(), is_quiet }
}

async fn look(client: &Client, scope: Scope) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (expected, machine) = match tokio::task::spawn_blocking(move || machine(scope.machine)).await {
        Ok(found) => found,
        Err(error) => {
            return vec![Finding::error("check.itself", format!("the check broke off: {error}"), FAULT)];
        }
    };
    findings.extend(machine);
    if !(scope.agent || scope.cluster) {
        return findings;
    }
    let info = match client.get("/info").await {
        Ok(info) => info,
        Err(error) => {
            findings.push(unreachable(&error));
            return findings;
        }
    };
    if scope.agent {
        findings.extend(agent(&info, expected.metrics_port().unwrap_or(AGENT_METRICS)).await);
    }
    if scope.cluster {
        findings.extend(cluster(client, info).await);
    }
    findings
}

/// What is found on this machine, as by `mesh check --pre`.
pub(crate) async fn machine_only() -> Vec<Finding> {
    match tokio::task::spawn_blocking(|| machine(true)).await {
        Ok((_, findings)) => findings,
        Err(error) => vec![Finding::error("check.itself", format!("the check broke off: {error}"), FAULT)],
    }
}

/// What is expected of this machine and, if it is `wanted`, what was found on it. Blocks.
fn machine(wanted: bool) -> (Expected, Vec<Finding>) {
    let (agent, control) = (collect::settings_of("mesh-agent"), collect::settings_of("mesh-control"));
    let expected = Expected::by_settings(agent.as_ref(), control.as_ref(), (task_pool(), QUOTA_BYTES));
    let findings = if wanted { rules::node(&collect::host(&expected), &expected) } else { Vec::new() };
    (expected, findings)
}

fn unreachable(error: &ClientError) -> Finding {
    let cure = "systemctl start mesh-agent, as root or a member of the group docker; journalctl -u mesh-agent says why it doesn't run";
    Finding::error("node.agent", format!("no agent answers: {}", mesh_runtime::error_chain(error)), cure)
}

/// What the agent of this node tells of itself; nothing while it is in no cluster, as it has no
/// metrics then.
async fn agent(info: &Value, port: u16) -> Vec<Finding> {
    let swarm = &info["Swarm"];
    let address = swarm["NodeAddr"].as_str().and_then(|address| address.parse::<IpAddr>().ok());
    let mut findings = vec![Finding::ok("node.agent", "the agent answers on its docker.sock")];
    if let Some(address) = address.filter(|_| swarm["LocalNodeState"] == "active") {
        let name = info["Name"].as_str().unwrap_or("this node").to_owned();
        let scraped = tokio::task::spawn_blocking(move || collect::scrape(&name, false, address, port)).await;
        findings.extend(scraped.iter().flat_map(rules::agent));
    }
    findings
}

/// What the cluster's API and the metrics of its nodes tell.
async fn cluster(client: &Client, info: Value) -> Vec<Finding> {
    let mut facts = ClusterFacts { info, ..ClusterFacts::default() };
    if facts.info["Swarm"]["ControlAvailable"] == true {
        let (nodes, swarm) = tokio::join!(client.get("/nodes"), client.get("/swarm"));
        let (nodes, swarm) = match (nodes, swarm) {
            (Ok(nodes), Ok(swarm)) => (nodes, swarm),
            (Err(error), _) | (_, Err(error)) => {
                let seen = format!(
                    "the manager on this node can't tell its cluster: {}",
                    mesh_runtime::error_chain(&error)
                );
                return vec![Finding::error("cluster.managers", seen, "journalctl -u mesh-control")];
            }
        };
        facts.nodes = nodes.as_array().cloned().unwrap_or_default();
        facts.swarm = swarm;
        facts.scrapes = scrapes(&facts.nodes).await;
    }
    rules::cluster(&facts)
}

async fn scrapes(nodes: &[Value]) -> Vec<Scrape> {
    let targets: Vec<(String, bool, IpAddr, u16)> = nodes
        .iter()
        .filter_map(|node| {
            let name = node["Description"]["Hostname"].as_str()?.to_owned();
            let address = node["Status"]["Addr"].as_str()?.parse().ok()?;
            let is_manager = node["ManagerStatus"].is_object();
            let manager = is_manager.then(|| (name.clone(), true, address, MANAGER_METRICS));
            Some([Some((name, false, address, AGENT_METRICS)), manager])
        })
        .flatten()
        .flatten()
        .collect();
    let read = |(name, is_manager, address, port): (String, bool, IpAddr, u16)| {
        tokio::task::spawn_blocking(move || collect::scrape(&name, is_manager, address, port))
    };
    let read = stream::iter(targets).map(read).buffered(SCRAPES_AT_ONCE);
    read.filter_map(|scrape| std::future::ready(scrape.ok())).collect().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_at_follows_the_flags() {
        let seen = |args: CheckArgs| {
            let scope = scope(&args);
            (scope.machine, scope.agent, scope.cluster)
        };
        assert_eq!(seen(CheckArgs::default()), (true, true, true));
        assert_eq!(seen(CheckArgs { pre: true, ..CheckArgs::default() }), (true, false, false));
        assert_eq!(seen(CheckArgs { node: true, ..CheckArgs::default() }), (true, true, false));
        assert_eq!(seen(CheckArgs { cluster: true, ..CheckArgs::default() }), (false, false, true));
    }

    #[test]
    fn the_exit_code_tells_of_errors() {
        let warned = [Finding::warning("a.b", "seen", "cure")];
        let failed = [Finding::error("a.b", "seen", "cure")];
        assert!(!fails(&warned, false) && fails(&warned, true) && fails(&failed, false));
        assert_eq!([exit_code(false, true), exit_code(true, false), exit_code(true, true)], [0, 5, 6]);
    }
}

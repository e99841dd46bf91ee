//! `mesh up` and `mesh join`: what `docker swarm init` and `docker swarm join` do, in one step with
//! the check of the machine, and with what to do next.

use anyhow::{Context as _, bail};
use mesh_check::show::{self, Style};
use mesh_check::{Finding, errors};
use serde_json::{Value, json};

use crate::check;
use crate::cli::Output;
use crate::client::{Client, segment};

/// The managers' port, which an address without one gets.
const MANAGER_PORT: u16 = 2377;

/// Makes a cluster with this machine as its first manager.
///
/// # Errors
/// The check of the machine has errors, or the node refuses.
pub(crate) async fn up(
    client: &Client,
    advertise: Option<&str>,
    skip_check: bool,
    output: Output,
) -> anyhow::Result<String> {
    look_first(client, skip_check).await?;
    let body = json!({
        "ListenAddr": format!("0.0.0.0:{MANAGER_PORT}"),
        "AdvertiseAddr": advertise.unwrap_or_default(),
        "Spec": {},
    });
    let made = client.post("/swarm/init", &body).await.context("make the cluster")?;
    let id = made.as_str().ok_or_else(|| client.unreadable("no node id after /swarm/init"))?;
    let node = client.get(&format!("/nodes/{}", segment(id))).await.context("read the new manager")?;
    let address = node["ManagerStatus"]["Addr"]
        .as_str()
        .ok_or_else(|| client.unreadable("a manager without ManagerStatus.Addr"))?;
    let swarm = client.get("/swarm").await.context("read the join tokens")?;
    let token = swarm["JoinTokens"]["Worker"]
        .as_str()
        .ok_or_else(|| client.unreadable("no worker token in /swarm"))?;
    Ok(match output {
        Output::Table => after_up(id, address, token),
        Output::Json => json!({"node": id, "address": address, "workerToken": token}).to_string(),
    })
}

/// Makes this machine a member of the cluster of `manager`.
///
/// # Errors
/// The check of the machine has errors, or the node or the manager refuses.
pub(crate) async fn join(
    client: &Client,
    (token, manager): (&str, &str),
    advertise: Option<&str>,
    skip_check: bool,
    output: Output,
) -> anyhow::Result<String> {
    look_first(client, skip_check).await?;
    let body = json!({
        "ListenAddr": format!("0.0.0.0:{MANAGER_PORT}"),
        "AdvertiseAddr": advertise.unwrap_or_default(),
        "RemoteAddrs": [with_port(manager)],
        "JoinToken": token,
    });
    client.post("/swarm/join", &body).await.context("join the cluster")?;
    let info = client.get("/info").await.context("read this node's state")?;
    let role = if info["Swarm"]["ControlAvailable"] == true { "manager" } else { "worker" };
    Ok(match output {
        Output::Table => {
            format!("This node joined the cluster as a {role}. mesh check tells whether all is well.")
        }
        Output::Json => json!({"node": info["Swarm"]["NodeID"], "role": role}).to_string(),
    })
}

/// Looks for what would keep mesh from working on this machine. A node that is a member already is
/// left to the API, which refuses with Swarm's words: its own ports would be found taken.
async fn look_first(client: &Client, skip_check: bool) -> anyhow::Result<()> {
    let info = client.get("/info").await.context("read this node's state")?;
    if skip_check || is_member(&info) {
        return Ok(());
    }
    let findings: Vec<Finding> = check::machine_only().await;
    if errors(&findings) > 0 {
        let said = show::text(&findings, Style { is_coloured: false, is_quiet: true });
        bail!("this machine isn't ready; mend it, or go on with --skip-check:\n{said}");
    }
    Ok(())
}

fn is_member(info: &Value) -> bool {
    info["Swarm"]["LocalNodeState"].as_str().is_some_and(|state| state != "inactive")
}

/// The address with the managers' port, unless it has one.
fn with_port(manager: &str) -> String {
    let is_bare_ipv6 = manager.parse::<std::net::Ipv6Addr>().is_ok();
    match manager.rsplit_once(':') {
        _ if is_bare_ipv6 => format!("[{manager}]:{MANAGER_PORT}"),
        Some((_, port)) if port.parse::<u16>().is_ok() => manager.to_owned(),
        _ => format!("{manager}:{MANAGER_PORT}"),
    }
}

/// What `mesh up` prints for people.
fn after_up(id: &str, address: &str, token: &str) -> String {
    format!(
        "This machine is the first manager of a new cluster (node {id}).\n\
         \n\
         On each machine that joins, with the packages installed:\n\
         \n    mesh join --token {token} {address}\n\
         \n\
         `mesh token manager` prints the token of further managers; three survive the loss of one.\n\
         \n\
         A first service, which every node answers for:\n\
         \n    mesh context\n    docker --context mesh service create --name web --replicas 2 -p 80:80 nginx\n\
         \n\
         `mesh check` looks for problems, `mesh status` shows nodes and services."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_the_managers_port() {
        for (given, expected) in [
            ("10.0.0.1", "10.0.0.1:2377"),
            ("10.0.0.1:4000", "10.0.0.1:4000"),
            ("manager.example", "manager.example:2377"),
            ("fd00::1", "[fd00::1]:2377"),
            ("[fd00::1]", "[fd00::1]:2377"),
            ("[fd00::1]:4000", "[fd00::1]:4000"),
        ] {
            assert_eq!(with_port(given), expected, "for {given}");
        }
    }

    #[test]
    fn the_command_to_join_is_told() {
        let said = after_up("abc", "10.0.0.1:2377", "SWMTKN-1-x");
        assert!(said.contains("    mesh join --token SWMTKN-1-x 10.0.0.1:2377\n"), "{said}");
    }

    #[test]
    fn a_locked_node_is_a_member() {
        let state = |text: &str| is_member(&json!({"Swarm": {"LocalNodeState": text}}));
        assert_eq!([state("inactive"), state("active"), state("locked")], [false, true, true]);
    }
}

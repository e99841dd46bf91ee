//! `mesh status`: shows what is wrong, nodes, the leader and services.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chrono::Utc;
use mesh_state::lb::node_weight;
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use crate::UNREACHABLE;
use crate::cli::Output;
use crate::client::{Client, ClientError};
use crate::policy::policy_of;
use crate::problems::{self, Problem};
use crate::service::labels_of;
use crate::table;

/// The pause between two looks of `--wait`.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// The state of the cluster.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Status {
    leader: Option<String>,
    /// Why what is shown may be old: the host's manager can't reach etcd.
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    /// What is wrong, the worst first.
    problems: Vec<Problem>,
    nodes: Vec<Node>,
    services: Vec<Service>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Node {
    name: String,
    id: String,
    address: String,
    role: String,
    /// `ready`, `silent` (not heard for two seconds, gets no new connections) or `down`.
    liveness: String,
    availability: String,
    /// The factor for the weights of the tasks on it.
    weight: NonZeroU32,
    leader: bool,
    subnet: String,
    datapath: String,
    /// How far its clock is ahead of its manager's, milliseconds; 0 if less than a second.
    clock_ahead_ms: i64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Service {
    name: String,
    id: String,
    mode: &'static str,
    running: u64,
    desired: u64,
    ports: Vec<String>,
    policy: String,
}

/// Prints the cluster's state.
///
/// # Errors
/// [`StillUnwell`] if there is an error or a service lacks tasks at the end of `wait`; a manager
/// can't be asked.
pub(crate) async fn show(client: &Client, wait: Option<Duration>, output: Output) -> anyhow::Result<String> {
    let begun = Instant::now();
    loop {
        let seen = look(client, output).await;
        let is_time_left = wait.is_some_and(|limit| begun.elapsed() < limit);
        match seen {
            Ok((_, false)) if is_time_left => {}
            // Managers elect a leader, or the agent is restarted.
            Err(error) if is_time_left && crate::exit_code(&error) == UNREACHABLE => {}
            Ok((said, false)) if wait.is_some() => {
                println!("{said}");
                return Err(StillUnwell.into());
            }
            Ok((said, _)) => return Ok(said),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Something was still wrong when the time to wait was over.
#[derive(Debug, Error)]
#[error("something is still wrong, or a service still lacks tasks: see above")]
pub(crate) struct StillUnwell;

/// The state, and whether there is no error and every service has its tasks.
async fn look(client: &Client, output: Output) -> anyhow::Result<(String, bool)> {
    let verdict = problems::read(client).await?;
    let info = client.get("/info").await.context("read what the host knows of the cluster")?;
    let nodes = client.get("/nodes").await.context("read the nodes")?;
    let services = client.get("/services?status=true").await.context("read the services")?;
    let list = |value: &Value, what: &str| -> Result<Vec<Value>, ClientError> {
        value.as_array().cloned().ok_or_else(|| client.unreadable(format!("no list of {what}")))
    };
    let leader = info["Swarm"]["Mesh"]["Leader"].as_str().map(str::to_owned);
    let mut status = Status::read(leader, &list(&nodes, "nodes")?, &list(&services, "services")?);
    status.error = text(&info["Swarm"]["Error"]);
    let head = verdict.text(Utc::now());
    let is_well = verdict.is_well();
    status.problems = verdict.problems;
    let said = match output {
        Output::Table => format!("{head}\n\n{}", status.table()),
        Output::Json => serde_json::to_string(&status).context("write the status as JSON")?,
    };
    Ok((said, is_well))
}

impl Status {
    /// Collects the status from the API's answers.
    ///
    /// `leader` is known before the leader's node has joined; if the host doesn't give it, the
    /// leader's node shows it.
    fn read(leader: Option<String>, nodes: &[Value], services: &[Value]) -> Self {
        let mut nodes: Vec<Node> = nodes.iter().map(Node::read).collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        let mut services: Vec<Service> = services.iter().map(Service::read).collect();
        services.sort_by(|one, other| one.name.cmp(&other.name));
        let leading_node = || nodes.iter().find(|node| node.leader).map(|node| node.name.clone());
        Self {
            leader: leader.or_else(leading_node),
            error: String::new(),
            problems: Vec::new(),
            nodes,
            services,
        }
    }

    fn table(&self) -> String {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                [
                    node.name.clone(),
                    node.address.clone(),
                    if node.leader { "leader".to_owned() } else { node.role.clone() },
                    node.liveness.clone(),
                    node.availability.clone(),
                    node.weight.to_string(),
                    node.subnet.clone(),
                    node.datapath.clone(),
                ]
            })
            .collect();
        let services: Vec<_> = self
            .services
            .iter()
            .map(|service| {
                [
                    service.name.clone(),
                    service.mode.to_owned(),
                    format!("{}/{}", service.running, service.desired),
                    service.ports.join(","),
                    service.policy.clone(),
                ]
            })
            .collect();
        let node_headings =
            ["NODE", "ADDRESS", "ROLE", "STATE", "AVAILABILITY", "WEIGHT", "SUBNET", "DATAPATH"];
        let service_headings = ["SERVICE", "MODE", "TASKS", "PORTS", "POLICY"];
        let old = match self.error.as_str() {
            "" => String::new(),
            error => format!("\nthis is what the manager saw last: {error}\n"),
        };
        format!(
            "{}\n{old}\n{}",
            table::render(node_headings, &nodes),
            table::render(service_headings, &services)
        )
    }
}

impl Node {
    fn read(node: &Value) -> Self {
        let liveness = node["Mesh"]["Liveness"].as_str().or_else(|| node["Status"]["State"].as_str());
        Self {
            name: text(&node["Description"]["Hostname"]),
            id: text(&node["ID"]),
            address: text(&node["Status"]["Addr"]),
            role: text(&node["Spec"]["Role"]),
            liveness: liveness.unwrap_or("unknown").to_owned(),
            availability: text(&node["Spec"]["Availability"]),
            weight: node_weight(&labels_of(&node["Spec"])).unwrap_or(NonZeroU32::MIN),
            leader: node["ManagerStatus"]["Leader"].as_bool().unwrap_or(false),
            subnet: text(&node["Mesh"]["Subnet"]),
            datapath: text(&node["Mesh"]["Datapath"]),
            clock_ahead_ms: node["Mesh"]["ClockAheadMs"].as_i64().unwrap_or(0),
        }
    }
}

impl Service {
    fn read(service: &Value) -> Self {
        let status = &service["ServiceStatus"];
        let ports = service["Endpoint"]["Ports"].as_array();
        Self {
            name: text(&service["Spec"]["Name"]),
            id: text(&service["ID"]),
            mode: mode(&service["Spec"]["Mode"]),
            running: status["RunningTasks"].as_u64().unwrap_or(0),
            desired: status["DesiredTasks"].as_u64().unwrap_or(0),
            ports: ports.into_iter().flatten().map(port).collect(),
            policy: policy_of(service).to_owned(),
        }
    }
}

/// The mode as `docker service ls` names it.
fn mode(mode: &Value) -> &'static str {
    let kinds = [("Global", "global"), ("ReplicatedJob", "replicated job"), ("GlobalJob", "global job")];
    let found = kinds.into_iter().find(|(key, _)| mode[key].is_object());
    found.map_or("replicated", |(_, name)| name)
}

/// `80->8080/tcp`, with a star before a port that every node answers on.
fn port(port: &Value) -> String {
    let star = if port["PublishMode"] == "host" { "" } else { "*:" };
    let published = port["PublishedPort"].as_u64().unwrap_or(0);
    let target = port["TargetPort"].as_u64().unwrap_or(0);
    format!("{star}{published}->{target}/{}", port["Protocol"].as_str().unwrap_or("tcp"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Status {
        let nodes = [
            json!({"ID": "b", "Description": {"Hostname": "node-2"}, "Spec": {"Role": "worker", "Availability": "active"},
                   "Status": {"State": "ready", "Addr": "10.0.0.2"}, "Mesh": {"Liveness": "silent"}}),
            json!({"ID": "a", "Description": {"Hostname": "node-1"}, "Spec": {"Role": "manager", "Availability": "drain", "Labels": {"mesh.lb.weight": "3"}},
                   "Status": {"State": "ready", "Addr": "10.0.0.1"}, "ManagerStatus": {"Leader": true},
                   "Mesh": {"Liveness": "ready", "Subnet": "10.128.1.0/24", "Datapath": "xdp"}}),
        ];
        let services = [json!({
            "ID": "s", "Spec": {"Name": "web", "Mode": {"Replicated": {}}, "Labels": {"mesh.lb.policy": "least-connections"}},
            "Endpoint": {"Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]},
            "ServiceStatus": {"RunningTasks": 1, "DesiredTasks": 2}
        })];
        Status::read(None, &nodes, &services)
    }

    #[test]
    fn the_leader_and_silent_nodes_are_shown() {
        let status = status();
        assert_eq!(status.leader.as_deref(), Some("node-1"));
        let expected = "\
NODE     ADDRESS    ROLE     STATE    AVAILABILITY   WEIGHT   SUBNET          DATAPATH
node-1   10.0.0.1   leader   ready    drain          3        10.128.1.0/24   xdp
node-2   10.0.0.2   worker   silent   active         1

SERVICE   MODE         TASKS   PORTS            POLICY
web       replicated   1/2     *:8080->80/tcp   least-connections";
        assert_eq!(status.table(), expected);
    }

    #[test]
    fn a_state_that_may_be_old_is_shown_as_such() {
        let status = Status { error: "no quorum".to_owned(), ..status() };
        assert!(status.table().contains("what the manager saw last: no quorum"), "saw {}", status.table());
    }
}

//! `mesh service show`: shows the settings in a service's labels, and the weights of its tasks.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use anyhow::Context as _;
use mesh_state::lb::{self, LbSettings};
use mesh_state::spec::Labels;
use mesh_state::task::Slot;
use serde::Serialize;
use serde_json::Value;

use crate::cli::Output;
use crate::client::{Client, segment};
use crate::table;

/// A service as the mesh serves it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Shown {
    service: String,
    id: String,
    settings: LbSettings,
    tasks: Vec<Task>,
    #[serde(skip)]
    labels: Labels,
}

/// One of its tasks.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Task {
    name: String,
    node: String,
    state: String,
    /// The slot's or the service's weight, times the node's.
    weight: NonZeroU32,
}

/// Prints a service's settings and its tasks' weights.
pub(crate) async fn show(client: &Client, service: &str, output: Output) -> anyhow::Result<String> {
    let found = client
        .get(&format!("/services/{}", segment(service)))
        .await
        .with_context(|| format!("read service {service}"))?;
    let id = found["ID"].as_str().ok_or_else(|| client.unreadable("a service without an ID"))?;
    let wanted = serde_json::json!({"service": [id], "desired-state": ["running"]}).to_string();
    let tasks = client.get(&format!("/tasks?filters={}", segment(&wanted))).await;
    let tasks = tasks.context("read the service's tasks")?;
    let nodes = client.get("/nodes").await.context("read the nodes")?;
    let shown = Shown::read(&found, &tasks, &nodes)?;
    Ok(match output {
        Output::Table => shown.table(),
        Output::Json => serde_json::to_string(&shown).context("write the service as JSON")?,
    })
}

impl Shown {
    fn read(service: &Value, tasks: &Value, nodes: &Value) -> anyhow::Result<Self> {
        let labels = labels_of(&service["Spec"]);
        let settings = LbSettings::from_labels(&labels).context("read the service's labels")?;
        let name = text(&service["Spec"]["Name"]);
        let nodes: BTreeMap<&str, &Value> =
            items(nodes).filter_map(|node| node["ID"].as_str().map(|id| (id, node))).collect();
        let mut shown: Vec<(Slot, Task)> = Vec::new();
        for task in items(tasks) {
            let id = task["NodeID"].as_str().unwrap_or_default();
            let node = nodes.get(id).copied().unwrap_or(&Value::Null);
            let slot = task["Slot"].as_u64().map_or_else(|| Slot::Node(id.into()), Slot::Number);
            let of_node = lb::node_weight(&labels_of(&node["Spec"])).context("read a node's labels")?;
            let task = Task {
                name: format!("{name}.{slot}"),
                node: text(&node["Description"]["Hostname"]),
                state: text(&task["Status"]["State"]),
                weight: settings.weight_of(&slot, of_node),
            };
            shown.push((slot, task));
        }
        shown.sort_by(|(one, _), (other, _)| one.cmp(other));
        let tasks = shown.into_iter().map(|(_, task)| task).collect();
        Ok(Self { service: name, id: text(&service["ID"]), settings, tasks, labels })
    }

    fn table(&self) -> String {
        let mut settings: Vec<[String; 2]> = lb::SERVICE_LABELS
            .iter()
            .map(|label| {
                let value = self.labels.get(label.key).cloned();
                [label.key.to_owned(), value.unwrap_or_else(|| format!("{} (default)", label.default))]
            })
            .collect();
        let slots = self.settings.slot_weights.iter();
        settings
            .extend(slots.map(|(slot, weight)| [format!("{}.{slot}", lb::WEIGHT_LABEL), weight.to_string()]));
        let tasks: Vec<_> = self
            .tasks
            .iter()
            .map(|task| [task.name.clone(), task.node.clone(), task.state.clone(), task.weight.to_string()])
            .collect();
        format!(
            "{}\n\n{}",
            table::render(["LABEL", "VALUE"], &settings),
            table::render(["TASK", "NODE", "STATE", "WEIGHT"], &tasks)
        )
    }
}

/// The labels in a service's or a node's spec, as the API shows it.
pub(crate) fn labels_of(spec: &Value) -> Labels {
    let labels = spec["Labels"].as_object().into_iter().flatten();
    labels.map(|(key, value)| (key.clone(), text(value))).collect()
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_have_their_labels_and_tasks_their_weights() {
        let service = json!({"ID": "s", "Spec": {"Name": "web", "Labels": {
            "mesh.lb.policy": "least-load", "mesh.lb.idle-timeout": "90s", "mesh.lb.weight.10": "3", "mine": "too"
        }}});
        let task =
            |slot: u64, node: &str| json!({"Slot": slot, "NodeID": node, "Status": {"State": "running"}});
        let nodes = json!([
            {"ID": "a", "Spec": {"Labels": {"mesh.lb.weight": "4"}}, "Description": {"Hostname": "node-1"}},
            {"ID": "b", "Spec": {"Labels": null}, "Description": {"Hostname": "node-2"}}
        ]);
        let tasks = json!([task(10, "a"), task(2, "b")]);
        let shown = Shown::read(&service, &tasks, &nodes).unwrap();
        let expected = "\
LABEL                   VALUE
mesh.lb.policy          least-load
mesh.lb.mode            tunnel (default)
mesh.lb.prefer-local    false (default)
mesh.lb.slow-start      0s (default)
mesh.lb.allow           all (default)
mesh.lb.idle-timeout    90s
mesh.lb.drain-timeout   30s (default)
mesh.lb.load-http       none (default)
mesh.lb.weight          1 (default)
mesh.lb.weight.10       3

TASK     NODE     STATE     WEIGHT
web.2    node-2   running   1
web.10   node-1   running   12";
        assert_eq!(shown.table(), expected);
    }
}

//! Looks at a running lab: what docker shows, what the engines run, what the nodes' tables hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};

use super::invariants::Seen;
use crate::cluster::{Cluster, Docker};
use crate::record::NodeRecord;

/// The label by which an engine's container names its task.
const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// What is seen of the cluster now, of these services.
///
/// # Errors
/// A socket doesn't answer.
pub(super) fn look<'a>(cluster: &Cluster, services: impl Iterator<Item = &'a String>) -> Result<Seen> {
    let docker = cluster.docker()?;
    let mut seen = Seen::default();
    let listed = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
    let rows = listed.lines().filter_map(|line| line.split_once(' '));
    seen.statuses = rows.map(|(name, status)| (name.to_owned(), status.to_owned())).collect();
    for service in services {
        for task in docker.tasks(service)?.into_iter().filter(|task| task.desired_state == "Running") {
            if task.is_running() {
                seen.running.entry(service.clone()).or_default().push((task.name, task.id));
            } else {
                seen.late
                    .push(format!("{} on {}: {} {}", task.name, task.node, task.current_state, task.error));
            }
        }
    }
    for node in &cluster.record.nodes {
        seen.containers.insert(node.name.clone(), containers(node)?);
        seen.tables.insert(node.name.clone(), backends(&cluster.metrics(node)?));
        seen.pins.insert(node.name.clone(), pins(cluster, node)?);
    }
    Ok(seen)
}

/// The tasks whose containers the node's own engine runs.
fn containers(node: &NodeRecord) -> Result<BTreeSet<String>> {
    let (filter, format) = (format!("label={TASK_LABEL}"), format!("{{{{.Label \"{TASK_LABEL}\"}}}}"));
    let listed = Docker::towards(&node.docker_host).run(&["ps", "--filter", &filter, "--format", &format])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// The backends of each service in a node's table by its metrics: how many are active, and how many
/// are not.
fn backends(metrics: &str) -> BTreeMap<String, (usize, usize)> {
    let mut found: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix("mesh_frontend_backends{service=\"")) {
        let Some((service, rest)) = line.split_once('"') else { continue };
        let Some(count) = rest.rsplit_once("} ").and_then(|(_, count)| count.parse::<usize>().ok()) else {
            continue;
        };
        let entry = found.entry(service.to_owned()).or_default();
        if rest.contains("state=\"active\"") {
            entry.0 += count;
        } else {
            entry.1 += count;
        }
    }
    found
}

/// The tasks of which the node has programs pinned in its bpffs.
fn pins(cluster: &Cluster, node: &NodeRecord) -> Result<BTreeSet<String>> {
    let layout = cluster.layout.node_named(&node.name).context("a node of the lab")?;
    let mut found = BTreeSet::new();
    for version in entries(&layout.bpf_dir())? {
        found.extend(entries(&layout.bpf_dir().join(version).join("tasks"))?);
    }
    Ok(found)
}

/// The names in a directory; none if there is no such directory.
fn entries(directory: &std::path::Path) -> Result<Vec<String>> {
    let listed = match fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        listed => listed.with_context(|| format!("list {}", directory.display()))?,
    };
    listed
        .map(|entry| Ok(entry.context("list a bpffs")?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// The services' figures that `wanted` asks for, for messages.
pub(super) fn shown(wanted: &BTreeMap<String, usize>) -> String {
    wanted.iter().map(|(service, count)| format!("{service}={count}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_counted_by_state() {
        let text = "mesh_frontend_backends{service=\"web\",port=\"80\",state=\"active\"} 3\n\
                    mesh_frontend_backends{service=\"web\",port=\"80\",state=\"draining\"} 1\n\
                    mesh_frontend_backends{service=\"web\",port=\"80\",state=\"unhealthy\"} 1\n\
                    mesh_frontend_connections{service=\"web\",port=\"80\"} 7\n";
        assert_eq!(backends(text), BTreeMap::from([("web".to_owned(), (3, 2))]));
    }
}

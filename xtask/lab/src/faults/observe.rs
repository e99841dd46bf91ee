//! Looks at a running lab: what docker shows, what the engines run, what the nodes' tables hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};

use super::invariants::Seen;
use crate::Lab;
use crate::cluster::{Cluster, Docker};
use crate::record::NodeRecord;

/// The label by which an engine's container names its task.
const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// Where a node's agent has its tasks' secrets and configs.
const TASK_FILES: &str = "/run/mesh/tasks";

/// What is seen of the cluster now, of these services.
///
/// # Errors
/// A socket doesn't answer.
pub(super) fn look<'a>(
    lab: &Lab,
    cluster: &Cluster,
    services: impl Iterator<Item = &'a String>,
) -> Result<Seen> {
    let docker = cluster.docker()?;
    let mut seen = Seen::default();
    let listed = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
    let rows = listed.lines().filter_map(|line| line.split_once(' '));
    seen.statuses = rows.map(|(name, status)| (name.to_owned(), status.to_owned())).collect();
    for service in services {
        let tasks = docker.tasks(service)?;
        seen.listed.extend(tasks.iter().map(|task| task.id.clone()));
        for task in tasks.into_iter().filter(|task| task.desired_state == "Running") {
            if task.is_running() {
                seen.running.entry(service.clone()).or_default().push((task.name, task.id));
            } else {
                seen.late
                    .push(format!("{} on {}: {} {}", task.name, task.node, task.current_state, task.error));
            }
        }
    }
    for node in &cluster.record.nodes {
        seen.containers.insert(node.name.clone(), containers(node, &[])?);
        seen.kept.insert(node.name.clone(), containers(node, &["--all"])?);
        seen.files.insert(node.name.clone(), files(lab, node)?);
        seen.tables.insert(node.name.clone(), backends(&cluster.metrics(node)?));
        seen.pins.insert(node.name.clone(), pins(lab, cluster, node)?);
        let ended = lab.ended(&node.name)?;
        seen.ended.extend(ended.iter().map(|component| format!("{component} of {}", node.name)));
    }
    let running: Vec<&str> = seen.running.values().flatten().map(|(_, id)| id.as_str()).collect();
    seen.addresses = addresses(&docker, &running)?;
    Ok(seen)
}

/// The addresses on networks that each of these tasks has.
fn addresses(docker: &Docker, tasks: &[&str]) -> Result<BTreeMap<String, Vec<String>>> {
    if tasks.is_empty() {
        return Ok(BTreeMap::new());
    }
    let format = "{{.ID}}{{range .NetworksAttachments}}{{range .Addresses}} {{.}}{{end}}{{end}}";
    let listed = docker.run(&[&["inspect", "--type", "task", "--format", format], tasks].concat())?;
    let rows = listed.lines().map(|line| {
        let mut words = line.split_whitespace().map(str::to_owned);
        (words.next().unwrap_or_default(), words.collect())
    });
    Ok(rows.collect())
}

/// The tasks whose secrets and configs lie on the node. A node that had no task since it booted has
/// no directory of them.
fn files(lab: &Lab, node: &NodeRecord) -> Result<BTreeSet<String>> {
    let script = r#"[ ! -d "$1" ] || find "$1" -mindepth 1 -maxdepth 1 -printf '%f\n'"#;
    let listed = output_of(lab, node, &["sh", "-c", script, "sh", TASK_FILES])?;
    Ok(listed.lines().filter_map(|name| name.strip_prefix("task-")).map(str::to_owned).collect())
}

/// What a command prints that is run on the node.
fn output_of(lab: &Lab, node: &NodeRecord, words: &[&str]) -> Result<String> {
    let owned: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let output = lab.command(&node.name, &owned)?.output().with_context(|| format!("start {words:?}"))?;
    ensure!(
        output.status.success(),
        "{words:?} on {}: {}",
        node.name,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The tasks whose containers the node's own engine runs; with `--all`, those of stopped ones too.
fn containers(node: &NodeRecord, flags: &[&str]) -> Result<BTreeSet<String>> {
    let (filter, format) = (format!("label={TASK_LABEL}"), format!("{{{{.Label \"{TASK_LABEL}\"}}}}"));
    let command = [&["ps", "--filter", &filter, "--format", &format], flags].concat();
    let listed = Docker::towards(&node.docker_host).run(&command)?;
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

/// The tasks of which the node has programs pinned in its bpffs, and the programs of interfaces on
/// networks (`veth` and the interface's index) that are gone.
fn pins(lab: &Lab, cluster: &Cluster, node: &NodeRecord) -> Result<BTreeSet<String>> {
    let layout = cluster.layout.node_named(&node.name).context("a node of the lab")?;
    let mut found = BTreeSet::new();
    for version in entries(&layout.bpf_dir())? {
        found.extend(entries(&layout.bpf_dir().join(version).join("tasks"))?);
    }
    let links = output_of(lab, node, &["ip", "-oneline", "link"])?;
    for index in links.lines().filter_map(|line| Some(line.split_once(':')?.0)) {
        found.remove(&format!("veth{index}"));
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

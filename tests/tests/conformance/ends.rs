//! The services under test.

use anyhow::{Context, Result};
use mesh_lab::cluster::Cluster;
use mesh_lab::record::NodeRecord;

/// The service with one task.
pub(crate) const SERVICE: &str = "conform";
/// The service that has lost its task.
pub(crate) const HOLLOW: &str = "hollowed";
/// Published ports of [`SERVICE`]: HTTP, echo over TCP, echo over UDP.
pub(crate) const HTTP: u16 = 8200;
pub(crate) const ECHO: u16 = 8207;
pub(crate) const UDP_ECHO: u16 = 8209;
/// A published UDP port of [`SERVICE`] whose target port has no listener.
pub(crate) const CLOSED: u16 = 8211;
/// Published ports of [`HOLLOW`]: TCP and UDP on one number.
pub(crate) const NOBODY: u16 = 8210;
/// The service whose task accepts the PROXY protocol, and its published port.
pub(crate) const PROXIED: &str = "proxied";
pub(crate) const PROXIED_HTTP: u16 = 8220;

/// The node that runs the task: a worker.
///
/// # Errors
/// Every node is a manager.
pub(crate) fn home(cluster: &Cluster) -> Result<&NodeRecord> {
    cluster.record.nodes.iter().find(|node| !node.manager).context("the lab has no worker")
}

/// The arguments of a service with one task on [`home`] and these published `ports`.
///
/// # Errors
/// As for [`home`].
pub(crate) fn one_task(cluster: &Cluster, ports: &[&str], label: Option<&str>) -> Result<Vec<String>> {
    let constraint = format!("node.hostname=={}", home(cluster)?.name);
    let mut words = vec!["--replicas", "1", "--constraint", &constraint];
    words.extend(ports.iter().flat_map(|port| ["-p", port]));
    words.extend(label.iter().flat_map(|label| ["--label", label]));
    words.push("whoami");
    Ok(words.into_iter().map(str::to_owned).collect())
}

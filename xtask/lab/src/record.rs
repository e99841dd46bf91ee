//! `lab.json`: the description of a lab for its users. Its form is fixed; the demo, the tests and
//! people read it.
//!
//! Invariant: its process ids were right when the last lab command ended.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::component::Component;

/// A running lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The client, which sends requests.
    pub client: ClientRecord,
    /// The nodes, in the order of their numbers.
    pub nodes: Vec<NodeRecord>,
    /// etcd's client URLs, reachable from the nodes' namespaces with a certificate (`cargo xtask
    /// lab exec node-1 -- etcdctl …`).
    pub etcd: Vec<String>,
    /// The lab's `--datapath`: auto, xdp, tc or userspace.
    pub datapath: String,
    /// Whether no cluster was formed: agents then get neither managers nor a join token.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty: bool,
    /// The directory of the nodes' clock files, which agents and control planes take the time from;
    /// `None`: the machine's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<PathBuf>,
    /// Whether the lab is in an emulated machine, where all is slower than daemons expect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emulated: bool,
}

impl Record {
    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&NodeRecord> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The `--datapath` of the node's agent.
    pub fn datapath_of<'a>(&'a self, node: &'a NodeRecord) -> &'a str {
        node.datapath.as_deref().unwrap_or(&self.datapath)
    }

    /// True if a node has another data path than the lab.
    pub fn is_mixed(&self) -> bool {
        self.nodes.iter().any(|node| self.datapath_of(node) != self.datapath)
    }

    pub(super) fn node_mut(&mut self, name: &str) -> Result<&mut NodeRecord> {
        let known = self.nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>().join(", ");
        self.nodes
            .iter_mut()
            .find(|n| n.name == name)
            .ok_or_else(|| anyhow!("no node `{name}`; there are: {known}"))
    }

    /// Reads a lab's record.
    ///
    /// # Errors
    /// There is no such lab, or the file can't be parsed.
    pub fn load(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                anyhow!("no lab is up ({} is missing); next: cargo xtask lab up", file.display())
            }
            _ => anyhow!("read {}: {e}", file.display()),
        })?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", file.display()))
    }

    /// Writes the record atomically.
    pub(super) fn store(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("encode lab.json")?;
        let fresh = file.with_extension("json.new");
        fs::write(&fresh, text + "\n").with_context(|| format!("write {}", fresh.display()))?;
        fs::rename(&fresh, file).with_context(|| format!("put {} in place", file.display()))
    }
}

/// The client's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRecord {
    /// Its network namespace, by its name in `ip netns`.
    pub netns: String,
    /// The client's address on the nodes' network.
    pub ip: Ipv4Addr,
}

/// A node of the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name, which is also its host name in the cluster.
    pub name: String,
    /// Its network namespace, by its name in `ip netns`.
    pub netns: String,
    /// The node's address on the nodes' network.
    pub ip: Ipv4Addr,
    /// True if it runs etcd and mesh-control.
    pub manager: bool,
    /// `DOCKER_HOST` of the node's own engine.
    pub docker_host: String,
    /// `DOCKER_HOST` of the socket that mesh serves.
    pub mesh_host: String,
    /// The agent's metrics, reachable from the lab's namespaces.
    pub metrics: String,
    /// Its agent's `--datapath`, if it differs from the lab's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<String>,
    /// The ids of running processes.
    pub pids: Pids,
}

/// Process ids of a node's components.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// The Docker engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerd: Option<u32>,
    /// The process of `mesh-agent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<u32>,
    /// The process of `mesh-control`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<u32>,
    /// The process of etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd: Option<u32>,
}

impl Pids {
    /// The process id of a component, if it runs.
    pub fn get(&self, component: Component) -> Option<u32> {
        match component {
            Component::Dockerd => self.dockerd,
            Component::Agent => self.agent,
            Component::Control => self.control,
            Component::Etcd => self.etcd,
        }
    }

    pub(super) fn set(&mut self, component: Component, pid: Option<u32>) {
        match component {
            Component::Dockerd => self.dockerd = pid,
            Component::Agent => self.agent = pid,
            Component::Control => self.control = pid,
            Component::Etcd => self.etcd = pid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_the_documented_one() {
        let record = Record {
            client: ClientRecord { netns: "mesh-client".into(), ip: Ipv4Addr::new(10, 77, 0, 1) },
            nodes: vec![NodeRecord {
                name: "node-1".into(),
                netns: "mesh-node-1".into(),
                ip: Ipv4Addr::new(10, 77, 0, 11),
                manager: true,
                docker_host: "unix:///e.sock".into(),
                mesh_host: "unix:///d.sock".into(),
                metrics: "http://10.77.0.11:9464/metrics".into(),
                datapath: None,
                pids: Pids { dockerd: Some(1), agent: None, control: Some(3), etcd: Some(4) },
            }],
            etcd: vec!["https://10.77.0.11:2379".into()],
            datapath: "xdp".into(),
            empty: false,
            clocks: None,
            emulated: false,
        };
        let expected = serde_json::json!({
            "client": {"netns": "mesh-client", "ip": "10.77.0.1"},
            "nodes": [{"name": "node-1", "netns": "mesh-node-1", "ip": "10.77.0.11", "manager": true,
                       "docker_host": "unix:///e.sock", "mesh_host": "unix:///d.sock",
                       "metrics": "http://10.77.0.11:9464/metrics", "pids": {"dockerd": 1, "control": 3, "etcd": 4}}],
            "etcd": ["https://10.77.0.11:2379"], "datapath": "xdp"
        });
        assert_eq!(serde_json::to_value(&record).unwrap(), expected, "lab.json's shape");
        assert_eq!(
            serde_json::from_value::<Record>(expected).unwrap(),
            record,
            "the record is decoded as encoded"
        );

        let mut mixed = record;
        mixed.nodes[0].datapath = Some("userspace".into());
        assert!(mixed.is_mixed());
        assert_eq!(mixed.datapath_of(&mixed.nodes[0]), "userspace");
        let shown = serde_json::to_value(&mixed).unwrap();
        assert_eq!(shown["nodes"][0]["datapath"], "userspace", "shown where it differs: {shown}");
    }
}

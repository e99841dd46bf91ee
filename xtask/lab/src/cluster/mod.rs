//! A running lab as its user sees it: the docker CLI, services' tasks and containers, and waiting
//! for states.
//!
//! Invariant: everything is read from the real interfaces (the unmodified `docker` command, the
//! nodes' sockets and metrics), nothing from mesh's own state.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::client::http;
use crate::layout::Layout;
use crate::netns::Netns;
use crate::record::{NodeRecord, Record};

mod docker;
mod eventually;

pub use docker::{Docker, Refusal, TaskRow};
pub use eventually::eventually;

/// The deadline of a request for `/metrics`.
const SCRAPE_DEADLINE: Duration = Duration::from_secs(5);

/// A running lab.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its paths and names, which killing and starting parts needs.
    pub layout: Layout,
    /// What the lab wrote down of its nodes and processes.
    pub record: Record,
}

impl Cluster {
    /// Opens the running lab of that layout.
    ///
    /// # Errors
    /// There is no such lab.
    pub fn open(layout: Layout) -> Result<Self> {
        let record = Record::load(&layout.record_file())?;
        Ok(Self { layout, record })
    }

    /// The client's namespace.
    pub fn client(&self) -> Netns {
        Netns::named(&self.record.client.netns)
    }

    /// The docker CLI with the first manager's socket.
    ///
    /// # Errors
    /// The lab has no manager.
    pub fn docker(&self) -> Result<Docker> {
        let manager = self.record.nodes.iter().find(|node| node.manager).context("the lab has no manager")?;
        Ok(Docker::towards(&manager.mesh_host))
    }

    /// The node of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<&NodeRecord> {
        self.record.node(name).ok_or_else(|| anyhow!("the lab has no node {name}"))
    }

    /// The addresses of `port` on every node.
    pub fn everywhere(&self, port: u16) -> Vec<SocketAddrV4> {
        self.record.nodes.iter().map(|node| SocketAddrV4::new(node.ip, port)).collect()
    }

    /// Sends a GET for `path` from the client's namespace and returns the body of a 200 answer.
    ///
    /// # Errors
    /// Any other outcome.
    pub fn ask(&self, server: SocketAddrV4, path: &str) -> Result<String> {
        let response = self.client().run(|| http::get(server, path, http::DEADLINE))?;
        ensure!(response.status == 200, "http://{server}{path} answered {}", response.status);
        Ok(response.text())
    }

    /// A node's metrics, as text.
    ///
    /// # Errors
    /// The agent doesn't answer.
    pub fn metrics(&self, node: &NodeRecord) -> Result<String> {
        let response =
            self.client().run(|| http::get(SocketAddrV4::new(node.ip, 9464), "/metrics", SCRAPE_DEADLINE))?;
        Ok(response.text())
    }

    /// The service's running containers on each node: container id to task name, by node name.
    ///
    /// # Errors
    /// A node's socket doesn't answer.
    pub fn containers(&self, service: &str) -> Result<BTreeMap<String, Vec<(String, String)>>> {
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let format = "{{.ID}} {{.Label \"com.docker.swarm.task.name\"}}";
        let mut found = BTreeMap::new();
        for node in &self.record.nodes {
            let listed =
                Docker::towards(&node.mesh_host).run(&["ps", "--filter", &filter, "--format", format])?;
            let containers = listed
                .lines()
                .filter_map(|line| line.split_once(' '))
                .map(|(id, task)| (id.to_owned(), task.to_owned()))
                .collect();
            found.insert(node.name.clone(), containers);
        }
        Ok(found)
    }

    /// Waits until exactly `count` tasks of the service run, and returns their rows.
    ///
    /// # Errors
    /// They don't within `within`; the message has the last rows.
    pub fn wait_running(&self, service: &str, count: usize, within: Duration) -> Result<Vec<TaskRow>> {
        self.docker()?.wait_running(service, count, within)
    }
}

/// The samples of one metric in a text exposition that have every pair of `labels`.
pub fn samples(exposition: &str, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
    exposition
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (set, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let all = labels.iter().all(|(label, wanted)| set.contains(&format!("{label}=\"{wanted}\"")));
            if all { value.trim().parse().ok() } else { None }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let text = "# HELP a_total x\na_total{service=\"web\",port=\"80\"} 3\na_total{service=\"api\",port=\"80\"} 4\n\
                    a_total_other{service=\"web\"} 9\nplain 1.5\n";
        assert_eq!(samples(text, "a_total", &[("service", "web")]), [3.0]);
        assert_eq!(samples(text, "a_total", &[("port", "80")]), [3.0, 4.0]);
        assert_eq!(samples(text, "plain", &[]), [1.5]);
        assert!(samples(text, "a_total", &[("service", "db")]).is_empty());
    }
}

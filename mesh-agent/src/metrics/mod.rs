//! The agent's metrics: counters of the kernel programs and of the proxy, read when Prometheus
//! scrapes.
//!
//! Purpose: [`families`] is pure, from an observation to metric families; [`AgentCollector`]
//! observes. The names are in [`catalogue`].
//!
//! Invariants: a scrape reads maps on a blocking thread, and writes nothing; a data plane that
//! can't be read costs its own families only, and `mesh_collector_success` says so.
//!
//! Left to others: serving metrics ([`crate::admin`]).

pub mod progress;

mod catalogue;
mod plane;
mod samples;
mod traffic;
mod virtual_ips;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_state::Timestamp;
use mesh_state::ids::{BackendId, ServiceId};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use tokio::sync::watch;

use crate::cli::MetricsBackends;
use crate::datapath::{Datapath, StatsSnapshot};
use crate::lb::loads::{Load, Loads};
use crate::proxy::Proxy;
use crate::proxy::carry_over::StoredCounters;
use crate::proxy::ledger::ProxyStats;
use crate::view::NodeView;
use mesh_runtime::error_chain;
use progress::Progress;
use samples::Samples;

/// The node's properties that its view doesn't hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// The name that the node shows in the cluster.
    pub hostname: String,
    /// `worker` or `manager`; empty before the node has joined.
    pub role: String,
    /// When the node's certificate expires.
    pub certificate_until: Option<Timestamp>,
    /// How often its certificate was renewed since the agent started.
    pub certificate_renewals: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The data path in use.
    pub datapath: String,
    /// What kept the agent from running kernel programs, if it carries traffic in userspace for
    /// that.
    pub fallback: Option<&'static str>,
}

/// The inputs of one scrape.
pub struct Observation<'a> {
    /// The view of the mesh.
    pub view: &'a NodeView,
    /// The generation of the mesh table that carries traffic.
    pub applied: u64,
    /// Whether the stream to a manager is up.
    pub connected: bool,
    /// The node's properties.
    pub node: &'a NodeFacts,
    /// The time of the scrape.
    pub now: Timestamp,
    /// The proxy's counters.
    pub proxy: &'a ProxyStats,
    /// Whether the proxy's counters are on disk, for the agent's next start.
    pub is_proxy_kept: bool,
    /// The kernel programs' counters, if there are programs and their maps could be read.
    pub kernel: Option<&'a StatsSnapshot>,
    /// The known loads of backends.
    pub loads: &'a BTreeMap<BackendId, Load>,
    /// Backends that the health check has ejected for now.
    pub ejected: &'a BTreeSet<BackendId>,
    /// The number of policy changes of each service.
    pub policy_changes: &'a BTreeMap<ServiceId, u64>,
    /// The backends that have series.
    pub backends: MetricsBackends,
    /// The results of the collectors.
    pub collectors: &'a [Reading],
}

/// The result of reading one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The source's name.
    pub name: &'static str,
    /// Whether the source could be read.
    pub success: bool,
    /// How long reading took.
    pub duration: Duration,
}

/// The families of an observation, in the catalogue's order.
pub fn families(seen: &Observation<'_>) -> Vec<MetricFamily> {
    let mut samples = Samples::default();
    plane::add_node(&mut samples, seen);
    traffic::add(&mut samples, seen);
    virtual_ips::add_attached(&mut samples, seen);
    if let Some(kernel) = seen.kernel {
        virtual_ips::add(&mut samples, seen, kernel);
        plane::add_kernel(&mut samples, kernel);
    }
    samples.into_families()
}

/// Collects the metrics of the running agent.
pub struct AgentCollector {
    /// The view of the mesh.
    pub view: watch::Receiver<Arc<NodeView>>,
    /// The generation of the mesh table that carries traffic.
    pub applied: watch::Receiver<u64>,
    /// Whether the stream to a manager is up.
    pub connected: watch::Receiver<bool>,
    /// The node's properties.
    pub node: watch::Receiver<NodeFacts>,
    /// The proxy, whose ledger is read.
    pub proxy: Arc<Proxy>,
    /// The proxy's counters as they are on disk.
    pub kept: watch::Receiver<StoredCounters>,
    /// The kernel data plane, if there is one.
    pub datapath: Option<Arc<Datapath>>,
    /// The known loads of backends.
    pub loads: Arc<Loads>,
    /// Backends that the health check has ejected for now.
    pub ejected: watch::Receiver<BTreeSet<BackendId>>,
    /// Counts policy changes.
    pub progress: Progress,
    /// The backends that have series.
    pub backends: MetricsBackends,
}

impl Collector for AgentCollector {
    fn desc(&self) -> Vec<&Desc> {
        descriptions().iter().collect()
    }

    /// Blocks while it reads maps.
    fn collect(&self) -> Vec<MetricFamily> {
        let mut collectors = Vec::new();
        let kernel = self.datapath.as_ref().and_then(|datapath| {
            let start = Instant::now();
            let stats = datapath.stats();
            if let Err(error) = &stats {
                tracing::warn!(error = %error_chain(error), "can't read the data plane's counters");
            }
            let reading = Reading { name: "datapath", success: stats.is_ok(), duration: start.elapsed() };
            collectors.push(reading);
            stats.ok()
        });
        let start = Instant::now();
        let kept = self.kept.borrow().clone();
        let proxy = kept.shown(self.proxy.ledger().stats());
        collectors.push(Reading { name: "proxy", success: true, duration: start.elapsed() });
        families(&Observation {
            view: &Arc::clone(&self.view.borrow()),
            applied: *self.applied.borrow(),
            connected: *self.connected.borrow(),
            node: &self.node.borrow().clone(),
            now: chrono::Utc::now(),
            proxy: &proxy,
            is_proxy_kept: kept != StoredCounters::No,
            kernel: kernel.as_ref(),
            loads: &self.loads.all(),
            ejected: &self.ejected.borrow().clone(),
            policy_changes: &self.progress.policy_changes(),
            backends: self.backends,
            collectors: &collectors,
        })
    }
}

/// The descriptions that the registry requires of a collector.
fn descriptions() -> &'static [Desc] {
    static DESCRIPTIONS: std::sync::LazyLock<Vec<Desc>> = std::sync::LazyLock::new(|| {
        let describe = |family: &catalogue::Family| {
            Desc::new(family.name.to_owned(), family.help.to_owned(), Vec::new(), HashMap::new()).ok()
        };
        catalogue::ALL.iter().filter_map(describe).collect()
    });
    &DESCRIPTIONS
}

#[cfg(test)]
mod tests;

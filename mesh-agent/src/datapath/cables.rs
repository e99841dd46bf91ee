//! Follows the veths of containers: attaches their programs, and learns which container of which
//! network is at the other end.
//!
//! Invariants: a veth has its program within a moment of becoming a port of a bridge of mesh, which
//! is before the container's process runs: the engine makes the veth tens of milliseconds earlier.
//! The container's MAC and address are read once for each veth, as early as they can be read: a
//! container with the privilege to change them can't become another member of its network by that.
//! Whether an address is a member's is decided by the view, in [`super::diff`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::error_chain;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::engine::Datapath;
use super::error::DatapathError;
use super::facts::Cable;
use super::lock::lock;
use super::network::cables::{Bridge, Cables};
use super::network::far_end::FarEnd;
use super::network::monitor::{LinkChanges, Monitor};
use super::network::netlink::{Link, Netlink};

/// How long the watch waits before it looks again at veths whose other end isn't set up yet, or
/// after a failure; doubled up to the maximum. The kernel reports most of these changes by itself.
const WAIT_MIN: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The veths of containers.
#[derive(Debug, Default)]
pub(super) struct Cabling {
    links: Cables,
    ports: BTreeMap<u32, Port>,
}

/// A veth that is a port of a bridge of mesh.
#[derive(Debug, Clone, Copy)]
struct Port {
    bridge: Bridge,
    is_attached: bool,
    end: Option<FarEnd>,
}

impl Port {
    /// Whether there is more to be learnt or done.
    fn is_incomplete(&self) -> bool {
        !self.is_attached || (self.end.is_none() && matches!(self.bridge, Bridge::Network(_)))
    }
}

impl Cabling {
    /// Takes changes of links over, all of which `netlink` lists if some were lost. Returns the
    /// indexes of the veths that are no ports of a bridge of mesh any more.
    fn note(&mut self, netlink: &mut Netlink, changes: LinkChanges) -> Result<Vec<u32>, DatapathError> {
        if changes.is_incomplete {
            self.links.replace(netlink.links().map_err(DatapathError::netlink("listing interfaces"))?);
        } else {
            changes.changes.into_iter().for_each(|change| self.links.note(change));
        }
        let ports = self.links.ports();
        let is_gone = |(index, port): (&u32, &Port)| {
            (ports.get(index).is_none_or(|(bridge, _)| *bridge != port.bridge)).then_some(*index)
        };
        let gone: Vec<u32> = self.ports.iter().filter_map(is_gone).collect();
        self.ports.retain(|index, _| !gone.contains(index));
        for (index, (bridge, _)) in ports {
            let new = Port { bridge, is_attached: false, end: None };
            self.ports.entry(index).or_insert(new);
        }
        Ok(gone)
    }

    /// The links of the ports for which there is more to be done.
    fn incomplete(&self) -> BTreeMap<u32, Link> {
        let mut ports = self.links.ports();
        ports.retain(|index, _| self.ports.get(index).is_some_and(Port::is_incomplete));
        ports.into_iter().map(|(index, (_, link))| (index, link)).collect()
    }

    /// What the node knows of the veths on users' networks.
    fn facts(&self) -> BTreeMap<u32, Cable> {
        let cable = |port: &Port| match port.bridge {
            Bridge::Network(network) => Some(Cable { network, end: port.end }),
            Bridge::Tasks => None,
        };
        self.ports.iter().filter_map(|(index, port)| Some((*index, cable(port)?))).collect()
    }
}

impl Datapath {
    /// Follows changes of links: attaches programs to new veths on bridges of mesh, and writes the
    /// entries of those whose other end is known. Returns whether one isn't yet.
    ///
    /// # Errors
    /// The kernel refuses a query, a program or a write; the next call tries again.
    pub(super) fn follow_cables(&self, changes: LinkChanges) -> Result<bool, DatapathError> {
        let mut netlink = Netlink::open().map_err(DatapathError::netlink("opening a netlink socket"))?;
        let mut cabling = lock(&self.cabling);
        for index in cabling.note(&mut netlink, changes)? {
            lock(&self.hooks).detach_veth(index);
        }
        let attached = self.attach(&mut cabling, &mut netlink);
        for (index, link) in cabling.incomplete() {
            let Some(port) = cabling.ports.get_mut(&index).filter(|port| port.end.is_none()) else {
                continue;
            };
            if matches!(port.bridge, Bridge::Network(_)) {
                let query = format!("asking for the other end of {}", link.name);
                port.end = netlink.far_end(&link).map_err(DatapathError::netlink(query))?;
            }
        }
        let (cables, waits) = (cabling.facts(), cabling.ports.values().any(Port::is_incomplete));
        drop(cabling);
        let mut state = lock(&self.state);
        if state.facts().cables != cables {
            state.change_facts(|facts| facts.cables = cables);
            state.reconcile(std::time::Instant::now())?;
        }
        attached.map(|()| waits)
    }

    /// Attaches the programs that veths lack. A veth that is gone by now needs none.
    fn attach(&self, cabling: &mut Cabling, netlink: &mut Netlink) -> Result<(), DatapathError> {
        let lacks = |index: &u32| cabling.ports.get(index).filter(|port| !port.is_attached);
        let veths: Vec<(Bridge, Link)> = cabling
            .incomplete()
            .into_iter()
            .filter_map(|(index, link)| Some((lacks(&index)?.bridge, link)))
            .collect();
        let mut failures = lock(&self.hooks).attach_veths(&veths);
        for (_, link) in &veths {
            if let Some(port) = cabling.ports.get_mut(&link.index) {
                port.is_attached = !failures.contains_key(&link.index);
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        let present = netlink.links().map_err(DatapathError::netlink("listing interfaces"))?;
        failures.retain(|index, _| present.iter().any(|link| link.index == *index));
        failures.pop_first().map_or(Ok(()), |(_, failure)| Err(failure))
    }

    /// Follows the veths of containers until `shutdown`.
    pub(super) async fn follow_cables_always(self: Arc<Self>, shutdown: CancellationToken) {
        let monitor = Monitor::of_links()
            .inspect_err(|error| {
                warn!(
                    error = error_chain(&error),
                    "can't subscribe to changes of interfaces: containers' are found by periodic checks"
                );
            })
            .ok();
        let mut wait = WAIT_MIN;
        let mut changes = everything();
        loop {
            let taken = std::mem::take(&mut changes);
            let is_done = match self.off_runtime(move |datapath| datapath.follow_cables(taken)).await {
                Ok(waits) => !waits,
                Err(failure) => {
                    error!(
                        error = error_chain(&failure),
                        "a container's interface is not connected yet: trying again"
                    );
                    changes = everything();
                    false
                }
            };
            wait = if is_done { WAIT_MIN } else { (wait * 2).min(WAIT_MAX) };
            tokio::select! {
                () = shutdown.cancelled() => return,
                found = link_changes(monitor.as_ref()) => {
                    changes.is_incomplete |= found.is_incomplete;
                    changes.changes.extend(found.changes);
                }
                () = sleep(wait), if !is_done => {}
            }
        }
    }
}

/// As if every link had changed.
pub(super) fn everything() -> LinkChanges {
    LinkChanges { is_incomplete: true, ..LinkChanges::default() }
}

/// The next changes of links; without a subscription they are everything, from time to time.
async fn link_changes(monitor: Option<&Monitor>) -> LinkChanges {
    let Some(monitor) = monitor else {
        sleep(WAIT_MAX).await;
        return everything();
    };
    match monitor.link_changes().await {
        Ok(changes) => changes,
        Err(error) => {
            warn!(error = error_chain(&error), "the subscription to changes of interfaces failed");
            sleep(WAIT_MAX).await;
            everything()
        }
    }
}

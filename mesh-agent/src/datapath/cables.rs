//! Follows the veths of containers: attaches their programs, and finds the container and the
//! network at the other end.
//!
//! Invariants: a veth gets its program within a moment of becoming a port of one of mesh's bridges.
//! That is before the container's process runs, as the engine makes the veth tens of milliseconds
//! earlier. The container's MAC and address are read once for each veth, as early as possible, so a
//! container with the privilege to change them can't become another member of its network. Whether
//! the address is a member's is decided from the view, in [`super::diff`].

use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::error_chain;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::cabling::{Cabling, Port};
use super::engine::Datapath;
use super::error::DatapathError;
use super::lock::lock;
use super::network::cables::Bridge;
use super::network::monitor::{LinkChanges, Monitor};
use super::network::netlink::{Link, Netlink};

/// The pause before veths are checked again whose other end isn't set up yet, or after a failure;
/// doubled up to the maximum. The kernel reports most of these changes by itself.
const WAIT_MIN: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_secs(1);

impl Datapath {
    /// Follows changes of links: attaches programs to new veths on mesh's bridges, and writes the
    /// entries of those whose other end is known. Returns whether the other end of a veth is still
    /// unknown.
    ///
    /// # Errors
    /// The kernel refuses a query, a program or a write; the next call retries it.
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

    /// Attaches the programs that veths lack. Veths that are gone by now are skipped.
    fn attach(&self, cabling: &mut Cabling, netlink: &mut Netlink) -> Result<(), DatapathError> {
        let lacks = |index: &u32| cabling.ports.get(index).filter(|port| !port.is_attached);
        let veths: Vec<(Bridge, Link)> = cabling
            .incomplete()
            .into_iter()
            .filter_map(|(index, link)| Some((lacks(&index)?.bridge, link)))
            .collect();
        let mut failures = lock(&self.hooks).attach_veths(&veths);
        for (_, link) in veths.iter().filter(|(bridge, _)| *bridge == Bridge::Tasks) {
            if let Err(error) = netlink.isolate_port(link.index) {
                let query = format!("isolating {} from the other tasks", link.name);
                failures.entry(link.index).or_insert(DatapathError::netlink(query)(error));
            }
        }
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
        let mut changes = LinkChanges::everything();
        loop {
            let taken = std::mem::take(&mut changes);
            let is_done = match self.off_runtime(move |datapath| datapath.follow_cables(taken)).await {
                Ok(waits) => !waits,
                Err(failure) => {
                    error!(
                        error = error_chain(&failure),
                        "a container's interface is not connected yet: trying again"
                    );
                    changes = LinkChanges::everything();
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

/// The next changes of links. Without a subscription, all links count as changed from time to time.
async fn link_changes(monitor: Option<&Monitor>) -> LinkChanges {
    let Some(monitor) = monitor else {
        sleep(WAIT_MAX).await;
        return LinkChanges::everything();
    };
    match monitor.link_changes().await {
        Ok(changes) => changes,
        Err(error) => {
            warn!(error = error_chain(&error), "the subscription to changes of interfaces failed");
            sleep(WAIT_MAX).await;
            LinkChanges::everything()
        }
    }
}

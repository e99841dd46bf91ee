//! The state of the veths of containers: their programs and their other ends.

use std::collections::BTreeMap;

use super::error::DatapathError;
use super::facts::Cable;
use super::network::cables::{Bridge, Cables};
use super::network::far_end::FarEnd;
use super::network::monitor::LinkChanges;
use super::network::netlink::{Link, Netlink};

/// The veths of containers.
#[derive(Debug, Default)]
pub(super) struct Cabling {
    links: Cables,
    /// Ports of mesh's bridges, by interface index.
    pub(super) ports: BTreeMap<u32, Port>,
}

/// A veth that is a port of one of mesh's bridges.
#[derive(Debug, Clone, Copy)]
pub(super) struct Port {
    /// The bridge that the veth is a port of.
    pub(super) bridge: Bridge,
    /// Whether its program is attached.
    pub(super) is_attached: bool,
    /// The container's end, once it is known.
    pub(super) end: Option<FarEnd>,
}

impl Port {
    /// Whether its program or its other end is missing.
    pub(super) fn is_incomplete(&self) -> bool {
        !self.is_attached || (self.end.is_none() && matches!(self.bridge, Bridge::Network(_)))
    }
}

impl Cabling {
    /// Records changes of links; if changes were lost, `netlink` lists all links. Returns the
    /// indexes of veths that are no longer ports of mesh's bridges.
    ///
    /// # Errors
    /// The kernel refuses the query.
    pub(super) fn note(
        &mut self,
        netlink: &mut Netlink,
        changes: LinkChanges,
    ) -> Result<Vec<u32>, DatapathError> {
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

    /// The links of the incomplete ports.
    pub(super) fn incomplete(&self) -> BTreeMap<u32, Link> {
        let mut ports = self.links.ports();
        ports.retain(|index, _| self.ports.get(index).is_some_and(Port::is_incomplete));
        ports.into_iter().map(|(index, (_, link))| (index, link)).collect()
    }

    /// The veths on users' networks whose other end is known.
    pub(super) fn facts(&self) -> BTreeMap<u32, Cable> {
        let cable = |port: &Port| match port.bridge {
            Bridge::Network(network) => Some(Cable { network, end: port.end }),
            Bridge::Tasks => None,
        };
        self.ports.iter().filter_map(|(index, port)| Some((*index, cable(port)?))).collect()
    }
}

//! What is known and done about the veths of containers, by veth.

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
    /// The ports of bridges of mesh, by index.
    pub(super) ports: BTreeMap<u32, Port>,
}

/// A veth that is a port of a bridge of mesh.
#[derive(Debug, Clone, Copy)]
pub(super) struct Port {
    /// The bridge.
    pub(super) bridge: Bridge,
    /// Whether it has its program.
    pub(super) is_attached: bool,
    /// The container's end, once it is known.
    pub(super) end: Option<FarEnd>,
}

impl Port {
    /// Whether there is more to be learnt or done.
    pub(super) fn is_incomplete(&self) -> bool {
        !self.is_attached || (self.end.is_none() && matches!(self.bridge, Bridge::Network(_)))
    }
}

impl Cabling {
    /// Takes changes of links over, all of which `netlink` lists if some were lost. Returns the
    /// indexes of the veths that are no ports of a bridge of mesh any more.
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

    /// The links of the ports for which there is more to be done.
    pub(super) fn incomplete(&self) -> BTreeMap<u32, Link> {
        let mut ports = self.links.ports();
        ports.retain(|index, _| self.ports.get(index).is_some_and(Port::is_incomplete));
        ports.into_iter().map(|(index, (_, link))| (index, link)).collect()
    }

    /// What the node knows of the veths on users' networks.
    pub(super) fn facts(&self) -> BTreeMap<u32, Cable> {
        let cable = |port: &Port| match port.bridge {
            Bridge::Network(network) => Some(Cable { network, end: port.end }),
            Bridge::Tasks => None,
        };
        self.ports.iter().filter_map(|(index, port)| Some((*index, cable(port)?))).collect()
    }
}

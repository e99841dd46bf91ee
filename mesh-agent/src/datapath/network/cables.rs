//! Which veths of the node connect containers to the bridges of mesh.
//!
//! Pure: [`Cables`] follows what the kernel says about links, and answers which of them are ports
//! of `mesh0` (each task has one) or of the bridge of a user's network. The name of a bridge says
//! which network it is, so that nothing else need be known to attach the right program at once.

use std::collections::BTreeMap;

use mesh_state::network::is_number;

use super::monitor::LinkChange;
use super::netlink::{Link, is_veth};
use crate::task::bridge::DEVICE as TASKS_DEVICE;

/// The first letters of the bridge device of a user's network; its number follows.
pub(crate) const NETWORK_DEVICE_PREFIX: &str = "meshn";

/// A bridge of mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bridge {
    /// `mesh0`, on which every task has its way out.
    Tasks,
    /// That of the user's network with this number.
    Network(u32),
}

impl Bridge {
    /// The bridge with this device name, if it is one of mesh.
    pub(crate) fn named(device: &str) -> Option<Self> {
        if device == TASKS_DEVICE {
            return Some(Self::Tasks);
        }
        let digits = device.strip_prefix(NETWORK_DEVICE_PREFIX)?;
        let number: u32 = digits.parse().ok().filter(|number| is_number(*number))?;
        (number.to_string() == digits).then_some(Self::Network(number))
    }
}

/// The links of this node, as the kernel last described them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cables {
    links: BTreeMap<u32, Link>,
}

impl Cables {
    /// Replaces all links.
    pub(crate) fn replace(&mut self, links: Vec<Link>) {
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
    }

    /// Follows one change.
    pub(crate) fn note(&mut self, change: LinkChange) {
        match change {
            LinkChange::Present(link) => _ = self.links.insert(link.index, link),
            LinkChange::Gone(index) => _ = self.links.remove(&index),
        }
    }

    /// The veths that are ports of a bridge of mesh, by index.
    pub(crate) fn ports(&self) -> BTreeMap<u32, (Bridge, Link)> {
        let port = |link: &Link| {
            let bridge = self.links.get(&link.bridge?)?;
            Some((link.index, (Bridge::named(&bridge.name)?, link.clone())))
        };
        self.links.values().filter(|link| is_veth(link)).filter_map(port).collect()
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::network::{ENCRYPTED, NUMBER_MAX};

    use super::*;

    #[test]
    fn a_bridge_is_known_by_its_name() {
        for (name, expected) in [
            ("mesh0", Some(Bridge::Tasks)),
            ("meshn1", Some(Bridge::Network(1))),
            ("meshn65535", Some(Bridge::Network(65_535))),
            ("meshn65536", None),
            ("meshn524289", Some(Bridge::Network(1 | ENCRYPTED))),
            ("meshn524288", None),
            ("meshn589824", None),
            ("meshn0", None),
            ("meshn01", None),
            ("meshn+1", None),
            ("meshn", None),
            ("mesh1", None),
            ("docker0", None),
        ] {
            assert_eq!(Bridge::named(name), expected, "{name}");
        }
    }

    #[test]
    fn the_engine_is_given_the_names_that_are_known() {
        let named = |number| Bridge::named(&crate::task::networks::device(number));
        assert_eq!(
            [1, 4096, NUMBER_MAX, NUMBER_MAX | ENCRYPTED].map(named),
            [1, 4096, NUMBER_MAX, NUMBER_MAX | ENCRYPTED].map(|it| Some(Bridge::Network(it)))
        );
    }

    fn veth(index: u32, bridge: Option<u32>) -> Link {
        Link { index, name: format!("veth{index}"), kind: Some("veth".to_owned()), bridge, ..Link::default() }
    }

    fn bridge(index: u32, name: &str) -> Link {
        Link { index, name: name.to_owned(), kind: Some("bridge".to_owned()), ..Link::default() }
    }

    fn seen(cables: &Cables) -> Vec<(u32, Bridge)> {
        cables.ports().into_iter().map(|(index, (bridge, _))| (index, bridge)).collect()
    }

    #[test]
    fn a_veth_counts_from_when_it_is_on_a_bridge_of_mesh_until_it_has_gone() {
        let mut cables = Cables::default();
        cables.replace(vec![bridge(2, "meshn7"), bridge(3, "docker0"), veth(10, Some(3)), veth(11, None)]);
        assert_eq!(seen(&cables), []);
        cables.note(LinkChange::Present(veth(11, Some(2))));
        assert_eq!(seen(&cables), [(11, Bridge::Network(7))]);
        cables.note(LinkChange::Present(bridge(4, "mesh0")));
        cables.note(LinkChange::Present(veth(12, Some(4))));
        cables.note(LinkChange::Present(Link { kind: Some("vxlan".to_owned()), ..veth(13, Some(2)) }));
        assert_eq!(seen(&cables), [(11, Bridge::Network(7)), (12, Bridge::Tasks)], "veths only");
        cables.note(LinkChange::Present(veth(11, None)));
        cables.note(LinkChange::Gone(12));
        assert_eq!(seen(&cables), []);
    }
}

//! Plans ports that belong to the host: the programs have no entry for them, so their packets reach
//! the host stack.
//!
//! Their backends stay: existing flows go on, and packets that other nodes send through the tunnel
//! still reach tasks here.

use std::collections::BTreeMap;

use super::{Plan, slots_of};
use crate::datapath::contents::{Contents, Front, Frontend, Write};
use crate::datapath::facts::Facts;

/// The index of each published port and virtual IP that has one. For a port without an entry it is
/// the one that its backends name.
pub(super) fn indexes(contents: &Contents, facts: &Facts) -> BTreeMap<Front, u32> {
    let left = contents.alive().map(|(_, backend)| {
        let frontend = Frontend { protocol: backend.protocol, port: backend.published_port_be.get() };
        (Front::Port(frontend), backend.service_index)
    });
    let left = left.filter(|(front, _)| facts.is_the_hosts(front));
    let entries = contents.services.iter().map(|(front, service)| (*front, service.index));
    left.chain(entries).collect()
}

impl Plan {
    /// Removes the entries of these published ports and virtual IPs.
    pub(super) fn give_up(&mut self, contents: &Contents, is_left: impl Fn(&Front) -> bool) {
        for (front, service) in contents.services.iter().filter(|(front, _)| is_left(front)) {
            self.writes.push(Write::RemoveService(*front));
            self.freed.push(slots_of(service));
        }
        self.freed.retain(|range| !range.is_empty());
    }
}

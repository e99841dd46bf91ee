//! Plans ports that belong to the host: the programs have no entry for them, so their packets reach
//! the host stack.
//!
//! Their backends stay: existing flows go on, and packets that other nodes send through the tunnel
//! still reach tasks here.

use std::collections::BTreeMap;

use super::{Plan, slots_of};
use crate::datapath::contents::{Contents, Frontend, Write};
use crate::datapath::facts::Facts;

/// The index of each published port that has one. For a port without an entry it is the one that
/// its backends name.
pub(super) fn indexes(contents: &Contents, facts: &Facts) -> BTreeMap<Frontend, u32> {
    let left = contents.alive().map(|(_, backend)| {
        let frontend = Frontend { protocol: backend.protocol, port: backend.published_port_be.get() };
        (frontend, backend.service_index)
    });
    let left = left.filter(|(frontend, _)| facts.host_ports.contains(frontend));
    let entries = contents.services.iter().map(|(frontend, service)| (*frontend, service.index));
    left.chain(entries).collect()
}

impl Plan {
    /// Removes the entries of these published ports.
    pub(super) fn give_up(&mut self, contents: &Contents, is_left: impl Fn(&Frontend) -> bool) {
        for (frontend, service) in contents.services.iter().filter(|(frontend, _)| is_left(frontend)) {
            self.writes.push(Write::RemoveService(*frontend));
            self.freed.push(slots_of(service));
        }
        self.freed.retain(|range| !range.is_empty());
    }
}

//! Plans allow-lists: networks are written before the service that needs them, and removed after
//! it.

use std::collections::BTreeSet;

use mesh_ebpf::abi::names;

use super::{Mesh, Plan, Refusal, listed};
use crate::datapath::contents::{Allowed, Write};

impl Plan {
    /// Adds the networks that services with an allow-list need and the map lacks. Returns all that
    /// are needed. A service whose list finds no room refuses its clients.
    pub(super) fn allow(&mut self, mesh: &Mesh<'_>) -> BTreeSet<Allowed> {
        let mut wanted: BTreeSet<Allowed> = BTreeSet::new();
        for (front, port) in &mesh.ports {
            let networks = listed(*front, port).iter().map(|network| Allowed::new(port.index, *network));
            let listed: BTreeSet<Allowed> = networks.collect();
            if wanted.len() + listed.len() > names::ALLOWED_MAX as usize {
                self.refused.push(Refusal::Allowed(*front));
            } else {
                wanted.extend(listed);
            }
        }
        self.writes.extend(wanted.difference(&mesh.contents.allowed).copied().map(Write::Allow));
        wanted
    }

    /// Removes the networks that no service needs any more.
    pub(super) fn disallow(&mut self, mesh: &Mesh<'_>, wanted: &BTreeSet<Allowed>) {
        self.writes.extend(mesh.contents.allowed.difference(wanted).copied().map(Write::Disallow));
    }
}

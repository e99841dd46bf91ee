//! The names of one network, with the addresses of each.
//!
//! Invariant: after [`NetworkNames::settle`], an entry holds exactly the addresses to answer.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;
use mesh_state::network::address6;

use crate::view::BackendState;

/// TTL in seconds of a virtual IP, which lasts as long as its service.
pub(super) const VIRTUAL_IP_TTL: u32 = 30;
/// TTL in seconds of all other addresses, as tasks come and go.
pub(super) const TASK_TTL: u32 = 3;

/// The number of digits of a container's id that are a name of the container.
const SHORT_ID: usize = 12;

/// The first digits of a container's id; empty for a container that does not exist yet.
pub(super) fn short_id(id: &str) -> &str {
    id.get(..SHORT_ID).unwrap_or_default()
}

/// The addresses of a name.
#[derive(Debug, Clone, Default)]
pub(super) struct Entry {
    addresses: Vec<Ipv4Addr>,
    /// The IPv6 addresses. A virtual IP has none.
    addresses6: Vec<Ipv6Addr>,
    /// Addresses out of which [`NetworkNames::settle`] chooses those in the best state.
    candidates: Vec<(BackendState, Ipv4Addr)>,
    /// Whether some of the addresses are not virtual IPs.
    has_tasks: bool,
    /// Whether it is the name or alias of a service.
    is_services: bool,
}

impl Entry {
    /// The addresses to answer.
    pub(super) fn addresses(&self) -> &[Ipv4Addr] {
        &self.addresses
    }

    /// The IPv6 addresses to answer.
    pub(super) fn addresses6(&self) -> &[Ipv6Addr] {
        &self.addresses6
    }

    /// TTL of the addresses in seconds.
    pub(super) fn ttl(&self) -> u32 {
        if self.has_tasks { TASK_TTL } else { VIRTUAL_IP_TTL }
    }
}

/// The names of one network.
#[derive(Debug, Clone)]
pub(super) struct NetworkNames {
    name: String,
    /// The network's name in lower case, to compare with names in questions.
    key: String,
    /// The network's IPv6 subnet, if it has IPv6.
    subnet6: Option<Ipv6Net>,
    entries: HashMap<String, Entry>,
}

impl NetworkNames {
    pub(super) fn new(name: &str, subnet6: Option<Ipv6Net>) -> Self {
        Self { name: name.to_owned(), key: name.to_ascii_lowercase(), subnet6, entries: HashMap::new() }
    }

    /// The IPv6 address of whoever has this IPv4 address on the network, if the network has IPv6.
    pub(super) fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.subnet6.map(|subnet| address6(subnet, address))
    }

    /// The network's own name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_named(&self, key: &str) -> bool {
        self.key == key
    }

    /// Whether `name` ends with the network's name.
    pub(super) fn holds(&self, name: &str) -> bool {
        name.strip_suffix(self.key.as_str()).is_some_and(|host| host.ends_with('.'))
    }

    /// Whether the network's name can't be a top-level domain. These consist of letters, or begin
    /// with `xn--`; networks may be called `app` or `dev`, which are top-level domains.
    pub(super) fn has_private_name(&self) -> bool {
        let last = self.key.rsplit('.').next().unwrap_or_default();
        !last.starts_with("xn--") && !last.bytes().all(|byte| byte.is_ascii_alphabetic())
    }

    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Adds a name of a service, and the same name with the prefix `tasks.`.
    pub(super) fn add_service(
        &mut self,
        name: &str,
        virtual_ip: Option<Ipv4Addr>,
        tasks: &[(BackendState, Ipv4Addr)],
    ) {
        // A retired task, whose service or slot is gone, never gets new flows.
        let serving = || tasks.iter().filter(|(state, _)| *state != BackendState::Retired);
        let key = name.to_ascii_lowercase();
        let of_tasks = self.entries.entry(format!("tasks.{key}")).or_default();
        of_tasks.is_services = true;
        of_tasks.candidates.extend(serving());
        let entry = self.entries.entry(key).or_default();
        entry.is_services = true;
        match virtual_ip {
            Some(address) => entry.addresses.push(address),
            None => entry.candidates.extend(serving()),
        }
    }

    /// Adds a name of one container, unless a service has that name. Services are added before
    /// containers.
    pub(super) fn add_container(&mut self, name: &str, state: BackendState, address: Ipv4Addr) {
        let entry = self.entries.entry(name.to_ascii_lowercase()).or_default();
        if !entry.is_services {
            entry.candidates.push((state, address));
        }
    }

    /// Chooses the addresses to answer: those in the best state among the candidates, as for new
    /// flows to a published port. So a draining task is left out unless there is no other.
    pub(super) fn settle(&mut self) {
        for entry in self.entries.values_mut() {
            let candidates = std::mem::take(&mut entry.candidates);
            let best = candidates.iter().map(|(state, _)| *state).min();
            entry.has_tasks = best.is_some();
            let chosen = candidates.iter().filter(|(state, _)| Some(*state) == best);
            for (_, address) in chosen {
                entry.addresses.push(*address);
                entry.addresses6.extend(self.subnet6.map(|subnet| address6(subnet, *address)));
            }
            entry.addresses6.sort_unstable();
            entry.addresses6.dedup();
            entry.addresses.sort_unstable();
            entry.addresses.dedup();
        }
    }
}

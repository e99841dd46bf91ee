//! Plans the writes from the maps' contents to the desired contents, in an order that is safe at
//! every step.
//!
//! Pure. Invariants: a backend is written before a slot names it, slots before the service that
//! points at them, and in reverse when something goes; replacing a service's entry is the one swap.
//! Slots in use, or used until a moment ago, are never rewritten. What has an index keeps it, also
//! over restarts, as the indexes are read back from the maps. What finds no room is refused by
//! name, and all else goes ahead.
//!
//! Left to others: carrying the writes out ([`super::maps`]), deciding what is held back
//! ([`super::state`], [`super::sweep`]).

mod allowed;
mod generation;
mod host_ports;
mod members;
mod networks;
mod refusal;
mod virtual_ips;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::ops::Range;

use ipnet::IpNet;
use mesh_ebpf::abi::{
    Address, Backend, Be16, Config, Node, Service, VipId, backend_flag, names, service_flag,
};
use mesh_state::ids::BackendId;
use mesh_state::lb::Mode;
use mesh_state::spec::Protocol;

use self::generation::generation_of;
pub use self::generation::is_ahead;
use self::networks::Networks;
pub use self::refusal::Refusal;
use super::contents::{Contents, Front, Frontend, Write, taken_down};
use super::facts::{Facts, TaskPort};
use super::index::{FreeSlots, assign};
use crate::codes::{self, protocol_number};
use crate::lb::ramp::UNIT;
use crate::lb::slots::{Candidate, compose};
use crate::view::{BackendView, NodeView, ServiceView};

/// Numbers that must not be given out yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Slots that a program may still be reading.
    pub slots: Vec<Range<u32>>,
    /// Address indexes that flows name.
    pub address_indexes: BTreeSet<u32>,
}

/// What must be written to bring the maps to a view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The writes, in order.
    pub writes: Vec<Write>,
    /// Slots that are free once the writes are done and no program reads them any more.
    pub freed: Vec<Range<u32>>,
    /// Everything that found no room.
    pub refused: Vec<Refusal>,
    /// Whether another plan, made after these writes, may get further.
    pub again: bool,
}

/// Plans the writes that bring `contents` to `view` and `facts`. Without a view, services and
/// backends stay as they are, except for ports that belong to the host.
pub fn plan(contents: &Contents, view: Option<&NodeView>, facts: &Facts, held: &Held) -> Plan {
    let mut plan = Plan::default();
    plan.addresses(contents, facts, held);
    let generation = view.map_or(contents.config.generation, generation_of);
    if contents.config != (Config { generation: contents.config.generation, ..facts.config }) {
        plan.writes.push(Write::Config(Config { generation, ..facts.config }));
    }
    if contents.nodes.get(&0) != Some(&facts.own) && facts.own != Node::default() {
        plan.writes.push(Write::Node(0, facts.own));
    }
    if let Some(view) = view {
        let nodes = plan.nodes(contents, view, facts);
        let networks = Networks::new(contents, view, facts, &nodes);
        plan.connect(contents, &networks);
        let ports = plan.ports(contents, view, facts, &networks);
        let mesh = Mesh { contents, view, facts, nodes, networks, ports };
        let wanted = plan.backends(&mesh);
        let allowed = plan.allow(&mesh);
        plan.services(&mesh, &wanted, held);
        plan.disallow(&mesh, &allowed);
        plan.departures(&mesh, &wanted);
    } else {
        plan.give_up(contents, |front| facts.is_the_hosts(front));
    }
    if contents.config.generation != generation && !plan.writes.is_empty() {
        // First of all: an agent that dies in the middle leaves maps that are marked as no longer
        // the earlier table's.
        plan.writes.insert(0, Write::Config(Config { generation, ..contents.config }));
    }
    plan
}

/// What the steps of a plan share.
struct Mesh<'a> {
    contents: &'a Contents,
    view: &'a NodeView,
    facts: &'a Facts,
    /// Index of each member node but this one.
    nodes: BTreeMap<Address, u32>,
    networks: Networks<'a>,
    ports: BTreeMap<Front, Port<'a>>,
}

/// A published port or virtual IP that has its index.
struct Port<'a> {
    service: &'a ServiceView,
    index: u32,
}

/// Backends that should be in the maps, and those of them that can get new flows.
#[derive(Default)]
struct DesiredBackends {
    backends: BTreeMap<u32, Backend>,
    candidates: BTreeMap<Front, Vec<Candidate>>,
}

impl Plan {
    fn addresses(&mut self, contents: &Contents, facts: &Facts, held: &Held) {
        let own = facts.config.address;
        let others = facts.addresses.iter().copied().filter(|address| *address != own);
        let (mut numbers, refused) =
            assign(&contents.addresses, others, &held.address_indexes, 1..VipId::ADDRESSES_MAX);
        self.refused.extend(refused.into_iter().map(Refusal::Address));
        while numbers.len() >= names::ADDRESSES_MAX as usize {
            self.refused.extend(numbers.pop_last().map(|(address, _)| Refusal::Address(address)));
        }
        if !own.is_none() {
            numbers.insert(own, 0);
        }
        let gone = contents.addresses.keys().filter(|address| !numbers.contains_key(address));
        self.writes.extend(gone.map(|address| Write::RemoveAddress(*address)));
        let new = numbers.iter().filter(|(address, index)| contents.addresses.get(address) != Some(index));
        self.writes.extend(new.map(|(address, index)| Write::Address(*address, *index)));
    }

    fn ports<'a>(
        &mut self,
        contents: &Contents,
        view: &'a NodeView,
        facts: &Facts,
        networks: &Networks<'a>,
    ) -> BTreeMap<Front, Port<'a>> {
        let mut services: BTreeMap<Front, &ServiceView> = BTreeMap::new();
        for (service, port) in view.frontends() {
            services.entry(Front::Port(frontend(port.protocol, port.published))).or_insert(service);
        }
        for (place, service) in networks.virtual_ips(view) {
            services.entry(Front::VirtualIp(place)).or_insert(service);
        }
        let present = host_ports::indexes(contents, facts);
        let (indexes, refused) =
            assign(&present, services.keys().copied(), &BTreeSet::new(), 0..names::SERVICES_MAX);
        self.refused.extend(refused.into_iter().map(Refusal::Service));
        services
            .into_iter()
            .filter_map(|(front, service)| {
                indexes.get(&front).map(|index| (front, Port { service, index: *index }))
            })
            .collect()
    }

    fn backends(&mut self, mesh: &Mesh<'_>) -> DesiredBackends {
        let mut wanted = DesiredBackends::default();
        for backend in mesh.view.backends.values() {
            let Some(value) = mesh.backend(backend) else { continue };
            let candidate = Candidate {
                id: backend.id.get(),
                state: backend.state,
                weight: mesh.weight(backend.id, backend.weight),
                is_local: mesh.view.is_local(backend),
            };
            let front = Front::Port(frontend(backend.protocol, backend.published));
            self.backend(mesh, &mut wanted, front, value, candidate);
        }
        for (place, value, candidate) in mesh.virtual_backends() {
            self.backend(mesh, &mut wanted, Front::VirtualIp(place), value, candidate);
        }
        wanted
    }

    /// Writes a backend of `front`, and makes it a candidate for new flows.
    fn backend(
        &mut self,
        mesh: &Mesh<'_>,
        wanted: &mut DesiredBackends,
        front: Front,
        value: Backend,
        candidate: Candidate,
    ) {
        let id = candidate.id;
        let present = mesh.contents.backends.get(&id).copied().unwrap_or_default();
        if !is_same_backend(&present, &value) {
            if present.is_alive() {
                // The id belongs to another task until now: that one must leave all maps first.
                self.again = true;
                return;
            }
            self.writes.push(Write::ResetBackend(id));
        }
        if present != value {
            self.writes.push(Write::Backend(id, value));
        }
        wanted.backends.insert(id, value);
        if !mesh.facts.ejected.contains(&id) {
            wanted.candidates.entry(front).or_default().push(candidate);
        }
    }

    fn services(&mut self, mesh: &Mesh<'_>, wanted: &DesiredBackends, held: &Held) {
        let in_use = mesh.contents.services.values().map(slots_of).chain(held.slots.iter().cloned());
        let mut free = FreeSlots::new(names::SLOTS_MAX, in_use);
        let ours = mesh.ports.iter().filter(|(front, _)| !mesh.facts.is_the_hosts(front));
        for (front, port) in ours {
            let candidates = wanted.candidates.get(front).map_or(&[][..], Vec::as_slice);
            let lb = &port.service.lb;
            let members = compose(lb.policy, lb.prefer_local, candidates);
            self.service(mesh, *front, port, &members, &mut free);
        }
    }

    fn service(
        &mut self,
        mesh: &Mesh<'_>,
        front: Front,
        port: &Port<'_>,
        members: &[u32],
        free: &mut FreeSlots,
    ) {
        let present = mesh.contents.services.get(&front);
        let kept = present.filter(|service| mesh.contents.members(service).eq(members.iter().copied()));
        let length = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let slots = match kept {
            Some(service) => slots_of(service),
            None if members.is_empty() => 0..0,
            None => match (free.take(length), present) {
                (Some(range), _) => {
                    self.writes.push(Write::Slots { base: range.start, backends: members.to_vec() });
                    range
                }
                (None, present) => {
                    self.refused.push(Refusal::Slots(front));
                    let Some(service) = present else { return };
                    slots_of(service)
                }
            },
        };
        let value = Service {
            index: port.index,
            slot_base: slots.start,
            slot_count: slots.end - slots.start,
            generation: generation_of(mesh.view),
            policy: codes::policy(port.service.lb.policy) as u8,
            mode: codes::mode(mesh.mode(front, port, members)) as u8,
            flags: if listed(front, port).is_empty() { 0 } else { service_flag::ALLOW_LIST },
            ..Service::default()
        };
        match present {
            Some(service) if (Service { generation: service.generation, ..value }) == *service => return,
            Some(service) if slots_of(service) != slots => self.freed.push(slots_of(service)),
            Some(_) => {}
            None => self.writes.push(Write::ResetFrontend(port.index)),
        }
        self.writes.push(Write::Service(front, value));
    }

    /// Removes what nothing names any more: services, then their backends, then nodes.
    fn departures(&mut self, mesh: &Mesh<'_>, wanted: &DesiredBackends) {
        let before = self.writes.len();
        self.give_up(mesh.contents, |front| {
            !mesh.ports.contains_key(front) || mesh.facts.is_the_hosts(front)
        });
        for (id, backend) in mesh.contents.alive() {
            if !wanted.backends.contains_key(&id) {
                self.writes.push(Write::Backend(id, taken_down(backend)));
            }
        }
        self.disconnect(mesh.contents, &mesh.networks);
        self.part_from(mesh.contents, &mesh.nodes);
        self.again |= !self.refused.is_empty() && self.writes.len() > before;
    }
}

impl Mesh<'_> {
    /// How packets get to the backends in a service's slots. The label is about published ports.
    fn mode(&self, front: Front, port: &Port<'_>, members: &[u32]) -> Mode {
        match front {
            Front::VirtualIp(_) => Mode::Tunnel,
            // Userspace nodes end no tunnel: this node's proxy serves such a port, and chooses
            // among all of its backends.
            Front::Port(_) if self.reaches_userspace(members) => Mode::Proxy,
            Front::Port(_) => port.service.lb.mode,
        }
    }

    /// Whether the task of one of these backends runs on a node whose data path is in userspace.
    fn reaches_userspace(&self, members: &[u32]) -> bool {
        let backend = |id: &u32| BackendId::new(*id).and_then(|id| self.view.backends.get(&id));
        members.iter().filter_map(backend).any(|backend| self.view.is_in_userspace(backend))
    }

    /// The map's entry of a backend; `None` if it can't get packets here because its port, node or
    /// link isn't known.
    fn backend(&self, backend: &BackendView) -> Option<Backend> {
        let port = self.ports.get(&Front::Port(frontend(backend.protocol, backend.published)))?;
        if port.service.id != backend.service_id {
            return None;
        }
        let entry = Backend {
            task_address: backend.address.into(),
            service_index: port.index,
            task_port_be: Be16::new(backend.target),
            published_port_be: Be16::new(backend.published),
            protocol: protocol_number(backend.protocol),
            state: codes::state(backend.state) as u8,
            weight: u16::try_from(self.weight(backend.id, backend.weight)).unwrap_or(u16::MAX),
            ..Backend::default()
        };
        if !self.view.is_local(backend) {
            let address = Address::from(self.view.nodes.get(&backend.node_id)?.address);
            return Some(Backend { node: *self.nodes.get(&address)?, ..entry });
        }
        let (ifindex, task_mac, task_address6) = match self.facts.ports.get(&entry.task_address) {
            Some(TaskPort::Attached { ifindex, mac, address6 }) => (*ifindex, *mac, *address6),
            Some(TaskPort::Gone) => return None,
            // After a restart of the agent the task's program is pinned, and the map knows its
            // link.
            None => {
                let present = self.contents.backends.get(&backend.id.get())?;
                let adopted = present.is_local() && present.is_alive() && is_same_backend(present, &entry);
                adopted.then_some((present.ifindex, present.task_mac, present.task_address6))?
            }
        };
        let listed = if port.service.lb.allow.is_empty() { 0 } else { backend_flag::ALLOW_LIST };
        Some(Backend { flags: backend_flag::LOCAL | listed, ifindex, task_mac, task_address6, ..entry })
    }

    /// The backend's share of new flows now, in [`UNIT`]s.
    fn weight(&self, id: BackendId, full: NonZeroU32) -> u32 {
        let rising = self.facts.weights.get(&id.get()).copied();
        rising.unwrap_or_else(|| full.get().saturating_mul(UNIT))
    }
}

/// Whether two entries are of the same port or network of the same task.
fn is_same_backend(a: &Backend, b: &Backend) -> bool {
    (a.task_address, a.task_port_be, a.published_port_be, a.protocol, a.network)
        == (b.task_address, b.task_port_be, b.published_port_be, b.protocol, b.network)
}

/// The networks whose clients alone may open flows; empty: all. The label is about published ports:
/// only members of a network reach a virtual IP at all.
fn listed<'a>(front: Front, port: &Port<'a>) -> &'a [IpNet] {
    match front {
        Front::Port(_) => &port.service.lb.allow,
        Front::VirtualIp(_) => &[],
    }
}

fn slots_of(service: &Service) -> Range<u32> {
    service.slot_base..service.slot_base.saturating_add(service.slot_count)
}

/// The map's key of a published port.
pub fn frontend(transport: Protocol, port: u16) -> Frontend {
    Frontend { protocol: protocol_number(transport), port }
}

#[cfg(test)]
mod tests;

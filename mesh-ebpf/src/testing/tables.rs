//! The pipeline's lookups over hash maps of the host, filled from a [`Setup`].

use core::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::vec::Vec;

use super::Setup;
use super::flows::HostFlows;
use crate::abi::{
    Address, Backend, BackendLoad, Config, Direction, DropReason, Endpoint, EndpointKey, Flow, FlowKey,
    FragmentKey, FragmentPorts, ISOLATED, Link, Live, Member, Nat, NatKey, Node, Service, ServiceKey,
    Subnet6, SynGuard, Timed, TokenBucket,
};
use crate::flow_table;
use crate::guard;
use crate::lookups::{Connection, Lookups, PacketCount};
use crate::select::Candidates;
use crate::testing::Counted;

/// Lookups over a [`Setup`], with a clock and random numbers that tests control.
#[derive(Default)]
pub struct HostTables {
    /// What userspace has written to the maps.
    pub setup: Setup,
    /// The flow table of the ingress role.
    pub flows: HostFlows<FlowKey, Flow>,
    /// The translations of the owner's role.
    pub nats: HostFlows<NatKey, Nat>,
    /// Ports of fragmented packets.
    pub fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    /// Connections that sockets of this node own.
    pub sockets: Vec<Connection>,
    /// The monotonic clock, in nanoseconds.
    pub now_ns: Cell<u64>,
    /// State of the random numbers.
    pub seed: Cell<u32>,
    /// Loads that replies carried, by backend id; they are newer than those of the setup.
    pub told: RefCell<HashMap<u32, BackendLoad>>,
    /// What the pipeline has counted.
    pub counted: RefCell<Counted>,
    /// The SYN guard's token buckets.
    pub guard: Cell<SynGuard>,
    /// When the guard last fired; 0: never.
    pub guard_fired_ns: Cell<u64>,
    turns: RefCell<HashMap<u32, u64>>,
}

impl HostTables {
    /// The tables of `setup`, a second after boot.
    pub fn new(setup: Setup) -> Self {
        Self {
            flows: HostFlows::new(&setup.flows_half_open, &setup.flows_established),
            nats: HostFlows {
                retires_ended: true,
                ..HostFlows::new(&setup.nats_half_open, &setup.nats_established)
            },
            fragments: RefCell::new(setup.fragments.iter().copied().collect()),
            now_ns: Cell::new(1_000_000_000),
            seed: Cell::new(1),
            guard: Cell::new(setup.guard),
            guard_fired_ns: Cell::new(setup.guard_fired_ns),
            setup,
            ..Self::default()
        }
    }

    fn take(&self, bucket: impl FnOnce(&mut SynGuard) -> &mut TokenBucket) -> bool {
        let rate = self.setup.config.syn_guard_rate;
        let mut guard = self.guard.get();
        let is_granted = rate == 0 || guard::take(bucket(&mut guard), rate, self.now_ns());
        self.guard.set(guard);
        is_granted
    }

    fn counted(&self, count: impl FnOnce(&mut Counted) -> &mut u64) {
        *count(&mut self.counted.borrow_mut()) += 1;
    }
}

impl Candidates for HostTables {
    fn random(&self) -> u32 {
        // xorshift32
        let mut x = self.seed.get();
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.seed.set(x);
        x
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.setup.slots.get(index as usize).copied()
    }

    fn next_turn(&self, service_index: u32) -> u64 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(service_index).or_default();
        *turn += 1;
        *turn - 1
    }

    fn live(&self, id: u32) -> u64 {
        let start =
            self.setup.live.iter().find(|(own, _)| *own == id).map(|(_, live)| *live).unwrap_or_default();
        let counted = self.counted.borrow();
        let count = |by: &HashMap<u32, u64>| by.get(&id).copied().unwrap_or(0);
        let opened = start.opened + count(&counted.opened) + count(&counted.revived);
        Live { opened, closed: start.closed + count(&counted.closed) }.count(0)
    }

    fn is_alive(&self, id: u32) -> bool {
        self.backend(id).is_some_and(Backend::is_alive)
    }

    fn weight(&self, id: u32) -> u32 {
        self.backend(id).map_or(1, |backend| u32::from(backend.weight.max(1)))
    }

    fn load(&self, id: u32) -> Option<u32> {
        if let Some(told) = self.told.borrow().get(&id) {
            return told.fresh(self.now_ns());
        }
        let (_, load) = self.setup.loads.iter().find(|(own, _)| *own == id)?;
        load.fresh(self.now_ns())
    }
}

/// The bits of these bytes, as a trie matches them.
fn bits(bytes: impl IntoIterator<Item = u8>) -> Vec<u8> {
    bytes.into_iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect()
}

impl Lookups for HostTables {
    type Flows = HostFlows<FlowKey, Flow>;
    type Nats = HostFlows<NatKey, Nat>;

    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn precise_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn config(&self) -> Option<&Config> {
        (!self.setup.config.address.is_none()).then_some(&self.setup.config)
    }

    fn address_index(&self, address: &Address) -> Option<u32> {
        let index = self.setup.addresses.iter().position(|own| own == address)?;
        u32::try_from(index).ok()
    }

    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.setup.services.iter().find(|(own, _)| own == key).map(|(_, service)| service)
    }

    fn is_allowed(&self, service_index: u32, client: &Address) -> bool {
        let bits = |index: u32, address: [u8; 16]| bits(index.to_be_bytes().into_iter().chain(address));
        let whole = bits(service_index, client.0);
        self.setup.allowed.iter().any(|(len, key)| {
            let network = bits(u32::from_be_bytes(key.service_index_be), key.network);
            network[..*len as usize] == whole[..*len as usize]
        })
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.setup.backends.iter().find(|(own, _)| *own == id).map(|(_, backend)| backend)
    }

    fn node(&self, index: u32) -> Option<&Node> {
        self.setup.nodes.get(index as usize)
    }

    fn peer(&self, address: &Address) -> Option<u32> {
        let index = self.setup.nodes.iter().skip(1).position(|node| node.address == *address)?;
        u32::try_from(index + 1).ok()
    }

    fn member(&self, index: u32) -> Option<&Member> {
        const UNWRITTEN: &Member = &Member { accepted: [0; 2], flags: 0 };
        Some(self.setup.members.get(index as usize).unwrap_or(UNWRITTEN))
    }

    fn link(&self, ifindex: u32) -> Option<&Link> {
        self.setup.links.iter().find(|(own, _)| *own == ifindex).map(|(_, link)| link)
    }

    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        self.setup.endpoints.iter().find(|(own, _)| own == key).map(|(_, endpoint)| endpoint)
    }

    fn virtual_ip(&self, key: &EndpointKey) -> Option<&Service> {
        self.setup.virtual_ips.iter().find(|(own, _)| own == key).map(|(_, service)| service)
    }

    fn subnet6(&self, network: u32) -> Option<&Subnet6> {
        self.setup.subnets6.iter().find(|(own, _)| *own == network).map(|(_, subnet)| subnet)
    }

    fn is_isolated(&self, address: &Address) -> bool {
        let whole = bits(address.0);
        let covers = |len: u32, network: [u8; 16]| bits(network)[..len as usize] == whole[..len as usize];
        let covering = self.setup.isolated.iter().filter(|(len, key, _)| covers(*len, key.network));
        covering.max_by_key(|(len, ..)| *len).is_some_and(|(.., class)| *class == ISOLATED)
    }

    fn socket_owns(&self, connection: &Connection) -> bool {
        self.sockets.contains(connection)
    }

    fn flows(&self) -> &Self::Flows {
        &self.flows
    }

    fn nats(&self) -> &Self::Nats {
        &self.nats
    }

    fn fragment_ports(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }

    fn keep_fragment_ports(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }

    fn may_remember_syn(&self) -> bool {
        let is_granted = self.take(|guard| &mut guard.syns);
        if !is_granted {
            self.guard_fired_ns.set(self.now_ns());
        }
        is_granted
    }

    fn may_remember_late(&self) -> bool {
        self.take(|guard| &mut guard.late)
    }

    fn keyed_hash(&self, key: &FlowKey) -> u32 {
        const SEED: u64 = 0x9e6c_63d0_76cc_4f13;
        flow_table::keyed_hash(key, flow_table::factors(SEED))
    }

    fn has_guarded(&self, within_ns: u64) -> bool {
        let fired_ns = self.guard_fired_ns.get();
        fired_ns != 0 && self.now_ns().saturating_sub(fired_ns) < within_ns
    }

    fn count_unremembered(&self, service_index: u32) {
        self.counted(|counted| counted.unremembered.entry(service_index).or_default());
    }

    fn keep_load(&self, backend: u32, load: u32) {
        let told = BackendLoad { seen_ns: self.now_ns(), load, reserved: 0 };
        self.told.borrow_mut().insert(backend, told);
    }

    fn count_opened(&self, _: u32, backend: u32) {
        self.counted(|counted| counted.opened.entry(backend).or_default());
    }

    fn count_closed(&self, backend: u32) {
        self.counted(|counted| counted.closed.entry(backend).or_default());
    }

    fn count_revived(&self, backend: u32) {
        self.counted(|counted| counted.revived.entry(backend).or_default());
    }

    fn count_answered(&self, backend: u32) {
        self.counted(|counted| counted.answered.entry(backend).or_default());
    }

    fn count_refused(&self, backend: u32) {
        self.counted(|counted| counted.refused.entry(backend).or_default());
    }

    fn count_unanswered(&self, backend: u32) {
        self.counted(|counted| counted.unanswered.entry(backend).or_default());
    }

    fn count_no_backend(&self, service_index: u32) {
        self.counted(|counted| counted.no_backend.entry(service_index).or_default());
    }

    fn keep_duration(&self, timed: Timed, service_index: u32, duration_ns: u64) {
        let mut counted = self.counted.borrow_mut();
        counted.durations.entry((timed, service_index)).or_default().add(duration_ns);
    }

    fn count_traffic(&self, _: u32, backend: u32, direction: Direction, _: PacketCount) {
        self.counted(|counted| counted.packets.entry((backend, direction)).or_default());
    }

    fn count_drop(&self, reason: DropReason, direction: Direction) {
        self.counted(|counted| counted.drops.entry((reason, direction)).or_default());
    }
}

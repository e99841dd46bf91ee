//! [`Lookups`] over the kernel's maps, clock and sockets.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};

use super::flow_maps::{FlowCells, NatTables};
use super::guard::BucketKind;
use super::{atomic, durations, guard, maps, sockets};
use crate::abi::{
    Address, AllowedKey, Backend, BackendStats, Config, Direction, DropReason, Endpoint, EndpointKey,
    FlowKey, FragmentKey, FragmentPorts, ISOLATED, IsolatedKey, Link, Member, Node, Service, ServiceKey,
    Subnet6, Timed, Traffic, drop_index,
};
use crate::flow_table::{self, Cells};
use crate::lookups::{Connection, Lookups, PacketCount};
use crate::select::Candidates;

/// The kernel as one program run sees it.
pub struct Kernel {
    /// The program's context, for the socket lookup.
    context: *mut c_void,
    /// Looked up once, as the pipeline reads it several times for each packet.
    config: Option<&'static Config>,
}

impl Kernel {
    /// The tables of a program run with this context.
    #[inline(always)]
    pub fn new(context: *mut c_void) -> Self {
        Self { context, config: maps::CONFIG.get(0).filter(|config| !config.address.is_none()) }
    }

    /// Counts a packet left to the host stack.
    #[inline(always)]
    pub fn count_passed(&self, direction: Direction) {
        add(maps::PASSED.get_ptr_mut(direction as u32), 1);
    }

    /// SYNs a second that may create flows; 0: no limit.
    #[inline(always)]
    fn guard_rate(&self) -> u32 {
        self.config.map_or(0, |config| config.syn_guard_rate)
    }

    /// The counters of a backend, on this CPU.
    #[inline(always)]
    fn backend_stats(&self, id: u32) -> Option<*mut BackendStats> {
        maps::BACKEND_STATS.get_ptr_mut(id)
    }
}

/// Adds to a counter of this CPU, if the counter exists.
#[inline(always)]
fn add(counter: Option<*mut u64>, count: u64) {
    if let Some(counter) = counter {
        // SAFETY: a live per-CPU map value; nothing else on this CPU runs between load and store
        // that uses it.
        unsafe { *counter += count }
    }
}

/// Adds a packet to the traffic counters of this CPU at `traffic`.
///
/// # Safety
/// `traffic` points into a live per-CPU map value.
#[inline(always)]
unsafe fn add_traffic(traffic: *mut Traffic, count: PacketCount) {
    // SAFETY: as the caller promises.
    unsafe {
        (*traffic).packets += u64::from(count.packets);
        (*traffic).bytes += u64::from(count.bytes);
    }
}

impl Candidates for Kernel {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        maps::SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn next_turn(&self, service_index: u32) -> u64 {
        match maps::ROUND_ROBIN.get_ptr_mut(service_index) {
            // SAFETY: a live value of an array of u64.
            Some(turns) => unsafe { atomic::fetch_add(turns, 1) },
            None => 0,
        }
    }

    #[inline(always)]
    fn live(&self, id: u32) -> u64 {
        let drift = maps::LIVE_DRIFT.get(id).copied().unwrap_or(0);
        maps::LIVE.get(id).map_or(0, |live| live.count(drift))
    }

    #[inline(always)]
    fn is_alive(&self, id: u32) -> bool {
        self.backend(id).is_some_and(Backend::is_alive)
    }

    #[inline(always)]
    fn weight(&self, id: u32) -> u32 {
        self.backend(id).map_or(1, |backend| if backend.weight == 0 { 1 } else { u32::from(backend.weight) })
    }

    #[inline(always)]
    fn load(&self, id: u32) -> Option<u32> {
        maps::LOADS.get(id)?.fresh(self.now_ns())
    }
}

impl Lookups for Kernel {
    type Flows = FlowCells;
    type Nats = NatTables;

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // The precision of a tick is enough for timeouts, at a tenth of the cost.
        // SAFETY: the helper takes no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn precise_ns(&self) -> u64 {
        // SAFETY: the helper takes no arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        self.config
    }

    #[inline(always)]
    fn address_index(&self, address: &Address) -> Option<u32> {
        if self.config()?.address == *address {
            return Some(0);
        }
        // SAFETY: the value is copied at once.
        unsafe { maps::ADDRESSES.get(address) }.copied()
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        // SAFETY: a replaced value stays readable until the program ends (RCU).
        unsafe { maps::SERVICES.get(key) }
    }

    #[inline(always)]
    fn is_allowed(&self, service_index: u32, client: &Address) -> bool {
        let key = AllowedKey { service_index_be: service_index.to_be_bytes(), network: client.0 };
        maps::ALLOWED.get(&Key::new(AllowedKey::BITS, key)).is_some()
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        maps::BACKENDS.get(id)
    }

    #[inline(always)]
    fn node(&self, index: u32) -> Option<&Node> {
        maps::NODES.get(index)
    }

    #[inline(always)]
    fn peer(&self, address: &Address) -> Option<u32> {
        // SAFETY: a live value of a hash map; userspace writes whole words.
        maps::PEERS.get_ptr(address).map(|index| unsafe { *index })
    }

    #[inline(always)]
    fn member(&self, index: u32) -> Option<&Member> {
        maps::MEMBERS.get(index)
    }

    #[inline(always)]
    fn link(&self, ifindex: u32) -> Option<&Link> {
        // SAFETY: a replaced value stays readable until the program ends (RCU).
        unsafe { maps::LINKS.get(&ifindex) }
    }

    #[inline(always)]
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        // SAFETY: as above.
        unsafe { maps::ENDPOINTS.get(key) }
    }

    #[inline(always)]
    fn virtual_ip(&self, key: &EndpointKey) -> Option<&Service> {
        // SAFETY: as above.
        unsafe { maps::VIRTUAL_IPS.get(key) }
    }

    #[inline(always)]
    fn subnet6(&self, network: u32) -> Option<&Subnet6> {
        // SAFETY: as above.
        unsafe { maps::SUBNETS6.get(&network) }
    }

    #[inline(always)]
    fn is_isolated(&self, address: &Address) -> bool {
        let key = Key::new(IsolatedKey::BITS, IsolatedKey { network: address.0 });
        maps::ISOLATED.get(&key).is_some_and(|class| *class == ISOLATED)
    }

    #[inline(always)]
    fn socket_owns(&self, connection: &Connection) -> bool {
        // SAFETY: the context is that of this program run.
        unsafe { sockets::owns(self.context, connection) }
    }

    #[inline(always)]
    fn flows(&self) -> &Self::Flows {
        &FlowCells
    }

    #[inline(always)]
    fn nats(&self) -> &Self::Nats {
        &NatTables
    }

    #[inline(always)]
    fn fragment_ports(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: the value is copied at once.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn keep_fragment_ports(&self, key: &FragmentKey, ports: &FragmentPorts) {
        // If the map refuses the entry, the later fragments are left to the host stack.
        maps::FRAGMENTS.insert(key, ports, u64::from(BPF_ANY)).ok();
    }

    #[inline(always)]
    fn may_remember_syn(&self) -> bool {
        let now_ns = self.now_ns();
        let may = guard::may_remember(BucketKind::Syn, self.guard_rate(), now_ns);
        if !may {
            guard::fire(now_ns);
        }
        may
    }

    #[inline(always)]
    fn may_remember_late(&self) -> bool {
        guard::may_remember(BucketKind::Late, self.guard_rate(), self.now_ns())
    }

    #[inline(always)]
    fn keyed_hash(&self, key: &FlowKey) -> u32 {
        flow_table::keyed_hash(key, FlowCells.factors())
    }

    #[inline(always)]
    fn has_guarded(&self, within_ns: u64) -> bool {
        guard::has_fired(within_ns, self.now_ns())
    }

    #[inline(always)]
    fn count_unremembered(&self, service_index: u32) {
        if let Some(stats) = maps::FRONTEND_STATS.get_ptr_mut(service_index) {
            // SAFETY: a live per-CPU value.
            unsafe { (*stats).unremembered += 1 }
        }
    }

    #[inline(always)]
    fn keep_load(&self, backend: u32, load: u32) {
        let now_ns = self.now_ns();
        if let Some(entry) = maps::LOADS.get_ptr_mut(backend) {
            // SAFETY: a live map value; of two writers' figures, and of their times, any will do.
            unsafe {
                if !(*entry).has_just(load, now_ns) {
                    (*entry).seen_ns = now_ns;
                    (*entry).load = load;
                }
            }
        }
    }

    #[inline(always)]
    fn count_opened(&self, service_index: u32, backend: u32) {
        if let Some(stats) = self.backend_stats(backend) {
            // SAFETY: a live per-CPU value.
            unsafe { (*stats).opened += 1 }
        }
        if let Some(stats) = maps::FRONTEND_STATS.get_ptr_mut(service_index) {
            // SAFETY: a live per-CPU value.
            unsafe { (*stats).opened += 1 }
        }
        if let Some(live) = maps::LIVE.get_ptr_mut(backend) {
            // SAFETY: a live map value, its counters 8-byte aligned.
            unsafe { atomic::fetch_add(&raw mut (*live).opened, 1) };
        }
    }

    #[inline(always)]
    fn count_closed(&self, backend: u32) {
        if let Some(stats) = self.backend_stats(backend) {
            // SAFETY: a live per-CPU value.
            unsafe { (*stats).closed += 1 }
        }
        if let Some(live) = maps::LIVE.get_ptr_mut(backend) {
            // SAFETY: a live map value, its counters 8-byte aligned.
            unsafe { atomic::fetch_add(&raw mut (*live).closed, 1) };
        }
    }

    #[inline(always)]
    fn count_revived(&self, backend: u32) {
        if let Some(live) = maps::LIVE.get_ptr_mut(backend) {
            // SAFETY: a live map value, its counters 8-byte aligned.
            unsafe { atomic::fetch_add(&raw mut (*live).opened, 1) };
        }
    }

    #[inline(always)]
    fn count_answered(&self, backend: u32) {
        if let Some(stats) = self.backend_stats(backend) {
            // SAFETY: a live per-CPU value.
            unsafe { (*stats).answered += 1 }
        }
    }

    #[inline(always)]
    fn count_refused(&self, backend: u32) {
        if let Some(stats) = self.backend_stats(backend) {
            // SAFETY: a live per-CPU value.
            unsafe { (*stats).refused += 1 }
        }
    }

    #[inline(always)]
    fn count_unanswered(&self, backend: u32) {
        if let Some(stats) = self.backend_stats(backend) {
            // SAFETY: a live per-CPU value.
            unsafe { (*stats).unanswered += 1 }
        }
    }

    #[inline(always)]
    fn count_no_backend(&self, service_index: u32) {
        if let Some(stats) = maps::FRONTEND_STATS.get_ptr_mut(service_index) {
            // SAFETY: a live per-CPU value.
            unsafe { (*stats).no_backend += 1 }
        }
    }

    #[inline(always)]
    fn keep_duration(&self, timed: Timed, service_index: u32, duration_ns: u64) {
        durations::keep(timed, service_index, duration_ns);
    }

    #[inline(always)]
    fn count_traffic(&self, service_index: u32, backend: u32, direction: Direction, count: PacketCount) {
        if let Some(stats) = self.backend_stats(backend) {
            // SAFETY: a live per-CPU value.
            unsafe {
                match direction {
                    Direction::Request => add_traffic(&raw mut (*stats).request, count),
                    Direction::Reply => add_traffic(&raw mut (*stats).reply, count),
                }
            }
        }
        if let Some(stats) = maps::FRONTEND_STATS.get_ptr_mut(service_index) {
            // SAFETY: a live per-CPU value.
            unsafe {
                match direction {
                    Direction::Request => add_traffic(&raw mut (*stats).request, count),
                    Direction::Reply => add_traffic(&raw mut (*stats).reply, count),
                }
            }
        }
    }

    #[inline(always)]
    fn count_drop(&self, reason: DropReason, direction: Direction) {
        add(maps::DROPS.get_ptr_mut(drop_index(reason, direction)), 1);
    }
}

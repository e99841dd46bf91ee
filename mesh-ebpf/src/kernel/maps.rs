//! The maps of the object; their names are those in [`crate::abi::names`].

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray};
use aya_ebpf::macros::btf_map;

use crate::abi::{
    Address, AllowedKey, Backend, BackendLoad, BackendStats, Config, Direction, DropReason, Edge, Endpoint,
    EndpointKey, Evicted, FlowCell, FragmentKey, FragmentPorts, FrontendStats, Histogram, IsolatedKey, Link,
    Live, Member, Nat, NatKey, Node, Service, ServiceKey, Subnet6, SynGuard, names,
};
use crate::flow_table::{cell_count, factors, homes_for};
use crate::parse::{fragment, icmp};

const ADDRESSES_MAX: usize = names::ADDRESSES_MAX as usize;
const SERVICES_MAX: usize = names::SERVICES_MAX as usize;
const SLOTS_MAX: usize = names::SLOTS_MAX as usize;
const BACKENDS_MAX: usize = names::BACKENDS_MAX as usize;
const NODES_MAX: usize = names::NODES_MAX as usize;
const HALF_OPEN_MAX: usize = names::HALF_OPEN_MAX as usize;
const ESTABLISHED_MAX: usize = names::ESTABLISHED_MAX as usize;
const ALLOWED_MAX: usize = names::ALLOWED_MAX as usize;
const FRAGMENTS_MAX: usize = names::FRAGMENTS_MAX as usize;
const LINKS_MAX: usize = names::LINKS_MAX as usize;
const SUBNETS6_MAX: usize = names::SUBNETS6_MAX as usize;
const ENDPOINTS_MAX: usize = names::ENDPOINTS_MAX as usize;
const VIRTUAL_IPS_MAX: usize = names::VIRTUAL_IPS_MAX as usize;
const ISOLATED_MAX: usize = names::ISOLATED_MAX as usize;
const DURATIONS_MAX: usize = names::DURATIONS_MAX as usize;
const HOMES: u32 = homes_for(names::ESTABLISHED_MAX + names::HALF_OPEN_MAX);
const CELLS: usize = cell_count(HOMES) as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const DIRECTIONS: usize = Direction::ALL.len();
const DROPS_MAX: usize = DropReason::ALL.len() * DIRECTIONS;

#[btf_map]
pub(super) static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub(super) static ADDRESSES: HashMap<Address, u32, ADDRESSES_MAX> = HashMap::new();
#[btf_map]
pub(super) static SERVICES: HashMap<ServiceKey, Service, SERVICES_MAX> = HashMap::new();
#[btf_map]
pub(super) static SLOTS: Array<u32, SLOTS_MAX> = Array::new();
#[btf_map]
pub(super) static BACKENDS: Array<Backend, BACKENDS_MAX> = Array::new();
#[btf_map]
pub(super) static NODES: Array<Node, NODES_MAX> = Array::new();
#[btf_map]
pub(super) static PEERS: HashMap<Address, u32, NODES_MAX> = HashMap::new();
#[btf_map]
pub(super) static MEMBERS: Array<Member, NODES_MAX> = Array::new();
#[btf_map]
pub(super) static FLOWS: Array<FlowCell, CELLS, MMAPABLE> = Array::new();
#[btf_map]
pub(super) static NAT_HALF_OPEN: LruHashMap<NatKey, Nat, HALF_OPEN_MAX> = LruHashMap::new();
#[btf_map]
pub(super) static NAT_ESTABLISHED: LruHashMap<NatKey, Nat, ESTABLISHED_MAX> = LruHashMap::new();
#[btf_map]
pub(super) static ROUND_ROBIN: Array<u64, SERVICES_MAX> = Array::new();
#[btf_map]
pub(super) static LIVE: Array<Live, BACKENDS_MAX> = Array::new();
#[btf_map]
pub(super) static LIVE_DRIFT: Array<i64, BACKENDS_MAX> = Array::new();
#[btf_map]
pub(super) static BACKEND_STATS: PerCpuArray<BackendStats, BACKENDS_MAX> = PerCpuArray::new();
#[btf_map]
pub(super) static FRONTEND_STATS: PerCpuArray<FrontendStats, SERVICES_MAX> = PerCpuArray::new();
#[btf_map]
pub(super) static DROPS: PerCpuArray<u64, DROPS_MAX> = PerCpuArray::new();
#[btf_map]
pub(super) static PASSED: PerCpuArray<u64, DIRECTIONS> = PerCpuArray::new();
#[btf_map]
pub(super) static LOADS: Array<BackendLoad, BACKENDS_MAX> = Array::new();
#[btf_map]
pub(super) static ALLOWED: LpmTrie<AllowedKey, u32, ALLOWED_MAX> = LpmTrie::new();
#[btf_map]
pub(super) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, FRAGMENTS_MAX> = LruHashMap::new();
// Without preallocation: few of the possible published ports are in use, and a histogram is large
// on machines with many CPUs.
#[btf_map]
pub(super) static DURATIONS: PerCpuHashMap<u32, Histogram, DURATIONS_MAX, NO_PREALLOC> = PerCpuHashMap::new();
#[btf_map]
pub(super) static EVICTIONS: Array<u64, { Evicted::COUNT }> = Array::new();
#[btf_map]
pub(super) static EDGES: ProgramArray<{ Edge::ALL.len() }> = ProgramArray::new();
#[btf_map]
pub(super) static SYN_GUARD: PerCpuArray<SynGuard, 1> = PerCpuArray::new();
#[btf_map]
pub(super) static SYN_GUARD_FIRED: Array<u64, 1> = Array::new();

// Without preallocation: most nodes know far fewer addresses.
#[btf_map]
pub(super) static LINKS: HashMap<u32, Link, LINKS_MAX, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(super) static ENDPOINTS: HashMap<EndpointKey, Endpoint, ENDPOINTS_MAX, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(super) static VIRTUAL_IPS: HashMap<EndpointKey, Service, VIRTUAL_IPS_MAX, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(super) static ISOLATED: LpmTrie<IsolatedKey, u32, ISOLATED_MAX> = LpmTrie::new();
#[btf_map]
pub(super) static SUBNETS6: HashMap<u32, Subnet6, SUBNETS6_MAX, NO_PREALLOC> = HashMap::new();

/// Read by [`super::flow_maps`]; userspace replaces the value before it loads the programs.
#[unsafe(no_mangle)]
pub(super) static FLOW_HOMES: u32 = HOMES;
#[unsafe(no_mangle)]
pub(super) static FLOW_FACTORS: [u64; 3] = factors(0);

/// Scratch space for parsing an ICMP error or a fragment: no other program runs on this CPU
/// meanwhile. Userspace doesn't need these maps, so they are neither in `names` nor pinned.
#[btf_map]
static ERROR: PerCpuArray<icmp::Error, 1> = PerCpuArray::new();
#[btf_map]
static FRAGMENT: PerCpuArray<fragment::FragmentHeader, 1> = PerCpuArray::new();

/// This CPU's scratch space for an ICMP error.
#[inline(always)]
pub fn error() -> Option<&'static mut icmp::Error> {
    // SAFETY: zeros are a valid value, and the program, which calls this once, is the only one on
    // this CPU until it ends.
    ERROR.get_ptr_mut(0).map(|error| unsafe { &mut *error })
}

/// This CPU's scratch space for a fragment.
#[inline(always)]
pub fn fragment() -> Option<&'static mut fragment::FragmentHeader> {
    // SAFETY: as in `error`.
    FRAGMENT.get_ptr_mut(0).map(|fragment| unsafe { &mut *fragment })
}

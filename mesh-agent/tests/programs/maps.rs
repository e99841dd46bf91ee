//! Puts the host's tables into the kernel's maps, and empties these again.

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues};
use aya::{Ebpf, Pod};
use mesh_ebpf::abi::{
    Address, AllowedKey, Backend, BackendLoad, Be16, Config, Endpoint, EndpointKey, Flow, FlowCell, FlowKey,
    FragmentKey, FragmentPorts, IsolatedKey, Link, Live, Member, Nat, NatKey, Node, Service, ServiceKey,
    Subnet6, SynGuard, VipId, names,
};
use mesh_ebpf::flow_table;
use mesh_ebpf::testing::{HostCells, Setup};

use super::{HOMES, IDS_MAX, SEED};

/// Removes from the maps what fixtures and programs have put there.
pub(super) fn clear(programs: &mut Ebpf) {
    let ids = || 0..IDS_MAX;
    set(programs, names::CONFIG, [(0, Config::default())].into_iter());
    set(programs, names::SLOTS, ids().map(|id| (id, 0u32)));
    set(programs, names::BACKENDS, ids().map(|id| (id, Backend::default())));
    set(programs, names::NODES, ids().map(|id| (id, Node::default())));
    set(programs, names::MEMBERS, ids().map(|id| (id, Member::default())));
    set(programs, names::LOADS, ids().map(|id| (id, BackendLoad::default())));
    set(programs, names::LIVE, ids().map(|id| (id, Live::default())));
    set(programs, names::ROUND_ROBIN, ids().map(|id| (id, 0u64)));
    empty::<Address, u32>(programs, names::ADDRESSES);
    empty::<Address, u32>(programs, names::PEERS);
    empty::<ServiceKey, Service>(programs, names::SERVICES);
    empty::<u32, Link>(programs, names::LINKS);
    empty::<EndpointKey, Endpoint>(programs, names::ENDPOINTS);
    empty::<EndpointKey, Service>(programs, names::VIRTUAL_IPS);
    empty::<u32, Subnet6>(programs, names::SUBNETS6);
    let mut isolated = isolated_networks(programs);
    let keys: Vec<_> = isolated.keys().map(|key| key.expect("key")).collect();
    for key in keys {
        isolated.remove(&key).expect("network");
    }
    empty::<NatKey, Nat>(programs, names::NAT_HALF_OPEN);
    empty::<NatKey, Nat>(programs, names::NAT_ESTABLISHED);
    empty::<FragmentKey, FragmentPorts>(programs, names::FRAGMENTS);
    let map = programs.map_mut(names::ALLOWED).expect("map of allowed networks");
    let mut allowed: LpmTrie<_, AllowedKey, u32> = LpmTrie::try_from(map).expect("trie");
    let keys: Vec<_> = allowed.keys().map(|key| key.expect("key")).collect();
    for key in keys {
        allowed.remove(&key).expect("network");
    }
    let map = programs.map_mut(names::DROPS).expect("map of drops");
    let mut drops: PerCpuArray<_, u64> = PerCpuArray::try_from(map).expect("per-CPU array");
    let cpus = aya::util::nr_cpus().expect("number of CPUs");
    for index in 0..drops.len() {
        let zeros = PerCpuValues::try_from(vec![0; cpus]).expect("a value for each CPU");
        drops.set(index, zeros, 0).expect("drops");
    }
}

/// The cells of a flow table in which every cell holds a flow of this protocol with these events.
pub(super) fn full_table(ip_protocol: u8, events: u32) -> impl Iterator<Item = FlowCell> {
    let table = HostCells::new(HOMES, SEED);
    let client = |number: u32| Address::v4((0xc612_0000 + number).to_be_bytes());
    for number in 0..100 * HOMES {
        let vip = VipId::new(1, ip_protocol, 80);
        let key = FlowKey { client: client(number), client_port_be: Be16::new(4000), reserved: [0; 2], vip };
        let flow = Flow { events, ..Flow::default() };
        flow_table::insert(&table, &key, &flow, 0);
    }
    let mut table = table;
    let cells: Vec<FlowCell> = table.contents().collect();
    let taken = cells.iter().filter(|cell| cell.flow.events & events != 0).count();
    assert_eq!(taken, cells.len() - 1, "all cells but the header are taken");
    cells.into_iter()
}

fn isolated_networks(programs: &mut Ebpf) -> LpmTrie<&mut MapData, IsolatedKey, u32> {
    let map = programs.map_mut(names::ISOLATED).expect("map of isolated networks");
    LpmTrie::try_from(map).expect("trie")
}

fn empty<K: Pod, V: Pod>(programs: &mut Ebpf, name: &str) {
    let mut map: HashMap<_, K, V> = HashMap::try_from(programs.map_mut(name).expect(name)).expect(name);
    let keys: Vec<K> = map.keys().map(|key| key.expect(name)).collect();
    for key in keys {
        map.remove(&key).expect(name);
    }
}

/// Copies the initial entries of the host's tables into the maps.
pub(super) fn fill(programs: &mut Ebpf, setup: &Setup) {
    set(programs, names::CONFIG, (0..).zip([setup.config]));
    set(programs, names::SYN_GUARD_FIRED, (0..).zip([setup.guard_fired_ns]));
    let map = programs.map_mut(names::SYN_GUARD).expect("map of the guard");
    let mut guard: PerCpuArray<_, SynGuard> = PerCpuArray::try_from(map).expect("per-CPU array");
    let cpus = aya::util::nr_cpus().expect("number of CPUs");
    let alike = PerCpuValues::try_from(vec![setup.guard; cpus]).expect("a value for each CPU");
    guard.set(0, alike, 0).expect("guard");
    set(programs, names::SLOTS, (0..).zip(setup.slots.iter().copied()));
    set(programs, names::BACKENDS, setup.backends.iter().copied());
    set(programs, names::NODES, (0..).zip(setup.nodes.iter().copied()));
    set(programs, names::MEMBERS, (0..).zip(setup.members.iter().copied()));
    set(programs, names::LOADS, setup.loads.iter().copied());
    insert(programs, names::ADDRESSES, setup.addresses.iter().copied().zip(0u32..));
    insert(programs, names::PEERS, setup.nodes.iter().map(|node| node.address).zip(0u32..).skip(1));
    insert(programs, names::SERVICES, setup.services.iter().copied());
    insert(programs, names::LINKS, setup.links.iter().copied());
    insert(programs, names::ENDPOINTS, setup.endpoints.iter().copied());
    insert(programs, names::VIRTUAL_IPS, setup.virtual_ips.iter().copied());
    insert(programs, names::SUBNETS6, setup.subnets6.iter().copied());
    let mut isolated = isolated_networks(programs);
    for (len, key, class) in &setup.isolated {
        isolated.insert(&Key::new(*len, *key), class, 0).expect("network");
    }
    let map = programs.map_mut(names::ALLOWED).expect("map of allowed networks");
    let mut allowed: LpmTrie<_, AllowedKey, u32> = LpmTrie::try_from(map).expect("trie");
    for (len, key) in &setup.allowed {
        allowed.insert(&Key::new(*len, *key), 1, 0).expect("network");
    }
    let flows = setup.flows_half_open.iter().chain(&setup.flows_established);
    set(programs, names::FLOWS, (0..).zip(HostCells::with(HOMES, SEED, flows).contents()));
    insert(programs, names::NAT_HALF_OPEN, setup.nats_half_open.iter().copied());
    insert(programs, names::NAT_ESTABLISHED, setup.nats_established.iter().copied());
    insert(programs, names::FRAGMENTS, setup.fragments.iter().copied());
}

pub(super) fn set<V: Pod>(programs: &mut Ebpf, name: &str, values: impl Iterator<Item = (u32, V)>) {
    let mut map: Array<_, V> = Array::try_from(programs.map_mut(name).expect(name)).expect(name);
    for (index, value) in values {
        map.set(index, value, 0).expect(name);
    }
}

fn insert<K: Pod, V: Pod>(programs: &mut Ebpf, name: &str, entries: impl Iterator<Item = (K, V)>) {
    let mut map: HashMap<_, K, V> = HashMap::try_from(programs.map_mut(name).expect(name)).expect(name);
    for (key, value) in entries {
        map.insert(key, value, 0).expect(name);
    }
}

//! Names of maps and programs in the object, and the sizes of the maps.

/// Array, 1 entry of [`super::Config`].
pub const CONFIG: &str = "CONFIG";
/// Hash, [`super::Address`] → address index (`u32`): the addresses of this node.
pub const ADDRESSES: &str = "ADDRESSES";
/// Hash, [`super::ServiceKey`] → [`super::Service`].
pub const SERVICES: &str = "SERVICES";
/// Array of backend ids (`u32`); a service owns a range of it.
pub const SLOTS: &str = "SLOTS";
/// Array, backend id → [`super::Backend`].
pub const BACKENDS: &str = "BACKENDS";
/// Array, node index → [`super::Node`].
pub const NODES: &str = "NODES";
/// Hash, [`super::Address`] of a member node → node index (`u32`): who may send through the tunnel.
pub const PEERS: &str = "PEERS";
/// Array, node index → [`super::Member`]: what that node's tunnel packets must bear.
pub const MEMBERS: &str = "MEMBERS";
/// Array of [`super::FlowCell`]s, mapped into userspace's memory: the ingress node's flows, see
/// [`crate::flow_table`].
pub const FLOWS: &str = "FLOWS";
/// LRU hash, [`super::NatKey`] → [`super::Nat`]: translations of connections that the client has
/// not confirmed yet, or that have ended.
pub const NAT_HALF_OPEN: &str = "NAT_HALF_OPEN";
/// LRU hash, [`super::NatKey`] → [`super::Nat`]: translations of established connections.
pub const NAT_ESTABLISHED: &str = "NAT_ESTABLISHED";
/// Array, service index → number of flows assigned so far (`u64`).
pub const ROUND_ROBIN: &str = "ROUND_ROBIN";
/// Array, backend id → [`super::Live`].
pub const LIVE: &str = "LIVE";
/// Array, backend id → `i64`, written by userspace only: how much `opened − closed` exceeds the
/// live flows.
pub const LIVE_DRIFT: &str = "LIVE_DRIFT";
/// Per-CPU array, backend id → [`super::BackendStats`].
pub const BACKEND_STATS: &str = "BACKEND_STATS";
/// Per-CPU array, service index → [`super::FrontendStats`].
pub const FRONTEND_STATS: &str = "FRONTEND_STATS";
/// Per-CPU array of `u64`, index by [`super::drop_index`].
pub const DROPS: &str = "DROPS";
/// Per-CPU array of `u64`, index by [`super::Direction`]: packets that TC programs passed to the
/// host stack.
pub const PASSED: &str = "PASSED";

/// Array, backend id → [`super::BackendLoad`].
pub const LOADS: &str = "LOADS";
/// LPM trie, [`super::AllowedKey`] → `u32` 1: networks that may open flows, for services with
/// [`super::service_flag::ALLOW_LIST`].
pub const ALLOWED: &str = "ALLOWED";
/// LRU hash, [`super::FragmentKey`] → [`super::FragmentPorts`]: the ports of packets that come in
/// fragments.
pub const FRAGMENTS: &str = "FRAGMENTS";
/// Per-CPU hash, [`super::Timed::key`] → [`super::Histogram`]. Userspace creates the entries.
pub const DURATIONS: &str = "DURATIONS";
/// Array of `u64`, written by userspace only: flows removed before they ended, by
/// [`super::Evicted::index`]. The counters are in a map so that they outlive the agent.
pub const EVICTIONS: &str = "EVICTIONS";

/// Array of programs, by [`super::Edge`]: the tail calls of the hooks' programs.
pub const EDGES: &str = "EDGES";
/// Per-CPU array, 1 entry of [`super::SynGuard`].
pub const SYN_GUARD: &str = "SYN_GUARD";
/// Array, 1 entry of `u64`: when a CPU last forwarded a SYN without creating a flow, or evicted a
/// half-open flow, ns of the monotonic clock, up to [`crate::guard::FIRED_STEP_NS`] late.
pub const SYN_GUARD_FIRED: &str = "SYN_GUARD_FIRED";

/// Hash, ifindex (`u32`) of a host-side veth on a network → [`super::Link`]: as whom its task may
/// send there. Userspace writes it.
pub const LINKS: &str = "LINKS";
/// Hash, [`super::EndpointKey`] → [`super::Endpoint`]: who has an address of a network. Userspace
/// writes it.
pub const ENDPOINTS: &str = "ENDPOINTS";
/// Hash, [`super::EndpointKey`] → [`super::Service`]: virtual IPs of services. Userspace writes it.
pub const VIRTUAL_IPS: &str = "VIRTUAL_IPS";
/// LPM trie, [`super::IsolatedKey`] → `u32`, [`super::ISOLATED`] or [`super::REACHABLE`]: what
/// tasks must not send to by their veth on `mesh`. Userspace writes it.
pub const ISOLATED: &str = "ISOLATED";

/// Hash, number of a network (`u32`) → [`super::Subnet6`]: the IPv6 addresses of networks.
/// Userspace writes it.
pub const SUBNETS6: &str = "SUBNETS6";

/// Every map of the object.
pub const MAPS: [&str; 31] = [
    CONFIG,
    ADDRESSES,
    SERVICES,
    SLOTS,
    BACKENDS,
    NODES,
    PEERS,
    MEMBERS,
    FLOWS,
    NAT_HALF_OPEN,
    NAT_ESTABLISHED,
    ROUND_ROBIN,
    LIVE,
    LIVE_DRIFT,
    BACKEND_STATS,
    FRONTEND_STATS,
    DROPS,
    PASSED,
    LOADS,
    ALLOWED,
    FRAGMENTS,
    DURATIONS,
    EVICTIONS,
    EDGES,
    SYN_GUARD,
    SYN_GUARD_FIRED,
    LINKS,
    ENDPOINTS,
    VIRTUAL_IPS,
    ISOLATED,
    SUBNETS6,
];

/// XDP on an uplink: ingress role towards remote backends, and their replies.
pub const PROGRAM_XDP: &str = "mesh_xdp";
/// TC ingress of an uplink: ingress role towards all backends, and local delivery.
pub const PROGRAM_UPLINK: &str = "mesh_uplink";
/// TC egress of an uplink: writes the cookie into packets that the VXLAN device sends, and records
/// connections that the node forwards from a published port.
pub const PROGRAM_EGRESS: &str = "mesh_egress";
/// TC egress of the VXLAN device: marks the packets that the device sends, for [`PROGRAM_EGRESS`].
pub const PROGRAM_DEVICE: &str = "mesh_device";
/// TC ingress of the VXLAN device: requests for this node's tasks, and replies for this node's
/// clients.
pub const PROGRAM_TUNNEL: &str = "mesh_tunnel";
/// TC ingress of a task's host-side veth: the task's replies.
pub const PROGRAM_TASK: &str = "mesh_task";
/// TC ingress of the host-side veth by which a task is connected to an overlay network.
pub const PROGRAM_OVERLAY: &str = "mesh_overlay";
/// TC ingress of the encryption device: packets of encrypted networks that it has decrypted.
pub const PROGRAM_DECRYPTED: &str = "mesh_decrypted";
/// XDP program that passes everything, in an object of its own, for the far ends of veth uplinks.
pub const PROGRAM_PASS: &str = "mesh_pass";

/// Entries of [`ADDRESSES`].
pub const ADDRESSES_MAX: u32 = 1024;
/// Entries of [`SERVICES`], [`ROUND_ROBIN`] and [`FRONTEND_STATS`]: service indexes are below this.
pub const SERVICES_MAX: u32 = 1 << 14;
/// Entries of [`SLOTS`].
pub const SLOTS_MAX: u32 = 1 << 20;
/// Entries of [`BACKENDS`], [`LIVE`], [`LIVE_DRIFT`] and [`BACKEND_STATS`]: backend ids are below
/// this.
pub const BACKENDS_MAX: u32 = 1 << 16;
/// Entries of [`ALLOWED`].
pub const ALLOWED_MAX: u32 = 1 << 16;
/// Entries of [`FRAGMENTS`].
pub const FRAGMENTS_MAX: u32 = 4096;
/// Most entries of [`DURATIONS`].
pub const DURATIONS_MAX: u32 = SERVICES_MAX * super::Timed::ALL.len() as u32;
/// Most entries of [`LINKS`].
pub const LINKS_MAX: u32 = 1 << 14;
/// Most entries of [`SUBNETS6`].
pub const SUBNETS6_MAX: u32 = LINKS_MAX;
/// Most entries of [`ENDPOINTS`].
pub const ENDPOINTS_MAX: u32 = 1 << 17;
/// Most entries of [`VIRTUAL_IPS`].
pub const VIRTUAL_IPS_MAX: u32 = SERVICES_MAX;
/// Most entries of [`ISOLATED`].
pub const ISOLATED_MAX: u32 = 1 << 17;
/// Entries of [`NODES`], [`MEMBERS`] and [`PEERS`]: node indexes are below this.
pub const NODES_MAX: u32 = 4096;
/// Default number of half-open connections that there is room for: entries of [`NAT_HALF_OPEN`],
/// and part of [`FLOWS`].
pub const HALF_OPEN_MAX: u32 = 1 << 16;
/// Default number of established connections that there is room for: entries of
/// [`NAT_ESTABLISHED`], and part of [`FLOWS`].
pub const ESTABLISHED_MAX: u32 = 1 << 18;

/// Constant of the programs, `u32`: home cells of [`FLOWS`]. The loader sets it to fit the map.
pub const FLOW_HOMES: &str = "FLOW_HOMES";
/// Constant of the programs, three `u64`: the secret of the hash of [`FLOWS`], see
/// [`crate::flow_table::factors`]. The loader sets it; it stays the same as long as the map exists.
pub const FLOW_FACTORS: &str = "FLOW_FACTORS";

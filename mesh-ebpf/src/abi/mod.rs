//! The layouts that the kernel programs and `mesh-agent` share: map keys, map values, names, and
//! their hash.
//!
//! Every type here is `repr(C)`, holds only integers and byte arrays, and has its padding spelled
//! out, so that any bit pattern is a valid value and keys hash the same on both sides. Pins live
//! under [`ABI_HASH`]: a changed layout never meets an old map.
//!
//! # How a loader sets things up
//!
//! 1. **Load** the object. Before loading it may size [`names::NAT_HALF_OPEN`],
//!    [`names::NAT_ESTABLISHED`] and [`names::FLOWS`], the last together with [`names::FLOW_HOMES`]
//!    ([`crate::flow_table::cell_count`]); all other maps keep the sizes of the object. It sets
//!    [`names::FLOW_FACTORS`] to a secret. Maps of *one* object serve all programs; pin them by
//!    name under `DIR/<ABI_HASH as 16 hex digits>/`.
//! 2. **VXLAN device**: external (collect-metadata) mode, UDP port [`Config::tunnel_port_be`],
//!    source ports [`SOURCE_PORT_MIN`](crate::parse::vxlan::SOURCE_PORT_MIN) to
//!    [`SOURCE_PORT_MAX`](crate::parse::vxlan::SOURCE_PORT_MAX), no learning, up.
//! 3. **[`Config`]** at key 0 of [`names::CONFIG`]; rewriting it takes effect with the next packet.
//!    As long as it is zero ([`Config::address`] unset), the programs pass everything.
//! 4. **[`names::ADDRESSES`]**: each address of this node on which published ports answer → its
//!    index, below [`VipId::ADDRESSES_MAX`]. Index 0 is [`Config::address`]. Give an index to
//!    another address only when no flow can name it any more.
//! 5. **[`Node`]s** by node index in [`names::NODES`] and [`Member`]s in [`names::MEMBERS`], then
//!    [`names::PEERS`] from address to index. Peers are also the allow-list of the tunnel, and a
//!    member's entry says what its packets must bear. Index 0 is this node itself. Packets for a
//!    node whose MAC address is not known go through TC.
//! 6. **[`Backend`]s** by id, before any slot names them. For a task of this node:
//!    [`backend_flag::LOCAL`], the host-side veth's ifindex and the task's MAC; the state becomes
//!    active only once that veth has its program.
//! 7. **Slots and services**: write the backend ids into a free range of [`names::SLOTS`] (active
//!    ones; the draining ones if none is active; a weight of n is n entries), then replace the
//!    value in [`names::SERVICES`]: that single update is the swap. The old range may be reused
//!    after a few milliseconds (no program runs longer). Without slots, new connections get a RST.
//! 8. **Networks**: write [`names::ENDPOINTS`] for every address of every network that a task here
//!    is on, with the nodes of 5.: those of tasks on other nodes (node index), of tasks here
//!    (ifindex and MAC of the veth on that network), and that of the network's bridge on this node
//!    ([`endpoint_flag::BRIDGE`]). An address that another node's table doesn't have yet is dropped
//!    there, and the sender tries again.
//!    - A service's virtual IP: a [`Service`] in [`names::VIRTUAL_IPS`] with an index of its own
//!      (shared with published ports: below [`names::SERVICES_MAX`]), slots as in 7., mode
//!      [`Mode::Tunnel`], no flags. Its slots name backends whose [`Backend::network`] is the
//!      network's number, [`Backend::task_address`] the task's address there,
//!      [`Backend::task_address6`] the virtual IP itself, the port 0 (ports stay as the client
//!      gave them), and whose [`Backend::service_index`] is that index. They are **never**
//!      [`backend_flag::LOCAL`], wherever they are, and need neither node, ifindex nor MAC: those
//!      come from the address's endpoint, whose [`Endpoint::backend`] is their id. Write the
//!      endpoint before the backend, the backend before the slot. The client's node keeps a flow
//!      to a virtual IP in [`names::FLOWS`] ([`FlowKey::to_virtual_ip`]), and no translation: a
//!      reply's backend names the virtual IP. Such backends count as alive for the sweep, too.
//!    - A network with IPv6: a [`Subnet6`] by its number in [`names::SUBNETS6`].
//!    - [`names::ISOLATED`]: the task pool of the whole cluster (both as v4-mapped and under
//!      [`TASKS_PREFIX6`]) and every network's subnets → [`ISOLATED`]; this node's
//!      own address on the tasks' bridge, of both versions, as a whole address → [`REACHABLE`].
//!    - An encrypted network: its number with
//!      [`Vni::ENCRYPTED`](crate::parse::vxlan::Vni::ENCRYPTED) in all of these. Attach
//!      [`names::PROGRAM_DECRYPTED`] to the encryption device before [`Config::encryption_ifindex`]
//!      names it, and set [`node_flag::ENCRYPTS`] for nodes whose key the device's other end knows.
//!    - [`Link`]s by the ifindex of the host-side veth, after the endpoint of the same task, and
//!      before [`names::PROGRAM_OVERLAY`] is attached to the veth's TC ingress (or right after:
//!      without an entry everything is dropped, as `unknown_link`). Attach it before the task's
//!      process runs: without the program the kernel's bridge takes what the task sends. Remove
//!      the entry with the veth.
//! 9. **[`Edge`]s**: load the program of each and put it into [`names::EDGES`], before anything is
//!    attached. Without them, programs leave ICMP errors and fragments to the host stack and the
//!    tunnel's packets to the VXLAN device, and drop what they would answer with an ICMP error.
//! 10. **Attach**: `xdp` datapath: [`names::PROGRAM_XDP`] *and* [`names::PROGRAM_UPLINK`] on each
//!     uplink; `tc` datapath: only the latter. In both, [`names::PROGRAM_EGRESS`] (TC egress of
//!     each uplink), [`names::PROGRAM_DEVICE`] and [`names::PROGRAM_TUNNEL`] (TC egress and
//!     ingress of the VXLAN device) and [`names::PROGRAM_TASK`] (TC ingress of the host-side veth
//!     of each task). Attach to the uplinks first: the VXLAN device's program accepts only
//!     packets that theirs have marked ([`TUNNEL_MARK`]).
//!
//! # Taking a backend away
//!
//! First replace the services that name the backend, then set its state to down: its flows get a
//! RST at the next packet. While it is [`BackendState::Draining`], its flows go on and it gets no
//! new ones.
//!
//! # Counting
//!
//! All counters are per CPU, and the reader adds them up. Only the ingress node, which selected the
//! backend, counts a backend's traffic. [`Live`] is the exception: all CPUs share it, as the
//! least-connections policy reads it. Its correction, [`names::LIVE_DRIFT`], belongs to userspace:
//! after a walk over the flow tables that found `n` flows that are not closed,
//! `drift = opened − closed − n`.
//!
//! Userspace creates the entries of [`names::DURATIONS`], one for every index of a published port
//! and every [`Timed`]; programs discard a duration that has no entry. Only userspace writes
//! [`Timed::Swept`] and [`names::EVICTIONS`]. Only programs write [`names::SYN_GUARD`] and
//! [`names::SYN_GUARD_FIRED`]; the rate is in [`Config::syn_guard_rate`]. Userspace also sweeps
//! idle flows, by [`crate::conntrack::idle_timeout_ns`], and recounts afterwards.

mod activity;
mod address;
mod backend;
mod closed_list;
mod config;
mod drop_reason;
mod durations;
mod edge;
mod evicted;
mod flow;
mod guard;
mod layout;
mod member;
pub mod names;
mod network;
mod service;
mod stats;

pub use activity::Activity;
pub use address::{Address, Be16, Mac};
pub use backend::{Backend, BackendState, Node, backend_flag, node_flag};
pub use config::Config;
pub use drop_reason::DropReason;
pub use durations::{BUCKETS, Histogram, Timed};
pub use edge::Edge;
pub use evicted::Evicted;
pub use flow::{
    FRAGMENT_MAX_AGE_NS, Flow, FlowCell, FlowKey, FragmentKey, FragmentPorts, Nat, NatKey, VipId, flow_event,
};
pub use guard::{SynGuard, TokenBucket};
pub use layout::ABI_HASH;
pub use member::{Member, TASKS_PREFIX6, TUNNEL_MARK, member_flag};
pub use network::{
    Endpoint, EndpointKey, ISOLATED, IsolatedKey, Link, MESH_MAC, REACHABLE, Subnet6, endpoint_flag,
};
pub use service::{AllowedKey, Mode, Policy, Service, ServiceKey, protocol, service_flag};
pub use stats::{
    BackendLoad, BackendStats, Direction, FrontendStats, LOAD_MAX_AGE_NS, Live, Traffic, drop_index,
};

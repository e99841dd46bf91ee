//! The kernel data plane of this node, seen from userspace.
//!
//! Purpose: attaches the programs of `mesh-ebpf` to uplinks, tunnel device and tasks' veths; writes
//! the maps that they read, from the view of the mesh and from what the node knows by itself;
//! sweeps the flow tables; reads the counters.
//!
//! Invariants: an agent that starts adopts what is pinned: programs are replaced in one step, maps
//! keep their contents, and an agent that stops leaves everything running. Only [`uninstall`]
//! removes anything. Only this module uses aya.
//!
//! In reading order: [`engine`] joins the parts ([`fallback`] decides what happens where the kernel
//! takes no programs), [`run`] drives them; [`state`] brings the maps to
//! what [`diff`] plans over [`contents`] and [`facts`] ([`index`] assigns the numbers); [`pulse`]
//! does the work of every second; [`tasks`] and [`cables`] connect containers; [`sweep`] (over
//! [`flow_map`]), [`drain`] and [`stats`] (of what [`state`] has [`published`]) read flows and
//! counters, [`connections`] reads the sockets of draining tasks,
//! [`tallies`] owns the counts that both table writes and the sweep change; [`loader`],
//! [`attach`] and [`pins`] deal with the kernel's objects, [`network`] with the node's interfaces.
//!
//! Left to others: which backends there are (the control plane), the published ports' sockets
//! ([`crate::proxy`]), rendering metrics ([`crate::metrics`]).

pub mod contents;
pub mod diff;
pub mod facts;
pub mod index;

mod attach;
mod cables;
mod cabling;
mod carry_over;
mod config;
mod connections;
mod drain;
mod durations;
mod engine;
mod error;
mod evictions;
mod expiry;
mod fallback;
mod flow_map;
mod loader;
mod lock;
mod map_access;
mod maps;
mod network;
mod pins;
mod provoke;
mod published;
mod pulse;
mod run;
mod state;
mod stats;
mod sweep;
mod syscall;
mod tallies;
mod tasks;
#[cfg(test)]
mod testing;

pub use attach::AttachedHook;
pub use config::{DatapathConfig, DatapathMode, TableSizes, TcHooks};
pub use durations::PortDurations;
pub use engine::{Datapath, open, uninstall};
pub use error::DatapathError;
pub use evictions::{ByProtocol, Evictions};
pub use fallback::{Fallback, open_or_fall_back};
pub use network::far_end::FarEnd;
pub(crate) use network::host::bring_up;
pub use network::host_networks::{HostNetwork, host_addresses, host_networks};
pub use network::upkeep::HostSettings;
pub use stats::{BackendSnapshot, FrontendSnapshot, MapFill, StatsSnapshot};
pub use tasks::TaskLink;

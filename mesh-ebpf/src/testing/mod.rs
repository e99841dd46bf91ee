//! Test support: runs the packet logic without a kernel and compares the kernel with it. A frame,
//! tables, a packet builder, and one list of fixtures for both.

mod builder;
mod cells;
mod counted;
pub mod fixtures;
mod flows;
pub mod fragments;
mod frame;
mod run;
mod setup;
mod tables;

pub use builder::{IcmpBuilder, TcpBuilder, bearing, icmp_error, in_tunnel, v4, without_cookie};
pub use cells::HostCells;
pub use counted::Counted;
pub use fixtures::Fixture;
pub use fragments::fragments_of;
pub use frame::{Frame, IFINDEX};
pub use run::Hook;
pub use setup::Setup;
pub use tables::HostTables;

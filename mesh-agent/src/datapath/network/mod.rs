//! The node's network configuration: queries of the kernel, and the little that mesh adds.

pub(super) mod cables;
pub(super) mod far_end;
pub(super) mod filters;
pub(super) mod firewall;
pub(super) mod host;
pub(super) mod host_networks;
pub(super) mod monitor;
pub(super) mod netlink;
pub(super) mod netns;
mod port_isolation;
pub(super) mod upkeep;
pub(super) mod uplinks;

//! The words of the view in the maps' numbers.

use mesh_ebpf::abi::{BackendState, Mode, Policy, protocol};
use mesh_state::lb;
use mesh_state::spec::Protocol;

use crate::datapath::contents::Frontend;
use crate::view;

/// The map's key of a published port.
pub fn frontend(transport: Protocol, port: u16) -> Frontend {
    Frontend { protocol: protocol_number(transport), port }
}

/// The number of a transport in IP headers and in the maps.
pub(crate) const fn protocol_number(transport: Protocol) -> u8 {
    match transport {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => 132,
    }
}

pub(super) const fn state_byte(state: view::BackendState) -> u8 {
    match state {
        view::BackendState::Active => BackendState::Active as u8,
        // A silent node's flows may still pass: only new ones go elsewhere. A retired one's flows live, and no slot names it.
        view::BackendState::Draining | view::BackendState::Silent | view::BackendState::Retired => {
            BackendState::Draining as u8
        }
    }
}

pub(super) const fn policy_byte(policy: lb::Policy) -> u8 {
    match policy {
        lb::Policy::RoundRobin => Policy::RoundRobin as u8,
        lb::Policy::LeastConnections => Policy::LeastConnections as u8,
        lb::Policy::Random => Policy::Random as u8,
        lb::Policy::LeastLoad => Policy::LeastLoad as u8,
        lb::Policy::SourceHash => Policy::SourceHash as u8,
    }
}

pub(super) const fn mode_byte(mode: lb::Mode) -> u8 {
    match mode {
        lb::Mode::Tunnel => Mode::Tunnel as u8,
        lb::Mode::Dsr => Mode::Dsr as u8,
        lb::Mode::Proxy => Mode::Proxy as u8,
    }
}

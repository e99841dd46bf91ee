//! Translates the names of the mesh table to the numbers of the maps and the kernel programs.
//!
//! The only place that translates: a new policy, mode, state or protocol has one arm here.

use mesh_ebpf::abi::{BackendState, Mode, Policy, protocol};
use mesh_state::lb;
use mesh_state::spec::Protocol;

use crate::view;

/// IP protocol number of SCTP (IANA "Protocol Numbers"), which the programs pass to the host stack.
const SCTP: u8 = 132;

/// The number of a transport protocol in IP headers and in the maps.
pub(crate) const fn protocol_number(transport: Protocol) -> u8 {
    match transport {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => SCTP,
    }
}

/// The state of a backend in the maps.
pub(crate) const fn state(state: view::BackendState) -> BackendState {
    match state {
        view::BackendState::Active => BackendState::Active,
        // A silent node's flows may still pass, so only new flows go elsewhere. A retired backend
        // is in no slot, and its flows live on.
        view::BackendState::Draining | view::BackendState::Silent | view::BackendState::Retired => {
            BackendState::Draining
        }
    }
}

/// The selection policy of a service in the maps, and for [`mesh_ebpf::select`].
pub(crate) const fn policy(policy: lb::Policy) -> Policy {
    match policy {
        lb::Policy::RoundRobin => Policy::RoundRobin,
        lb::Policy::LeastConnections => Policy::LeastConnections,
        lb::Policy::Random => Policy::Random,
        lb::Policy::LeastLoad => Policy::LeastLoad,
        lb::Policy::SourceHash => Policy::SourceHash,
    }
}

/// The forwarding mode of a service in the maps.
pub(crate) const fn mode(mode: lb::Mode) -> Mode {
    match mode {
        lb::Mode::Tunnel => Mode::Tunnel,
        lb::Mode::Dsr => Mode::Dsr,
        lb::Mode::Proxy => Mode::Proxy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_have_the_numbers_of_iana() {
        let numbers = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(protocol_number);
        assert_eq!(numbers, [6, 17, 132]);
    }

    #[test]
    fn no_two_policies_and_no_two_modes_share_a_number() {
        let policies: std::collections::BTreeSet<u8> =
            lb::Policy::ALL.iter().map(|choice| policy(*choice) as u8).collect();
        assert_eq!(policies.len(), lb::Policy::ALL.len());
        let modes: std::collections::BTreeSet<u8> =
            lb::Mode::ALL.iter().map(|choice| mode(*choice) as u8).collect();
        assert_eq!(modes.len(), lb::Mode::ALL.len());
    }

    #[test]
    fn the_programs_read_back_what_is_written() {
        for choice in lb::Policy::ALL {
            assert_eq!(Policy::from_byte(policy(*choice) as u8), policy(*choice), "{choice}");
            assert_eq!(policy(*choice).name(), choice.as_str(), "one name for programs and label");
        }
        for choice in lb::Mode::ALL {
            assert_eq!(Mode::from_byte(mode(*choice) as u8), mode(*choice), "{choice}");
            assert_eq!(mode(*choice).name(), choice.as_str(), "one name for programs and label");
        }
    }
}

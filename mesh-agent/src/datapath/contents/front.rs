//! What clients connect to, and the addresses of networks: keys of maps without their padding, so
//! that they can be sorted.

use std::fmt;
use std::net::Ipv4Addr;

use mesh_ebpf::abi::{Be16, EndpointKey, ServiceKey, protocol};

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// IP protocol number.
    pub protocol: u8,
    /// Published port, host order.
    pub port: u16,
}

impl From<ServiceKey> for Frontend {
    fn from(key: ServiceKey) -> Self {
        Self { protocol: key.protocol, port: key.port_be.get() }
    }
}

impl From<Frontend> for ServiceKey {
    fn from(frontend: Frontend) -> Self {
        Self { port_be: Be16::new(frontend.port), protocol: frontend.protocol, reserved: 0 }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.protocol == protocol::UDP { "udp" } else { "tcp" };
        write!(f, "{}/{name}", self.port)
    }
}

/// An address of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkAddress {
    /// The network's number.
    pub network: u32,
    /// The address on that network.
    pub address: Ipv4Addr,
}

impl From<EndpointKey> for NetworkAddress {
    fn from(key: EndpointKey) -> Self {
        Self { network: key.network, address: Ipv4Addr::from(key.address.to_ne_bytes()) }
    }
}

impl From<NetworkAddress> for EndpointKey {
    fn from(place: NetworkAddress) -> Self {
        Self::new(place.network, place.address.octets())
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of network {}", self.address, self.network)
    }
}

/// What clients connect to: the key of a service's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Front {
    /// A published port, on every address of the node.
    Port(Frontend),
    /// A service's virtual IP on a network, with all ports.
    VirtualIp(NetworkAddress),
}

impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "published port {port}"),
            Self::VirtualIp(place) => write!(f, "virtual IP {place}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_network_reads_back() {
        let place = NetworkAddress { network: 0x1234, address: Ipv4Addr::new(10, 0, 5, 7) };
        assert_eq!(NetworkAddress::from(EndpointKey::from(place)), place);
        assert_eq!(Front::VirtualIp(place).to_string(), "virtual IP 10.0.5.7 of network 4660");
    }
}

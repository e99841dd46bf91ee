//! Keys of the trie of addresses that tasks must not send to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use mesh_ebpf::abi::{Address, IsolatedKey};

/// Bits of the v4-mapped prefix.
const MAPPING: u32 = 96;

/// The map's key of a network, and how many of its bits count.
pub fn isolated_key(network: IpNet) -> (u32, IsolatedKey) {
    let mapping = if network.addr().is_ipv4() { MAPPING } else { 0 };
    let key = IsolatedKey { network: Address::from(network.network()).0 };
    (mapping + u32::from(network.prefix_len()), key)
}

/// The network of a key of the map; `None` if it has more bits than an address.
pub fn isolated_network(bits: u32, key: IsolatedKey) -> Option<IpNet> {
    let address = Address(key.network);
    let (address, bits) = if address.is_v4() && bits >= MAPPING {
        (IpAddr::V4(Ipv4Addr::from(address.v4_octets())), bits - MAPPING)
    } else {
        (IpAddr::V6(Ipv6Addr::from(key.network)), bits)
    };
    IpNet::new(address, u8::try_from(bits).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_reads_back() {
        for text in ["10.128.1.0/24", "10.128.1.1/32", "fd6d:6573:68::a80:100/120", "::/0", "0.0.0.0/0"] {
            let network: IpNet = text.parse().expect("a network");
            let (bits, key) = isolated_key(network);
            assert_eq!(isolated_network(bits, key), Some(network), "{text}");
        }
        assert_eq!(isolated_network(129, IsolatedKey::default()), None);
    }
}

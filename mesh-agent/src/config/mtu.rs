//! Finds the largest packet that fits the path to other nodes.
//!
//! Invariant: parsing `/proc/net/route` is pure.

use std::fs;
use std::net::Ipv4Addr;

/// The MTU of an Ethernet, in bytes, for when the interface's can't be read.
const USUAL_MTU: u32 = 1500;

/// The MTU in bytes of the interface whose network `address` is in. Blocks for an instant.
pub fn of_uplink(address: Ipv4Addr) -> u32 {
    fs::read_to_string("/proc/net/route")
        .ok()
        .and_then(|routes| interface_of(&routes, address).map(str::to_owned))
        .and_then(|interface| fs::read_to_string(format!("/sys/class/net/{interface}/mtu")).ok())
        .and_then(|mtu| mtu.trim().parse().ok())
        .unwrap_or(USUAL_MTU)
}

/// The interface of the most specific route without a gateway that covers `address`.
fn interface_of(routes: &str, address: Ipv4Addr) -> Option<&str> {
    routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let interface = fields.next()?;
            let destination = little_endian(fields.next()?)?;
            let gateway = little_endian(fields.next()?)?;
            let mask = little_endian(fields.nth(4)?)?;
            let covers = gateway == 0 && mask != 0 && u32::from(address) & mask == destination;
            covers.then_some((mask, interface))
        })
        .max_by_key(|(mask, _)| *mask)
        .map(|(_, interface)| interface)
}

/// Parses an address as the kernel prints it there: hex of its bytes in memory.
fn little_endian(hex: &str) -> Option<u32> {
    u32::from_str_radix(hex, 16).ok().map(u32::swap_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uplink_is_the_one_whose_network_holds_the_address() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\t01004D0A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      eth0\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                      wide\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n";
        let seen = |address: [u8; 4]| interface_of(routes, Ipv4Addr::from(address));
        assert_eq!(seen([10, 77, 0, 11]), Some("eth0"), "the most specific one");
        assert_eq!(seen([10, 1, 2, 3]), Some("wide"));
        assert_eq!(seen([192, 0, 2, 1]), None, "by a gateway only");
    }
}

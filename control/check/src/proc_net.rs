//! Parses the kernel's lists of sockets and routes. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::facts::{HostRoute, Transport};

/// The state of a TCP socket that listens.
const TCP_LISTENS: &str = "0A";
/// The state of a UDP socket without a peer.
const UDP_OPEN: &str = "07";

/// A socket that takes connections or datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(crate) port: u16,
    pub(crate) is_wildcard: bool,
    pub(crate) inode: u64,
}

/// The listening sockets in `/proc/net/{tcp,tcp6,udp,udp6}`.
pub(crate) fn listening(text: &str, transport: Transport) -> Vec<Socket> {
    let wanted = match transport {
        Transport::Tcp => TCP_LISTENS,
        Transport::Udp => UDP_OPEN,
    };
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, port) = fields.get(1)?.split_once(':')?;
        if *fields.get(3)? != wanted {
            return None;
        }
        let port = u16::from_str_radix(port, 16).ok()?;
        let inode = fields.get(9)?.parse().ok()?;
        Some(Socket { port, is_wildcard: address.bytes().all(|digit| digit == b'0'), inode })
    };
    text.lines().skip(1).filter_map(socket).collect()
}

/// A line of `/proc/net/route`.
pub(crate) fn routes(text: &str) -> Vec<HostRoute> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let destination = Ipv4Addr::from(little_endian(fields.get(1)?)?);
        let mask = Ipv4Addr::from(little_endian(fields.get(7)?)?);
        let network = Ipv4Net::with_netmask(destination, mask).ok()?;
        Some(HostRoute { network, device: (*fields.first()?).to_owned() })
    };
    text.lines().skip(1).filter_map(route).collect()
}

/// Parses an address as the kernel prints it there: hex of its bytes in memory.
fn little_endian(hex: &str) -> Option<u32> {
    u32::from_str_radix(hex, 16).ok().map(u32::swap_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_found_and_connections_left_out() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:094B 00000000:0000 0A 00000000:00000000 00:00000000 00000000   113        0 21234 1 0 100\n\
            \x20  1: 00000000:12C0 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21235 1 0 100\n\
            \x20  2: 0B004D0A:1F90 01004D0A:D431 01 00000000:00000000 00:00000000 00000000     0        0 21236 1 0 100\n";
        let seen = listening(text, Transport::Tcp);
        let expected = [
            Socket { port: 2379, is_wildcard: false, inode: 21234 },
            Socket { port: 4800, is_wildcard: true, inode: 21235 },
        ];
        assert_eq!(seen, expected);
        let udp = "header\n  77: 00000000:12BF 00000000:0000 07 0:0 00:0 0 0 0 0 2 0 0\n";
        let tunnel = Socket { port: 4799, is_wildcard: true, inode: 0 };
        assert_eq!(listening(udp, Transport::Udp), [tunnel]);
        assert!(listening("", Transport::Tcp).is_empty());
    }

    #[test]
    fn routes_are_read() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t01004D0A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth1\t0000800A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let shown: Vec<String> =
            routes(text).iter().map(|route| format!("{} {}", route.network, route.device)).collect();
        assert_eq!(shown, ["0.0.0.0/0 eth0", "10.128.0.0/16 eth1"]);
    }
}

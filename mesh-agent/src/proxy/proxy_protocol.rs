//! The header of the PROXY protocol, version 2: tells a task the client's address before the
//! connection's first byte.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 12 | signature |
//! | 12 | 1 | version 2, command PROXY: `0x21` |
//! | 13 | 1 | family and transport: `0x11` TCP over IPv4, `0x21` TCP over IPv6 |
//! | 14 | 2 | length of what follows |
//! | 16 | 2 × 4 or 2 × 16 | the client's address, the published address |
//! | … | 2 + 2 | the client's port, the published port |
//!
//! Pure. Left to others: reading the header, which is the task's part.

use std::net::{IpAddr, SocketAddr};

use super::addresses::ConnectionAddresses;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const LENGTH_MAX: usize = 16 + 36;

/// The bytes of one header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    bytes: [u8; LENGTH_MAX],
    length: usize,
}

impl Header {
    /// The header of a connection with these addresses.
    pub(super) fn new(addresses: ConnectionAddresses) -> Self {
        let (client, published) = (canonical(addresses.client), canonical(addresses.destination));
        let mut header = Self { bytes: [0; LENGTH_MAX], length: 0 };
        header.push(&SIGNATURE);
        match (client.ip(), published.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                header.push(&[VERSION_AND_COMMAND, TCP_OVER_IPV4, 0, 12]);
                header.push(&from.octets());
                header.push(&to.octets());
            }
            (from, to) => {
                header.push(&[VERSION_AND_COMMAND, TCP_OVER_IPV6, 0, 36]);
                header.push(&octets(from));
                header.push(&octets(to));
            }
        }
        header.push(&client.port().to_be_bytes());
        header.push(&published.port().to_be_bytes());
        header
    }

    /// The header's bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn push(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        self.bytes[self.length..end].copy_from_slice(bytes);
        self.length = end;
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(client: &str, destination: &str) -> Vec<u8> {
        let parse = |text: &str| text.parse().expect("an address");
        Header::new(ConnectionAddresses { client: parse(client), destination: parse(destination) })
            .bytes()
            .to_vec()
    }

    #[test]
    fn ipv4_is_told_in_28_bytes() {
        let expected = [
            &b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0c"[..],
            &[10, 77, 0, 1, 10, 77, 0, 11, 0x9c, 0x40, 0x00, 0x50],
        ]
        .concat();
        assert_eq!(header("10.77.0.1:40000", "10.77.0.11:80"), expected);
        assert_eq!(header("[::ffff:10.77.0.1]:40000", "[::ffff:10.77.0.11]:80"), expected, "mapped");
    }

    #[test]
    fn ipv6_is_told_in_52_bytes() {
        let bytes = header("[fd77::1]:40000", "[fd77::11]:80");
        assert_eq!(bytes.len(), 52);
        assert_eq!(bytes[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!((bytes[16], bytes[31], bytes[32], bytes[47]), (0xfd, 1, 0xfd, 0x11));
        assert_eq!(bytes[48..], [0x9c, 0x40, 0, 80]);
    }
}

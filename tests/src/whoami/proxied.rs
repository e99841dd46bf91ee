//! Parses the PROXY protocol, version 2 (haproxy's proxy-protocol.txt), which names the client of a
//! connection that a proxy opened.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The first bytes of a header. No HTTP request begins like this.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The length of the fixed part: signature, version and command, family, length.
const PREFIX: usize = 16;
/// The deadline for the whole header.
const DEADLINE: Duration = Duration::from_secs(5);

/// Consumes the header of a connection, if it begins with one; returns the client and the address
/// that it connected to.
pub(crate) fn take_header(stream: &mut TcpStream) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    if !begins_with_signature(stream)? {
        return Ok(None);
    }
    let mut prefix = [0; PREFIX];
    stream.read_exact(&mut prefix)?;
    let mut addresses = vec![0; usize::from(u16::from_be_bytes([prefix[14], prefix[15]]))];
    stream.read_exact(&mut addresses)?;
    parse(&prefix, &addresses).map(Some).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("malformed PROXY header: {prefix:?}"))
    })
}

/// Peeks at the connection's first bytes.
fn begins_with_signature(stream: &TcpStream) -> io::Result<bool> {
    let begun = Instant::now();
    let mut seen = [0; SIGNATURE.len()];
    loop {
        let count = stream.peek(&mut seen)?;
        if count == 0 || seen[..count] != SIGNATURE[..count] {
            return Ok(false);
        }
        if count == SIGNATURE.len() {
            return Ok(true);
        }
        if begun.elapsed() > DEADLINE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "half a PROXY signature"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn parse(prefix: &[u8; PREFIX], addresses: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let port = |at: usize| Some(u16::from_be_bytes([*addresses.get(at)?, *addresses.get(at + 1)?]));
    let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(addresses.get(at..at + 4)?).ok()?));
    let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(addresses.get(at..at + 16)?).ok()?));
    match (prefix[12], prefix[13]) {
        (0x20, _) => {
            Some((SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))
        }
        (0x21, 0x11) => Some((SocketAddr::new(v4(0)?, port(8)?), SocketAddr::new(v4(4)?, port(10)?))),
        (0x21, 0x21) => Some((SocketAddr::new(v6(0)?, port(32)?), SocketAddr::new(v6(16)?, port(34)?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_both_ends() {
        let mut prefix = [0; PREFIX];
        prefix[12] = 0x21;
        prefix[13] = 0x11;
        let seen = parse(&prefix, &[10, 77, 0, 1, 10, 77, 0, 11, 0x9c, 0x40, 0, 80]);
        let expected = ("10.77.0.1:40000".parse().unwrap(), "10.77.0.11:80".parse().unwrap());
        assert_eq!(seen, Some(expected));
        assert_eq!(parse(&prefix, &[10, 77, 0]), None, "cut off");
        prefix[12] = 0x11;
        assert_eq!(parse(&prefix, &[0; 12]), None, "version 1");
    }
}

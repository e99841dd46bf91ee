//! The echo servers.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};

use crate::identity::Identity;

/// Echoes what comes, until the client has sent everything.
pub(crate) fn serve_tcp(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&buffer[..length])?;
    }
}

/// Answers each datagram with a line that names client and task, then the datagram itself.
pub(crate) fn serve_udp(socket: &UdpSocket, identity: &Identity) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let answered = socket.recv_from(&mut buffer).and_then(|(length, client)| {
            let mut answer = format!("client={} task={}\n", canonical(client), identity.task).into_bytes();
            answer.extend_from_slice(&buffer[..length]);
            socket.send_to(&answer, client)
        });
        if let Err(error) = answered {
            eprintln!("cannot answer a datagram: {error}");
        }
    }
}

/// An IPv4 client of a socket for both families, as a plain IPv4 address.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        let seen = canonical("[::ffff:10.77.0.1]:4711".parse().unwrap());
        assert_eq!(seen.to_string(), "10.77.0.1:4711", "a mapped address");
        let seen = canonical("[fd00::1]:4711".parse().unwrap());
        assert_eq!(seen.to_string(), "[fd00::1]:4711", "a real IPv6 address");
    }
}

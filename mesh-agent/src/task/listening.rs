//! Checks whether a task's process listens on its published ports yet: a client sent there before
//! would be refused.
//!
//! The sockets are looked up in the task's network namespace rather than tried: some servers hold
//! an empty connection against its sender. A process that never listens delays its task by
//! [`LIMIT`] only.

use std::fs;
use std::time::Duration;

use mesh_state::spec::Protocol;
use mesh_state::task::TaskEndpoint;

/// How long a task is waited for. Swarm doesn't wait at all: a task that takes longer to be ready
/// needs a health check, with Swarm and with mesh.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
/// Time between two checks.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// Whether the process listens on all target ports; `true` if that can't be read.
pub(super) fn on_all(pid: u32, endpoints: &[TaskEndpoint]) -> bool {
    endpoints.iter().all(|endpoint| {
        let tables = match endpoint.protocol {
            Protocol::Tcp => ["tcp", "tcp6"],
            Protocol::Udp => ["udp", "udp6"],
            // The mesh carries no SCTP: no task has such an endpoint.
            Protocol::Sctp => return true,
        };
        let mut read = tables
            .iter()
            .filter_map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok())
            .peekable();
        read.peek().is_none() || read.any(|table| has(&table, endpoint.protocol, endpoint.target_port))
    })
}

/// Whether a table of the kernel's (`/proc/PID/net/tcp` and its like, see proc(5)) has a socket
/// that receives what arrives at `port`.
fn has(table: &str, protocol: Protocol, port: u16) -> bool {
    // From include/net/tcp_states.h: TCP_LISTEN; an unconnected UDP socket shows as TCP_CLOSE.
    let wanted = match protocol {
        Protocol::Tcp => "0A",
        Protocol::Udp => "07",
        Protocol::Sctp => return false,
    };
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next().and_then(|address| address.rsplit_once(':'));
        let state = fields.nth(1);
        state == Some(wanted) && local.is_some_and(|(_, own)| u16::from_str_radix(own, 16) == Ok(port))
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use mesh_state::ids::BackendId;

    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
        0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n   \
        1: 0100007F:0050 0100007F:C000 01 00000000:00000000 00:00000000 00000000     0        0 2\n";

    #[test]
    fn a_listening_socket_is_told_from_a_connection() {
        assert!(has(TABLE, Protocol::Tcp, 8080));
        assert!(!has(TABLE, Protocol::Tcp, 80), "a connection only");
        assert!(!has(TABLE, Protocol::Udp, 8080), "TCP's state");
        assert!(!has("", Protocol::Tcp, 8080) && !has("head\nnonsense\n", Protocol::Tcp, 8080));
    }

    fn endpoint(protocol: Protocol, target_port: u16) -> TaskEndpoint {
        let backend_id = BackendId::new(1).expect("an id");
        TaskEndpoint { backend_id, protocol, published_port: 1, target_port }
    }

    #[test]
    fn this_process_listens_when_it_does() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let ports = |socket: std::io::Result<std::net::SocketAddr>| socket.expect("its address").port();
        let (tcp_port, udp_port) = (ports(tcp.local_addr()), ports(udp.local_addr()));
        let both = [endpoint(Protocol::Tcp, tcp_port), endpoint(Protocol::Udp, udp_port)];
        assert!(on_all(std::process::id(), &both));
        drop(tcp);
        assert!(!on_all(std::process::id(), &both), "one of two is closed");
        assert!(on_all(std::process::id(), &both[1..]));
        assert!(on_all(0, &both), "no such process: it can't be told");
    }
}

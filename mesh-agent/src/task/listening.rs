//! Checks whether a task's process listens yet: a client sent there before would be refused. A task
//! with published ports must listen on all of them. A task that is on networks only serves whatever
//! port it likes there, so any port counts that others can reach.
//!
//! The sockets are looked up in the task's network namespace rather than tried: some servers hold
//! an empty connection against its sender. A process that never listens delays its task by
//! [`LIMIT`] only, and a job's task not at all.

use std::fs;
use std::time::Duration;

use mesh_state::spec::Protocol;
use mesh_state::task::{Task, TaskEndpoint};

/// How long a task is waited for. Swarm doesn't wait at all: a task that takes longer to be ready
/// needs a health check, with Swarm and with mesh.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
/// Time between two checks.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// The first of the ports that the kernel gives to sockets that ask for none, such as a resolver's
/// (`net.ipv4.ip_local_port_range`).
const EPHEMERAL: u16 = 32_768;

/// `::1`, as the kernel writes it.
const LOOPBACK6: &str = "00000000000000000000000001000000";

/// Whether clients may be sent to the task; `true` if that can't be read.
pub(super) fn is_ready(pid: u32, task: &Task) -> bool {
    if !task.endpoints.is_empty() {
        return on_all(pid, &task.endpoints);
    }
    let serves = !task.attachments.is_empty() && task.job_iteration.is_none();
    !serves || on_any(pid)
}

/// Whether the process listens on any port that others can reach; `true` if that can't be read.
fn on_any(pid: u32) -> bool {
    let tables =
        [("tcp", Protocol::Tcp), ("tcp6", Protocol::Tcp), ("udp", Protocol::Udp), ("udp6", Protocol::Udp)];
    let mut read =
        tables.into_iter().filter_map(|(table, protocol)| Some((read(pid, table)?, protocol))).peekable();
    read.peek().is_none()
        || read.any(|(table, protocol)| open(&table, protocol).any(|socket| is_served(socket, protocol)))
}

/// Whether others can reach a socket with this address and port, as a server's.
fn is_served((address, port): (&str, u16), protocol: Protocol) -> bool {
    !is_loopback(address) && (protocol == Protocol::Tcp || port < EPHEMERAL)
}

/// One of the kernel's tables of a process' network namespace.
fn read(pid: u32, table: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok()
}

/// Whether the process listens on all target ports; `true` if that can't be read.
fn on_all(pid: u32, endpoints: &[TaskEndpoint]) -> bool {
    endpoints.iter().all(|endpoint| {
        let tables = match endpoint.protocol {
            Protocol::Tcp => ["tcp", "tcp6"],
            Protocol::Udp => ["udp", "udp6"],
            // The mesh carries no SCTP: no task has such an endpoint.
            Protocol::Sctp => return true,
        };
        let mut read = tables.iter().filter_map(|table| read(pid, table)).peekable();
        read.peek().is_none() || read.any(|table| has(&table, endpoint.protocol, endpoint.target_port))
    })
}

/// Whether a table has a socket that receives what arrives at `port`.
fn has(table: &str, protocol: Protocol, port: u16) -> bool {
    open(table, protocol).any(|(_, own)| own == port)
}

/// The sockets of a table of the kernel's (`/proc/PID/net/tcp` and its like, see proc(5)) that
/// receive what arrives at their port: the address as the table writes it, and the port.
fn open(table: &str, protocol: Protocol) -> impl Iterator<Item = (&str, u16)> {
    // From include/net/tcp_states.h: TCP_LISTEN; an unconnected UDP socket shows as TCP_CLOSE.
    let wanted = match protocol {
        Protocol::Tcp => Some("0A"),
        Protocol::Udp => Some("07"),
        Protocol::Sctp => None,
    };
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (address, port) = fields.next()?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        if wanted == Some(state) { Some((address, u16::from_str_radix(port, 16).ok()?)) } else { None }
    })
}

/// Whether an address is a loopback one. The kernel writes it in words of 32 bits, the first octet
/// last.
fn is_loopback(address: &str) -> bool {
    const MAPPED: &str = "0000000000000000FFFF0000";
    let v4 = address.strip_prefix(MAPPED).unwrap_or(address);
    address == LOOPBACK6 || v4.len() == 8 && v4.ends_with("7F")
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use mesh_state::ids::BackendId;
    use mesh_state::network::Attachment;

    use super::*;
    use crate::task::worker::tests::assignment;

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

    #[test]
    fn loopback_is_told_in_each_spelling() {
        for address in ["0100007F", "0B00007F", LOOPBACK6, "0000000000000000FFFF00000100007F"] {
            assert!(is_loopback(address), "{address}");
        }
        for address in ["00000000", "0705000A", "7F00000A", &"0".repeat(32)] {
            assert!(!is_loopback(address), "{address}");
        }
    }

    #[test]
    fn a_task_on_networks_is_ready_once_it_listens_anywhere() {
        let mut told = assignment("t").task;
        let pid = std::process::id();
        assert!(is_ready(pid, &told), "it serves nobody");
        told.attachments = vec![Attachment { network_id: "app".into(), address: None, backend_id: None }];
        let _listener = TcpListener::bind("0.0.0.0:0").expect("a port");
        assert!(is_ready(pid, &told));
        told.endpoints = vec![endpoint(Protocol::Tcp, 1)];
        assert!(!is_ready(pid, &told), "published ports are told by number");
    }

    #[test]
    fn what_only_the_task_itself_reaches_does_not_count() {
        let row = |address: &str, state| format!("head\n 0: {address} 00000000:0000 {state} rest\n");
        let serves =
            |table: String, protocol| open(&table, protocol).any(|socket| is_served(socket, protocol));
        assert!(serves(row("00000000:1F90", "0A"), Protocol::Tcp));
        assert!(serves(row("0705000A:FFFF", "0A"), Protocol::Tcp), "any port");
        assert!(!serves(row("0B00007F:C001", "0A"), Protocol::Tcp), "the engine's resolver");
        assert!(serves(row("00000000:0035", "07"), Protocol::Udp));
        assert!(!serves(row("00000000:C001", "07"), Protocol::Udp), "a client's own socket");
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

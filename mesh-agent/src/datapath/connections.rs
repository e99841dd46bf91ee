//! Counts the connections of other tasks to a draining task of this node, over its networks: to its
//! virtual IPs and to its own addresses.
//!
//! The programs of this node keep no entry of these connections (the client's node does, of those
//! to a virtual IP). The kernel of this node has the sockets, though, as they belong to the task's
//! network namespace. Listing them costs nothing per packet, and a connection that rests for hours
//! is there as well.
//!
//! Invariants: connections that began after the drain don't count, nor those that the task itself
//! opened to others, nor those between two of its own processes.
//!
//! Left to others: how long a drain lasts ([`crate::task`]), published ports ([`super::drain`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mesh_state::ids::TaskId;

use super::error::DatapathError;
use super::lock::lock;
use super::network::netns;
use crate::sock_diag::{ListedSocket, SockDiag, states};
use crate::task::network::Draining;

/// Connections that are found this soon after the first count began before the drain: the kernel's
/// list may miss one while others come and go.
const FIRST_COUNTS: Duration = Duration::from_millis(250);
/// A connection that the task has closed counts as over after this time. The client may not have
/// the last bytes before.
const CLOSING: Duration = Duration::from_secs(5);
/// The states of connections that count until the client or the task closes them.
const OPEN: u32 = states::ESTABLISHED | states::SYN_RECV | states::CLOSE_WAIT;
/// The states of connections that the task has closed and its client has not, or not yet.
const CLOSED_BY_TASK: u32 = states::FIN_WAIT1 | states::FIN_WAIT2 | states::CLOSING | states::LAST_ACK;

/// The draining tasks of this node that have networks.
#[derive(Default)]
pub(super) struct Connections {
    tasks: Mutex<BTreeMap<TaskId, DrainingTask>>,
}

/// A draining task, and the way to list its sockets.
struct DrainingTask {
    pid: u32,
    diag: SockDiag,
    waited: Waited,
}

impl Connections {
    /// The number of connections that the drain of `task` still waits for.
    ///
    /// # Errors
    /// The task's process is gone, or the kernel doesn't list sockets.
    pub(super) fn left(&self, task: &Draining) -> Result<u64, DatapathError> {
        if task.networks.is_empty() {
            return Ok(0);
        }
        let failed = |source| DatapathError::TaskSockets { task: task.task_id.to_string(), source };
        // Not under the lock: one task's list must not wait for another's.
        let known = lock(&self.tasks).remove(&task.task_id).filter(|known| known.pid == task.pid);
        let mut draining = match known {
            Some(known) => known,
            None => DrainingTask {
                pid: task.pid,
                diag: netns::visit(task.pid, SockDiag::open).map_err(failed)?,
                waited: Waited::default(),
            },
        };
        let sockets = all(&mut draining.diag).map_err(failed)?;
        let left = draining.waited.follow(Instant::now(), &served(&sockets, &task.networks));
        lock(&self.tasks).insert(task.task_id.clone(), draining);
        Ok(left)
    }

    /// Forgets a task, whose drain is over.
    pub(super) fn forget(&self, task: &TaskId) {
        lock(&self.tasks).remove(task);
    }
}

/// All connections and listening sockets of TCP in the namespace.
fn all(diag: &mut SockDiag) -> io::Result<Vec<ListedSocket>> {
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let wanted = OPEN | CLOSED_BY_TASK | states::LISTEN;
        diag.list(family, libc::IPPROTO_TCP, wanted, |socket| sockets.push(socket))?;
    }
    Ok(sockets)
}

/// The connections that others have opened to the task, at one of its addresses on networks.
fn served(sockets: &[ListedSocket], networks: &[Ipv4Addr]) -> Vec<ListedSocket> {
    let listens = |socket: &&ListedSocket| socket.state == states::LISTEN;
    let ports: BTreeSet<u16> = sockets.iter().filter(listens).map(|socket| socket.local.port()).collect();
    let ends: BTreeSet<(SocketAddr, SocketAddr)> =
        sockets.iter().map(|socket| (socket.local, socket.peer)).collect();
    // A task that connects to itself by a virtual IP sees that address as the other end, twice.
    let is_with_itself = |socket: &ListedSocket| {
        let there = SocketAddr::new(socket.local.ip(), socket.peer.port());
        let here = SocketAddr::new(socket.peer.ip(), socket.local.port());
        ends.contains(&(socket.peer, socket.local)) || ends.contains(&(there, here))
    };
    let is_own = |address: IpAddr| matches!(address, IpAddr::V4(own) if networks.contains(&own));
    let connections = sockets.iter().filter(|socket| !listens(socket));
    connections
        .filter(|socket| is_own(socket.local.ip()) && ports.contains(&socket.local.port()))
        .filter(|socket| !is_with_itself(socket))
        .copied()
        .collect()
}

/// The connections that a drain waits for.
#[derive(Default)]
struct Waited {
    since: Option<Instant>,
    /// The cookies of those that began before the drain.
    began_before: BTreeSet<u64>,
    /// Since when the task has closed them.
    closing: BTreeMap<u64, Instant>,
}

impl Waited {
    /// Follows the connections that there are `now`; returns how many are still waited for.
    fn follow(&mut self, now: Instant, sockets: &[ListedSocket]) -> u64 {
        let since = *self.since.get_or_insert(now);
        if now <= since + FIRST_COUNTS {
            self.began_before.extend(sockets.iter().map(|socket| socket.cookie));
        }
        let waited = sockets.iter().filter(|socket| {
            if !self.began_before.contains(&socket.cookie) {
                return false;
            }
            if socket.state & CLOSED_BY_TASK == 0 {
                return true;
            }
            now < *self.closing.entry(socket.cookie).or_insert(now) + CLOSING
        });
        waited.count() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 5, 7);
    const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 0, 5, 2);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 5, 9);

    fn socket(state: u32, local: (Ipv4Addr, u16), peer: (Ipv4Addr, u16)) -> ListedSocket {
        let cookie = u64::from(local.1) << 16 | u64::from(peer.1);
        ListedSocket { state, local: local.into(), peer: peer.into(), cookie, inode: 1 }
    }

    fn connection(state: u32, port: u16) -> ListedSocket {
        socket(state, (OWN, 80), (CLIENT, port))
    }

    #[test]
    fn connections_that_others_opened_are_served() {
        let listener = socket(states::LISTEN, (Ipv4Addr::UNSPECIFIED, 80), (Ipv4Addr::UNSPECIFIED, 0));
        let client = connection(states::ESTABLISHED, 4000);
        let to_database = socket(states::ESTABLISHED, (OWN, 40_000), (Ipv4Addr::new(10, 0, 5, 4), 5432));
        let by_mesh = socket(states::ESTABLISHED, (Ipv4Addr::new(10, 200, 1, 5), 80), (CLIENT, 4001));
        let sockets = [listener, client, to_database, by_mesh];
        assert_eq!(served(&sockets, &[OWN]), [client]);
        assert_eq!(served(&sockets[1..], &[OWN]), [], "nothing listens on the port");
    }

    #[test]
    fn connections_of_a_task_with_itself_are_its_own() {
        let listener = socket(states::LISTEN, (OWN, 80), (Ipv4Addr::UNSPECIFIED, 0));
        let by_address = [
            listener,
            socket(states::ESTABLISHED, (OWN, 80), (OWN, 4000)),
            socket(states::ESTABLISHED, (OWN, 4000), (OWN, 80)),
        ];
        assert_eq!(served(&by_address, &[OWN]), []);
        let by_virtual_ip = [
            listener,
            socket(states::ESTABLISHED, (OWN, 80), (VIRTUAL, 4000)),
            socket(states::ESTABLISHED, (OWN, 4000), (VIRTUAL, 80)),
        ];
        assert_eq!(served(&by_virtual_ip, &[OWN]), []);
    }

    #[test]
    fn only_what_began_before_the_drain_is_waited_for() {
        let begun = Instant::now();
        let mut waited = Waited::default();
        let (old, missed) = (connection(states::ESTABLISHED, 1), connection(states::SYN_RECV, 2));
        let new = connection(states::ESTABLISHED, 3);
        assert_eq!(waited.follow(begun, &[old]), 1);
        assert_eq!(waited.follow(begun + FIRST_COUNTS, &[old, missed]), 2, "the first list missed it");
        let later = begun + FIRST_COUNTS + Duration::from_millis(1);
        assert_eq!(waited.follow(later, &[old, missed, new]), 2);
        let hours = begun + Duration::from_hours(2);
        let client_closed = connection(states::CLOSE_WAIT, 1);
        assert_eq!(waited.follow(hours, &[client_closed, new]), 1, "the task may still send");
        assert_eq!(waited.follow(hours, &[new]), 0);
    }

    #[test]
    fn what_the_task_has_closed_gets_a_moment() {
        let begun = Instant::now();
        let mut waited = Waited::default();
        assert_eq!(waited.follow(begun, &[connection(states::ESTABLISHED, 1)]), 1);
        let closed = begun + Duration::from_mins(1);
        assert_eq!(waited.follow(closed, &[connection(states::FIN_WAIT1, 1)]), 1);
        let just_before = closed + Duration::from_millis(4_999);
        assert_eq!(waited.follow(just_before, &[connection(states::FIN_WAIT2, 1)]), 1);
        assert_eq!(waited.follow(closed + CLOSING, &[connection(states::FIN_WAIT2, 1)]), 0);
    }

    #[test]
    fn the_kernels_list_shows_a_connection_until_it_is_closed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        // As this process has both ends, only the served one is looked at.
        let count = || {
            let sockets = all(&mut SockDiag::open().unwrap()).unwrap();
            let ours: Vec<_> = sockets.into_iter().filter(|socket| socket.peer != server).collect();
            let connections = served(&ours, &[Ipv4Addr::LOCALHOST]);
            connections.iter().filter(|socket| socket.local == server && socket.state & OPEN != 0).count()
        };
        assert_eq!(count(), 0);
        let client = TcpStream::connect(server).unwrap();
        assert_eq!(count(), 1, "before the task accepts it");
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(count(), 1);
        drop(client);
        assert_eq!(count(), 1, "the task may still answer");
        drop(accepted);
        assert_eq!(count(), 0);
    }

    #[test]
    fn a_task_that_is_gone_is_an_error() {
        let connections = Connections::default();
        let mut task = Draining {
            task_id: "t".into(),
            pid: 0,
            backends: Vec::new(),
            networks: vec![OWN],
            since: Instant::now(),
        };
        assert!(connections.left(&task).is_err());
        task.networks.clear();
        assert_eq!(connections.left(&task).unwrap(), 0, "it has no networks");
    }
}

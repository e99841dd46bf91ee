//! Tries addresses over TCP, UDP and ICMP from the first moment of the process on, and tells which
//! of them answered.
//!
//! Left to the caller: what should answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// How long one try waits for its answer before the next one.
const TRY: Duration = Duration::from_millis(10);
/// How long the last try waits.
const LAST_TRY: Duration = Duration::from_millis(500);

/// A protocol to try an address over.
#[derive(Debug, Clone, Copy)]
enum Way {
    Tcp(u16),
    Udp(u16),
    Icmp,
}

/// Tries all addresses over all protocols at the same time, each for as long as `tried_for`.
/// Returns a line for each that answered, and how many were tried.
pub(crate) fn all(
    addresses: &[Ipv4Addr],
    http: u16,
    udp_echo: u16,
    tried_for: Duration,
) -> (Vec<String>, usize) {
    let begun = Instant::now();
    let tried: Vec<_> = addresses
        .iter()
        .flat_map(|address| [Way::Tcp(http), Way::Udp(udp_echo), Way::Icmp].map(|way| (*address, way)))
        .map(|(address, way)| (address, way, thread::spawn(move || answers(address, way, begun, tried_for))))
        .collect();
    let count = tried.len();
    let line = |(address, way, thread): (Ipv4Addr, Way, thread::JoinHandle<io::Result<Duration>>)| {
        let after = thread.join().ok()?.ok()?;
        Some(format!("{address} answered over {way:?} after {after:?}"))
    };
    (tried.into_iter().filter_map(line).collect(), count)
}

/// The time until the address answered.
fn answers(address: Ipv4Addr, way: Way, begun: Instant, tried_for: Duration) -> io::Result<Duration> {
    let mut try_once: Box<dyn FnMut(Duration) -> io::Result<()>> = match way {
        Way::Tcp(port) => {
            let server = SocketAddr::new(IpAddr::V4(address), port);
            Box::new(move |within| TcpStream::connect_timeout(&server, within).map(drop))
        }
        Way::Udp(port) => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect((address, port))?;
            Box::new(move |within| exchange(&socket, b"who?", within).map(drop))
        }
        Way::Icmp => {
            let socket = icmp_socket()?;
            socket.connect((address, 0))?;
            Box::new(move |within| echo(&socket, within))
        }
    };
    while begun.elapsed() < tried_for {
        let before = Instant::now();
        if try_once(TRY).is_ok() {
            return Ok(begun.elapsed());
        }
        // A try that is refused at once would take the whole CPU.
        thread::sleep(TRY.saturating_sub(before.elapsed()));
    }
    try_once(LAST_TRY).map(|()| begun.elapsed())
}

fn exchange(socket: &UdpSocket, message: &[u8], within: Duration) -> io::Result<Vec<u8>> {
    let mut answer = [0; 512];
    socket.set_read_timeout(Some(within))?;
    socket.send(message)?;
    let length = socket.recv(&mut answer)?;
    Ok(answer.get(..length).unwrap_or_default().to_vec())
}

/// Sends an echo request and waits for its reply (RFC 792).
fn echo(socket: &UdpSocket, within: Duration) -> io::Result<()> {
    const IPV4_HEADER_BYTES: usize = 20;
    const ECHO_REPLY: u8 = 0;
    // Type 8, code 0, checksum, identifier 1, sequence number 1.
    let request = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
    let reply = exchange(socket, &request, within)?;
    if reply.get(IPV4_HEADER_BYTES) == Some(&ECHO_REPLY) { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
}

/// A raw ICMP socket in the shape of a datagram socket.
fn icmp_socket() -> io::Result<UdpSocket> {
    // SAFETY: the call takes no pointers.
    let socket =
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) }.into())
}

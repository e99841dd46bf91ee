//! ICMP: errors reach the socket that they concern, and the path MTU is known at once.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::cluster::{Docker, eventually};
use mesh_tests::PATIENCE;

use crate::behaviour::{Case, Family, Placed};
use crate::ends::{self, CLOSED, SERVICE, UDP_ECHO};
use crate::table::Outcome;

/// The bytes that the tunnel takes from a packet: outer IPv4, UDP, VXLAN, inner Ethernet.
const TUNNEL_OVERHEAD: i32 = 50;
/// The MTU of the lab's veth links.
const LINK_MTU: i32 = 1500;

/// No process listens on the task's port: the client gets an error.
pub(crate) fn refusal_of_the_task(case: &Case<'_>) -> Result<Outcome> {
    if case.is_userspace() {
        return Ok(Outcome::LeftOut(
            "userspace: a bound UDP port can't answer port unreachable without raw sockets",
        ));
    }
    case.as_client(|| {
        let socket = case.udp(CLOSED)?;
        socket.send(b"anyone?")?;
        match socket.recv(&mut [0; 64]) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Outcome::Held),
            Err(error) => bail!("expected port unreachable, saw: {error}"),
            Ok(length) => bail!("{length} bytes from a closed port"),
        }
    })
}

/// The host of a client whose socket is closed sends an error, and the task's kernel finds the
/// socket that it is about.
pub(crate) fn error_reaches_the_task(case: &Case<'_>) -> Result<Outcome> {
    if case.is_userspace() {
        return Ok(Outcome::LeftOut("userspace: the client's errors are the proxy's own"));
    }
    let before = received(case)?;
    eventually("an ICMP error at the task", PATIENCE, || {
        // The answer finds the socket closed.
        case.as_client(|| {
            case.udp(UDP_ECHO)?.send(b"and gone")?;
            Ok(())
        })?;
        let now = received(case)?;
        ensure!(now.unreachable > before.unreachable, "before {before:?}, now {now:?}");
        ensure!(now.errors == before.errors, "without a socket or malformed: before {before:?}, now {now:?}");
        Ok(Outcome::Held)
    })
}

/// A datagram as big as the client's link allows: if it exceeds the path MTU, an error comes at
/// once, and what fits gets through.
pub(crate) fn path_mtu(case: &Case<'_>) -> Result<Outcome> {
    let crosses_tunnel = case.placed == Placed::Remote && !case.is_userspace();
    case.as_client(|| {
        let socket = case.udp(UDP_ECHO)?;
        set(&socket, case.family.level(), case.family.mtu_discover(), libc::IP_PMTUDISC_DO)?;
        let headers = match case.family {
            Family::V4 => 28,
            Family::V6 => 48,
        };
        // One for the answer "too big", one for the result, and one that may be lost.
        for _ in 0..3 {
            let mtu = get(&socket, case.family.level(), case.family.mtu())?;
            let payload = usize::try_from(mtu - headers)?;
            let sent: Vec<u8> = (0..payload).map(|at| (at % 249).to_le_bytes()[0]).collect();
            let answer = socket.send(&sent).and_then(|_| {
                let mut buffer = vec![0; 65_536];
                let length = socket.recv(&mut buffer)?;
                Ok(buffer[..length].to_vec())
            });
            match answer {
                Ok(answer) => {
                    ensure!(answer.ends_with(&sent), "{} bytes came back, or others", answer.len());
                    let expected = if crosses_tunnel { LINK_MTU - TUNNEL_OVERHEAD } else { LINK_MTU };
                    ensure!(mtu == expected, "expected a path MTU of {expected} bytes, saw {mtu}");
                    return Ok(Outcome::Held);
                }
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("a datagram as big as the way takes"),
            }
        }
        let mtu = get(&socket, case.family.level(), case.family.mtu())?;
        bail!("no answer to three datagrams; the path MTU is {mtu} bytes")
    })
}

/// The errors that the task's network namespace has received.
#[derive(Debug)]
struct Received {
    /// "Destination unreachable".
    unreachable: u64,
    /// Malformed, or about an unknown connection.
    errors: u64,
}

fn received(case: &Case<'_>) -> Result<Received> {
    let home = ends::home(case.cluster)?;
    let containers = case.cluster.containers(SERVICE)?;
    let (id, _) = containers.get(&home.name).and_then(|tasks| tasks.first()).context("no container")?;
    let pid = Docker::towards(&home.docker_host).run(&["inspect", "--format", "{{.State.Pid}}", id])?;
    let read = |file: &str| {
        let path = format!("/proc/{}/net/{file}", pid.trim());
        std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
    };
    match case.family {
        Family::V4 => {
            let text = read("snmp")?;
            let mut lines = text.lines().filter(|line| line.starts_with("Icmp: "));
            let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
            let of = |name: &str| {
                let place = names.split(' ').position(|word| word == name).context("no such counter")?;
                Ok::<u64, anyhow::Error>(values.split(' ').nth(place).context("no value")?.parse()?)
            };
            Ok(Received { unreachable: of("InDestUnreachs")?, errors: of("InErrors")? })
        }
        Family::V6 => {
            let text = read("snmp6")?;
            let of = |name: &str| {
                let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
                let value =
                    line.and_then(|line| line.split_whitespace().nth(1)).context("no such counter")?;
                Ok::<u64, anyhow::Error>(value.parse()?)
            };
            Ok(Received { unreachable: of("Icmp6InDestUnreachs")?, errors: of("Icmp6InErrors")? })
        }
    }
}

impl Family {
    const fn level(self) -> i32 {
        match self {
            Self::V4 => libc::IPPROTO_IP,
            Self::V6 => libc::IPPROTO_IPV6,
        }
    }

    const fn mtu_discover(self) -> i32 {
        match self {
            Self::V4 => libc::IP_MTU_DISCOVER,
            Self::V6 => libc::IPV6_MTU_DISCOVER,
        }
    }

    /// The option that returns the path MTU of a connected socket.
    const fn mtu(self) -> i32 {
        match self {
            Self::V4 => libc::IP_MTU,
            Self::V6 => libc::IPV6_MTU,
        }
    }
}

fn set(socket: &UdpSocket, level: i32, option: i32, value: i32) -> Result<()> {
    let len = u32::try_from(size_of::<i32>())?;
    // SAFETY: the value has the given length, and the call keeps no reference to it.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    ensure!(result == 0, "set option {option}: {}", io::Error::last_os_error());
    Ok(())
}

fn get(socket: &UdpSocket, level: i32, option: i32) -> Result<i32> {
    let (mut value, mut len) = (0_i32, u32::try_from(size_of::<i32>())?);
    // SAFETY: the value has the given length, and the call keeps no reference to it.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) };
    ensure!(result == 0, "read option {option}: {}", io::Error::last_os_error());
    Ok(value)
}

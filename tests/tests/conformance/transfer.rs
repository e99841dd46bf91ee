//! Data gets through completely, with the client's address.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mesh_lab::client::http;
use mesh_lab::cluster::eventually;
use mesh_tests::PATIENCE;
use serde_json::Value;

use crate::behaviour::Case;
use crate::ends::{ECHO, HTTP, UDP_ECHO};
use crate::table::Outcome;

const DEADLINE: Duration = Duration::from_secs(10);
const DOWN: usize = 8_000_000;
const UP: usize = 1_000_000;
const AT_ONCE: usize = 200;
/// Why userspace can't keep the client's address.
const SPOOFING: &str =
    "userspace: the task sees a node unless it takes the PROXY protocol (mesh.lb.mode=proxy)";

pub(crate) fn request(case: &Case<'_>) -> Result<Outcome> {
    let page = whoami(case)?;
    let local: SocketAddr = page["local"].as_str().context("no address of the task in the page")?.parse()?;
    ensure!(local.port() == 80, "expected the target port, not the published one: {page}");
    Ok(Outcome::Held)
}

pub(crate) fn client_is_kept(case: &Case<'_>) -> Result<Outcome> {
    if case.is_userspace() {
        return Ok(Outcome::LeftOut(SPOOFING));
    }
    let page = whoami(case)?;
    ensure!(client_of(&page)? == case.client, "expected the client {}, saw {page}", case.client);
    Ok(Outcome::Held)
}

pub(crate) fn download(case: &Case<'_>) -> Result<Outcome> {
    let server = case.port(HTTP);
    let response =
        case.as_client(|| http::get(server, &format!("/bytes?n={DOWN}"), Duration::from_mins(1)))?;
    ensure!(response.body.len() == DOWN, "{} bytes came", response.body.len());
    let wrong = response.body.iter().enumerate().find(|(at, byte)| **byte != pattern(*at));
    ensure!(wrong.is_none(), "byte {wrong:?} is not the pattern's");
    Ok(Outcome::Held)
}

/// Byte `at` of the answer to `/bytes`.
fn pattern(at: usize) -> u8 {
    let within = at % 65_521;
    ((within * within) >> 3).to_le_bytes()[0]
}

pub(crate) fn half_close(case: &Case<'_>) -> Result<Outcome> {
    let server = case.port(ECHO);
    case.as_client(|| {
        let mut stream = TcpStream::connect_timeout(&server, DEADLINE).context("connect")?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let sent: Vec<u8> = (0..UP).map(|at| (at * 7 % 251).to_le_bytes()[0]).collect();
        let mut writing = stream.try_clone()?;
        let (wrote, back) = std::thread::scope(|scope| {
            let writer =
                scope.spawn(|| writing.write_all(&sent).and_then(|()| writing.shutdown(Shutdown::Write)));
            let mut back = Vec::new();
            let read = stream.read_to_end(&mut back).map(|_| back);
            (writer.join(), read)
        });
        wrote.map_err(|_| anyhow!("the writer panicked"))?.context("write and half-close")?;
        let back = back.context("read what comes back until the end")?;
        ensure!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
        Ok(Outcome::Held)
    })
}

pub(crate) fn many(case: &Case<'_>) -> Result<Outcome> {
    let server = case.port(ECHO);
    case.as_client(|| {
        let mut streams = (0..AT_ONCE)
            .map(|number| {
                TcpStream::connect_timeout(&server, DEADLINE).with_context(|| format!("connection {number}"))
            })
            .collect::<Result<Vec<_>>>()?;
        for (number, stream) in streams.iter_mut().enumerate() {
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.write_all(&number.to_le_bytes())?;
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            let mut back = [0; size_of::<usize>()];
            stream.read_exact(&mut back).with_context(|| format!("read of connection {number}"))?;
            ensure!(back == number.to_le_bytes(), "connection {number} got another's bytes");
        }
        Ok(Outcome::Held)
    })
}

pub(crate) fn datagram(case: &Case<'_>) -> Result<Outcome> {
    let (_, payload) = exchange(case, b"ping")?;
    ensure!(payload == b"ping", "answer: {payload:?}");
    Ok(Outcome::Held)
}

pub(crate) fn datagram_client_is_kept(case: &Case<'_>) -> Result<Outcome> {
    if case.is_userspace() {
        return Ok(Outcome::LeftOut(SPOOFING));
    }
    let (head, _) = exchange(case, b"who")?;
    names_client(case, &head)?;
    Ok(Outcome::Held)
}

/// Whether an answer's first line names the client.
fn names_client(case: &Case<'_>, head: &str) -> Result<()> {
    let client: SocketAddr =
        head.strip_prefix("client=").and_then(|rest| rest.split(' ').next()).context("no client")?.parse()?;
    ensure!(client.ip() == case.client, "expected the client {}, saw {head}", case.client);
    Ok(())
}

pub(crate) fn large_datagram(case: &Case<'_>) -> Result<Outcome> {
    let sent: Vec<u8> = (0..8000_usize).map(|at| (at % 253).to_le_bytes()[0]).collect();
    let (head, payload) = exchange(case, &sent)?;
    ensure!(payload == sent, "{} of {} bytes came back", payload.len(), sent.len());
    if !case.is_userspace() {
        names_client(case, &head).context("in fragments too, the task sees the client")?;
    }
    Ok(Outcome::Held)
}

/// Sends a datagram to the echo until it answers; returns the answer's first line and the rest.
fn exchange(case: &Case<'_>, datagram: &[u8]) -> Result<(String, Vec<u8>)> {
    case.as_client(|| {
        let socket = case.udp(UDP_ECHO)?;
        let mut buffer = vec![0; 65_536];
        // Datagrams may be lost, on loopback too: up to three attempts are no failure.
        for attempt in 1..=3 {
            socket.send(datagram)?;
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    let answer = &buffer[..length];
                    let end = answer.iter().position(|byte| *byte == b'\n').context("no first line")?;
                    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
                    return Ok((head, answer[end + 1..].to_vec()));
                }
                Err(error) if attempt == 3 => return Err(error).context("no answer to three datagrams"),
                Err(_) => {}
            }
        }
        Err(anyhow!("unreachable: the third try returns"))
    })
}

/// whoami's page.
///
/// # Errors
/// No answer, or another page.
pub(crate) fn whoami(case: &Case<'_>) -> Result<Value> {
    page(case, case.port(HTTP))
}

/// The page of a whoami service.
///
/// # Errors
/// As for [`whoami`].
pub(crate) fn page(case: &Case<'_>, server: SocketAddr) -> Result<Value> {
    let response = case.as_client(|| http::get(server, "/", http::DEADLINE))?;
    serde_json::from_slice(&response.body).with_context(|| format!("page: {}", response.text()))
}

/// The same, once the service has settled after a change.
pub(crate) fn eventually_whoami(
    case: &Case<'_>,
    what: &str,
    holds: impl Fn(&Value) -> Result<()>,
) -> Result<()> {
    eventually(what, PATIENCE, || {
        let page = whoami(case)?;
        holds(&page)
    })
}

/// The client that a page names.
pub(crate) fn client_of(page: &Value) -> Result<IpAddr> {
    let client: SocketAddr = page["client"].as_str().context("no client in the page")?.parse()?;
    Ok(client.ip())
}

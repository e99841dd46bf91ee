//! Polls a daemon until it serves, with a deadline.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::component::{Component, ETCD_HEALTH_PORT};
use super::daemon::Started;
use super::layout::NodeLayout;
use super::netns::Netns;

const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The variable with the factor by which an emulated machine is slower.
const PATIENCE: &str = "MESH_LAB_PATIENCE";
/// The limit of one question, in seconds of [`patience`].
const REQUEST_LIMIT: u32 = 2;

/// Waits until the daemon is ready.
///
/// # Errors
/// It ends or the component's deadline passes; the message has the end of its log.
pub(super) fn wait(daemon: &mut Started, component: Component, node: &NodeLayout) -> Result<()> {
    let limit = limit(component);
    let deadline = Instant::now() + limit;
    loop {
        daemon.check_alive()?;
        let Err(error) = probe(component, node) else { return Ok(()) };
        if Instant::now() > deadline {
            let seconds = limit.as_secs();
            bail!("{} isn't ready after {seconds} s ({error:#}); {}", daemon.title(), daemon.log_tail());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Asks a component once whether it is ready.
///
/// # Errors
/// It doesn't answer, or isn't ready.
pub(super) fn probe(component: Component, node: &NodeLayout) -> Result<()> {
    match component {
        Component::Dockerd => get_unix(&node.engine_socket(), "/_ping").map(drop),
        Component::Etcd => {
            let health = Netns::named(node.netns())
                .run(|| get_tcp(Ipv4Addr::LOCALHOST, ETCD_HEALTH_PORT, "/health"))?;
            if !health.contains("true") {
                bail!("etcd says {health}");
            }
            Ok(())
        }
        Component::Control => match get_inside(node, 9465, "/readyz") {
            // One that waits for its cluster says so on its socket.
            Err(_) if waits_for_a_command(node) => Ok(()),
            readiness => readiness.map(drop),
        },
        Component::Agent => match get_inside(node, 9464, "/readyz") {
            Err(_) if is_alone(node) => Ok(()),
            readiness => readiness.map(drop),
        },
    }
}

/// Whether the node's control plane waits for `docker swarm init` or `unlock`. One that starts
/// answers for its health on the same socket before it has made its cluster's files.
fn waits_for_a_command(node: &NodeLayout) -> bool {
    get_unix(&node.control_socket(), "/healthz").is_ok_and(|said| said.contains("waits for docker swarm"))
}

/// Whether the node's agent serves, and is in no cluster, so that it has no table to wait for.
fn is_alone(node: &NodeLayout) -> bool {
    get_unix(&node.mesh_socket(), "/info").is_ok_and(|info| info.contains(r#""LocalNodeState":"inactive""#))
}

fn limit(component: Component) -> Duration {
    patience()
        * match component {
            Component::Dockerd => 90,
            Component::Etcd | Component::Control => 45,
            Component::Agent => 60,
        }
}

/// What a second of this module's limits takes: longer on a machine that is emulated, which sets
/// [`PATIENCE`].
fn patience() -> Duration {
    let factor = std::env::var(PATIENCE).ok().and_then(|factor| factor.parse().ok());
    Duration::from_secs(factor.unwrap_or(1))
}

/// Whether this machine is an emulated one, by what it says of its patience.
pub(super) fn is_emulated() -> bool {
    std::env::var_os(PATIENCE).is_some()
}

/// The body of a server's answer to a GET over a Unix socket.
///
/// # Errors
/// It doesn't answer in time, or with another status than 200.
pub fn get_unix(socket: &Path, path: &str) -> Result<String> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(patience() * REQUEST_LIMIT)).context("set a time limit")?;
    get(stream, path)
}

fn get_inside(node: &NodeLayout, port: u16, path: &str) -> Result<String> {
    let ip = node.ip();
    Netns::named(node.netns()).run(|| get_tcp(ip, port, path))
}

fn get_tcp(ip: Ipv4Addr, port: u16, path: &str) -> Result<String> {
    let address = SocketAddr::from((ip, port));
    let stream = TcpStream::connect_timeout(&address, patience() * REQUEST_LIMIT)
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(patience() * REQUEST_LIMIT)).context("set a time limit")?;
    get(stream, path)
}

/// A GET of HTTP/1.0, whose answer ends with the connection.
fn get(mut stream: impl Read + Write, path: &str) -> Result<String> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: lab\r\n\r\n").context("ask")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    body_of_success(&String::from_utf8_lossy(&answer))
}

fn body_of_success(answer: &str) -> Result<String> {
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status_line = head.lines().next().unwrap_or_default();
    if status_line.split_whitespace().nth(1) != Some("200") {
        bail!("{status_line}: {}", body.trim());
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_is_ready() {
        assert_eq!(
            body_of_success("HTTP/1.0 200 OK\r\nA: b\r\n\r\nOK").unwrap(),
            "OK",
            "the body of a success"
        );
        let error = body_of_success("HTTP/1.1 503 Service Unavailable\r\n\r\nno table yet\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "HTTP/1.1 503 Service Unavailable: no table yet",
            "reason of a refusal"
        );
        assert!(body_of_success("").is_err(), "an empty answer means ready");
    }
}

//! Backends that don't exist, or have died: the client gets an error at once.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::client::http;
use mesh_lab::cluster::{Docker, eventually};
use mesh_tests::PATIENCE;

use crate::behaviour::Case;
use crate::ends::{self, HTTP, NOBODY, SERVICE};
use crate::table::Outcome;
use crate::transfer;

const AT_ONCE: Duration = Duration::from_secs(1);

pub(crate) fn tcp_without_backend(case: &Case<'_>) -> Result<Outcome> {
    let server = case.port(NOBODY);
    eventually("a refusal", PATIENCE, || {
        let begun = Instant::now();
        let tried = case.as_client(|| Ok(http::get(server, "/", http::DEADLINE)))?;
        ensure!(tried.is_err(), "{server} answers");
        ensure!(begun.elapsed() < AT_ONCE, "no answer instead of a refusal");
        Ok(Outcome::Held)
    })
}

pub(crate) fn udp_without_backend(case: &Case<'_>) -> Result<Outcome> {
    if case.is_userspace() {
        return Ok(Outcome::LeftOut(
            "userspace: a bound UDP port can't answer port unreachable without raw sockets",
        ));
    }
    case.as_client(|| {
        let socket = case.udp(NOBODY)?;
        socket.send(b"anyone?")?;
        match socket.recv(&mut [0; 64]) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Outcome::Held),
            Err(error) => bail!("expected port unreachable, saw: {error}"),
            Ok(length) => bail!("{length} bytes though there is no backend"),
        }
    })
}

pub(crate) fn backend_dies(case: &Case<'_>) -> Result<Outcome> {
    let server = case.port(HTTP);
    // The cell before has killed the task as well, and this node may learn of its replacement a
    // moment after the other.
    transfer::eventually_whoami(case, "a task", |_| Ok(()))?;
    let mut held = case.as_client(|| http::open(server, "/slow?ms=60000", http::DEADLINE))?;
    let mut status = [0; 12];
    held.set_read_timeout(Some(PATIENCE))?;
    held.read_exact(&mut status).context("the head of the slow answer")?;
    kill_task(case)?;
    let begun = Instant::now();
    wait_for_end(&mut held)?;
    ensure!(begun.elapsed() < AT_ONCE * 3, "the connection ended {:?} after its task", begun.elapsed());
    transfer::eventually_whoami(case, "the replacement", |_| Ok(()))?;
    Ok(Outcome::Held)
}

/// Waits until the connection is reset or closed before its answer is complete.
fn wait_for_end(stream: &mut TcpStream) -> Result<()> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("expected a reset"),
        Ok(_) if rest.windows(4).any(|window| window == b"}\n") => bail!("the dead task answered"),
        Ok(_) => Ok(()),
    }
}

/// Removes the task's container without mesh.
fn kill_task(case: &Case<'_>) -> Result<()> {
    let home = ends::home(case.cluster)?;
    let containers = case.cluster.containers(SERVICE)?;
    let (id, _) = containers.get(&home.name).and_then(|tasks| tasks.first()).context("no container")?;
    Docker::towards(&home.docker_host).run(&["rm", "-f", id])?;
    Ok(())
}

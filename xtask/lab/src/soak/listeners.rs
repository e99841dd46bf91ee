//! An outsider leaks connections, sends half requests and asks to join with hostnames of 4 MB, and
//! local clients follow events without end: meanwhile `service ls` is answered within a second, and
//! logs hardly grow.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mesh_checkout::command::Program;
use mesh_checkout::{setup, workspace};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::artifacts;
use crate::client::http;
use crate::cluster::samples;
use crate::component::Component;
use crate::layout::{LabName, Layout, NodeLayout};
use crate::{Datapath, Lab, UpOptions, ready};

/// Connections leaked to each listener.
const LEAKED: usize = 1_100;
/// Half requests to each HTTP listener.
const HALF: usize = 1_000;
/// Join calls per second.
const JOINS: u32 = 100;
/// The open files that the soak needs …
const FILES_MIN: u64 = 12_000;
/// … and that it asks for.
const FILES_WANTED: u64 = 65_536;
/// The deadline of each `service ls`.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How much all logs of mesh may grow.
const LOG_BYTES: u64 = 1_000_000;
/// The pause between two `service ls`.
const PAUSE: Duration = Duration::from_millis(250);
/// The TCP listeners: both metrics, nodes, relay.
const PORTS: [u16; 4] = [9464, 9465, 2377, 4800];

/// Arguments of `cargo xtask soak listeners`.
#[derive(Debug, Args)]
pub(super) struct ListenersArgs {
    /// The lab's name
    #[arg(long, default_value = "soak")]
    name: LabName,
    /// How long it lasts, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Makes a lab, runs the outsider, and removes the lab if every check held.
///
/// # Errors
/// An answer was late or missing, a log grew, or nothing was refused at all.
pub(super) fn run(args: &ListenersArgs) -> Result<()> {
    setup::ensure()?;
    raise_files()?;
    let flood = build_flood()?;
    let layout = Layout::new(args.name.clone());
    let lab = Lab::up(&layout, &UpOptions::usual(Datapath::Tc), &artifacts::build()?)?;
    let node = layout.node(1);
    let before = log_bytes(&layout)?;
    let stop = AtomicBool::new(false);
    let held = Held::default();
    let seen = thread::scope(|scope| {
        let outside = scope.spawn(|| {
            lab.client().run(|| {
                hold_outside(node.ip(), &held, &stop);
                Ok(())
            })
        });
        let inside = scope.spawn(|| hold_inside(&node, &held, &stop));
        let seen = start_flood(&lab, &node, &flood, args.seconds).and_then(|mut flood| {
            let seen = watch(&node, Duration::from_secs(args.seconds));
            flood.kill().context("end the calls to join")?;
            flood.wait().context("end the calls to join")?;
            seen
        });
        stop.store(true, Ordering::Relaxed);
        for attack in [outside.join(), inside.join()] {
            attack.map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        seen
    })?;
    let grown = log_bytes(&layout)? - before;
    let refused = refusals(&lab, node.ip())?;
    println!(
        "{} answers, the slowest after {:?}; {} connections made; logs grew by {grown} bytes; refused: {refused:?}",
        seen.answers,
        seen.slowest,
        held.made.load(Ordering::Relaxed)
    );
    ensure!(seen.slowest <= ANSWER_LIMIT, "an answer took {:?}, more than {ANSWER_LIMIT:?}", seen.slowest);
    ensure!(grown < LOG_BYTES, "logs grew by {grown} bytes, more than {LOG_BYTES}");
    for (port, count) in refused {
        ensure!(count > 0.0, "the listener at {port} has refused nothing");
    }
    Lab::down(&layout)
}

/// Raises the limit of open files as far as this machine allows.
fn raise_files() -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let most = maximum.unwrap_or(FILES_WANTED).min(FILES_WANTED);
    ensure!(
        most >= FILES_MIN,
        "at most {most} files may be open, and this needs {FILES_MIN}: raise ulimit -Hn"
    );
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum })
        .context("raise the limit of open files")
}

#[derive(Debug, Default)]
struct Held {
    made: AtomicU64,
}

struct Seen {
    answers: u64,
    slowest: Duration,
}

/// Repeats the requests of `docker service ls`.
fn watch(node: &NodeLayout, length: Duration) -> Result<Seen> {
    let (begun, mut seen) = (Instant::now(), Seen { answers: 0, slowest: Duration::ZERO });
    while begun.elapsed() < length {
        let asked = Instant::now();
        for path in ["/_ping", "/v1.41/services?status=true"] {
            ready::get_unix(&node.mesh_socket(), path)
                .with_context(|| format!("{path} after {} s of it", begun.elapsed().as_secs()))?;
        }
        seen.answers += 1;
        seen.slowest = seen.slowest.max(asked.elapsed());
        thread::sleep(PAUSE);
    }
    Ok(seen)
}

/// Keeps silent connections and half requests open from the client's namespace; reopens those that
/// are closed.
fn hold_outside(ip: Ipv4Addr, held: &Held, stop: &AtomicBool) {
    let mut silent: Vec<Vec<TcpStream>> = PORTS.iter().map(|_| Vec::new()).collect();
    let mut half: Vec<Vec<TcpStream>> = vec![Vec::new(), Vec::new()];
    while !stop.load(Ordering::Relaxed) {
        for (port, connections) in PORTS.into_iter().zip(&mut silent) {
            refill(connections, LEAKED, ip, port, b"", held);
        }
        for (port, connections) in PORTS.into_iter().zip(&mut half) {
            refill(connections, HALF, ip, port, b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Half: ", held);
        }
        thread::sleep(PAUSE);
    }
}

fn refill(connections: &mut Vec<TcpStream>, count: usize, ip: Ipv4Addr, port: u16, said: &[u8], held: &Held) {
    connections.retain(is_open);
    let address = SocketAddr::from((ip, port));
    for _ in connections.len()..count {
        // The listener takes no more connections at the moment, as this soak intends.
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return };
        if stream.set_nonblocking(true).is_ok() && (said.is_empty() || stream.write_all(said).is_ok()) {
            held.made.fetch_add(1, Ordering::Relaxed);
            connections.push(stream);
        }
    }
}

fn is_open(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0; 512]) {
        Ok(read) => read > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

/// Follows events and leaks connections on the node's docker.sock.
fn hold_inside(node: &NodeLayout, held: &Held, stop: &AtomicBool) -> Result<()> {
    let (mut silent, mut events) = (Vec::new(), Vec::new());
    for (connections, said) in
        [(&mut events, &b"GET /v1.41/events HTTP/1.1\r\nHost: x\r\n\r\n"[..]), (&mut silent, b"")]
    {
        for _ in 0..LEAKED {
            let Ok(mut stream) = UnixStream::connect(node.mesh_socket()) else { continue };
            stream.set_nonblocking(true).context("make a connection non-blocking")?;
            if stream.write_all(said).is_ok() {
                held.made.fetch_add(1, Ordering::Relaxed);
                connections.push(stream);
            }
        }
    }
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Builds the program that calls to join: an example of mesh-control, as it knows the protocol.
fn build_flood() -> Result<PathBuf> {
    Program::cargo()
        .args(["build", "--quiet", "--package", "mesh-control", "--example", "join_flood"])
        .current_dir(workspace::root())
        .run()?;
    Ok(workspace::root().join("target/debug/examples/join_flood"))
}

fn start_flood(lab: &Lab, node: &NodeLayout, program: &std::path::Path, seconds: u64) -> Result<Child> {
    let identity = node.state_dir().join("agent/identity.json");
    let words = [
        program.display().to_string(),
        format!("{}:2377", node.ip()),
        identity.display().to_string(),
        JOINS.to_string(),
        (seconds + 60).to_string(),
    ];
    lab.command("client", &words)?.stdin(Stdio::null()).spawn().context("start the calls to join")
}

/// The size of all logs of mesh's daemons, in bytes.
fn log_bytes(layout: &Layout) -> Result<u64> {
    let mut bytes = 0;
    for node in (1..=3).map(|number| layout.node(number)) {
        for component in [Component::Control, Component::Agent] {
            match std::fs::metadata(node.log_file(component)) {
                Ok(metadata) => bytes += metadata.len(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => bail!("read the log of {component} on {}: {error}", node.name()),
            }
        }
    }
    Ok(bytes)
}

/// The refusals that the agent and mesh-control count, by the port of their metrics.
fn refusals(lab: &Lab, ip: Ipv4Addr) -> Result<Vec<(u16, f64)>> {
    let mut refused = Vec::new();
    for port in [9464, 9465] {
        let scrape = || http::get(SocketAddr::from((ip, port)), "/metrics", http::DEADLINE);
        let text = lab.client().run(scrape)?.text();
        refused.push((port, samples(&text, "mesh_refusals_total", &[]).iter().sum()));
    }
    Ok(refused)
}

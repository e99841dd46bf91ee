//! Tests that only members get anything of the nodes: packets that an outsider forges for the
//! tunnel, without seeing any of the members', reach no task; and of all ports, none that isn't
//! listed in SECURITY.md listens, and none answers a stranger unless it is said there.
#![cfg(feature = "cluster")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::client::forged::{Forged, Forger, VNI_DIRECT, VNI_REPLY, VNI_TASKS};
use mesh_lab::cluster::{Cluster, Docker, eventually, samples};
use mesh_lab::record::NodeRecord;
use mesh_tests::{PATIENCE, Service, cluster, lab};

/// The source of the forged packets inside the tunnel.
const STRANGER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 5), 40_000);

/// The document whose table says which ports there are.
const SECURITY: &str = include_str!("../../SECURITY.md");
/// How long an open port may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The deadline of one connection of the scan.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// The threads of the scan.
const SCANNERS: u16 = 4;
/// The type of a TLS record with an alert, and the length of such a record in clear.
const ALERT: u8 = 0x15;
const ALERT_BYTES: usize = 7;
/// Types of HTTP/2 frames that concern the connection: SETTINGS, PING, GOAWAY, WINDOW_UPDATE.
const CONNECTION_FRAMES: [u8; 4] = [4, 6, 7, 8];
/// A request that would be answered wherever HTTP is served.
const REQUEST: &str = "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

fn dropped(cluster: &Cluster, node: &NodeRecord, reason: &str) -> Result<f64> {
    let found = samples(&cluster.metrics(node)?, "mesh_dropped_packets_total", &[("reason", reason)]);
    Ok(found.iter().sum())
}

#[test]
fn forged_tunnel_packets_are_refused_and_counted() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        return Ok(());
    }
    let args = ["--replicas", "1", "-p", "8093:80", "--label", "mesh.lb.allow=10.99.0.0/16", "whoami"];
    let service = Service::create(&cluster, "closed", &args)?;
    let (node, container) = cluster
        .containers(service.name())?
        .into_iter()
        .find_map(|(node, containers)| Some((node, containers.first()?.0.clone())))
        .context("a task")?;
    let node = cluster.node(&node)?;
    let format = "{{(index .NetworkSettings.Networks \"mesh\").IPAddress}}";
    let address = Docker::towards(&node.mesh_host).run(&["inspect", "--format", format, &container])?;
    let member = cluster.record.nodes.iter().find(|other| other.name != node.name).context("another node")?;
    let destination = SocketAddrV4::new(address.trim().parse()?, 80);
    let forge = |vni, cookie| -> Result<()> {
        let packet = Forged { member: member.ip, node: node.ip, vni, cookie, source: STRANGER, destination };
        cluster.client().run(|| Forger::open()?.send(&packet))
    };
    eventually("cookies to be demanded", PATIENCE, || {
        let before = dropped(&cluster, node, "bad_cookie")?;
        forge(VNI_REPLY, 0)?;
        ensure!(dropped(&cluster, node, "bad_cookie")? > before, "a packet without one is accepted");
        Ok(())
    })?;
    let before = dropped(&cluster, node, "bad_cookie")?;
    let mut sent = 0.0;
    let backends = (1..=64_u32).flat_map(|id| [id, VNI_DIRECT | id]);
    for vni in backends.chain([VNI_TASKS, VNI_REPLY]) {
        forge(vni, 0x1234_5678)?;
        sent += 1.0;
    }
    eventually("every forged packet to be counted", PATIENCE, || {
        let refused = dropped(&cluster, node, "bad_cookie")? - before;
        ensure!(refused >= sent, "{sent} sent, {refused} refused");
        Ok(())
    })
}

/// What a stranger gets of a port, by the first word in its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// No answer to a request.
    Refusal,
    /// An answer: the port is open to strangers on purpose.
    Answer,
}

/// The table of SECURITY.md, by transport and port.
fn promises() -> Result<BTreeMap<(String, u16), Promise>> {
    let table = SECURITY.split("## Listening ports").nth(1).context("SECURITY.md has no table of ports")?;
    let table = table.split("\n## ").next().unwrap_or_default();
    let mut promises = BTreeMap::new();
    for row in table.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, ports, _, gets, ..] = cells[..] else { bail!("a row without four cells: {row}") };
        for port in ports.split(", ") {
            let Some((port, transport)) = port.split_once('/') else { continue };
            let Ok(port) = port.parse::<u16>() else { continue };
            let promise = match gets.split([':', ' ', ',']).next() {
                Some("refused") => Promise::Refusal,
                Some("answered") => Promise::Answer,
                other => bail!("{row}: what a stranger gets begins with {other:?}"),
            };
            promises.insert((transport.to_owned(), port), promise);
        }
    }
    ensure!(promises.len() > 8, "SECURITY.md lists {} ports", promises.len());
    Ok(promises)
}

/// The sockets of a node that others than the node itself may reach, by transport and port.
fn listening(cluster: &Cluster, node: &NodeRecord) -> Result<Vec<(String, u16, String)>> {
    let shown = lab::on_machine(cluster, &node.name, &["ss", "-H", "-tulnp"])?;
    let mut found = Vec::new();
    for line in shown.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [transport, _, _, _, local, ..] = words[..] else { bail!("ss printed {line:?}") };
        let (address, port) = local.rsplit_once(':').with_context(|| format!("ss printed {line:?}"))?;
        if address.starts_with("127.") || address == "[::1]" {
            continue;
        }
        found.push((transport.to_owned(), port.parse()?, line.to_owned()));
    }
    Ok(found)
}

#[test]
fn every_listening_port_is_listed_and_answers_no_stranger() -> Result<()> {
    let cluster = cluster()?;
    let promises = promises()?;
    for node in &cluster.record.nodes {
        // Sockets for single questions come and go.
        eventually(&format!("no port of {} that SECURITY.md doesn't list", node.name), PATIENCE, || {
            for (transport, port, line) in listening(&cluster, node)? {
                let is_listed = promises.contains_key(&(transport, port));
                ensure!(is_listed, "list it in SECURITY.md, \"Listening ports\": {line}");
            }
            Ok(())
        })?;
    }
    let manager = cluster.record.nodes.iter().find(|node| node.manager).context("a manager")?;
    let open = cluster.client().run(|| scan(manager.ip))?;
    for (port, expected) in [(2376, true), (2377, true), (9465, true), (4802, false)] {
        ensure!(open.contains(&port) == expected, "port {port} of {}: open are {open:?}", manager.name);
    }
    let identity = Identity::make()?;
    for port in open {
        let promise = promises.get(&("tcp".to_owned(), port));
        let promise = promise.with_context(|| format!("port {port} answers and isn't in SECURITY.md"))?;
        let server = SocketAddrV4::new(manager.ip, port);
        let ask = || Ok([in_clear(server)?, over_tls(server, None)?, over_tls(server, Some(&identity))?]);
        let asked = cluster.client().run(ask)?;
        let ways =
            [("in clear", true), ("over TLS", false), ("over TLS with a certificate of its own", false)];
        for ((way, is_clear), answer) in ways.into_iter().zip(asked) {
            check(*promise, is_clear, &answer).with_context(|| format!("port {port} asked {way}"))?;
        }
    }
    for (_, port) in promises.keys().filter(|(transport, _)| transport == "udp") {
        let server = SocketAddrV4::new(manager.ip, *port);
        let answer = cluster.client().run(|| by_datagram(server))?;
        ensure!(answer.is_empty(), "{server}/udp answered {answer:?}");
    }
    Ok(())
}

/// Whether a port that was asked in one of the `ways` kept its promise.
fn check(promise: Promise, is_clear: bool, answer: &[u8]) -> Result<()> {
    let shown = String::from_utf8_lossy(answer);
    if promise == Promise::Answer && is_clear {
        ensure!(answer.starts_with(b"HTTP/"), "no answer: {shown:?}");
    } else if is_clear {
        // A TLS server may say in an alert that this is no TLS.
        let is_alert = answer.starts_with(&[ALERT, 3]) && answer.len() <= ALERT_BYTES;
        ensure!(answer.is_empty() || is_alert, "answered {shown:?}");
    } else {
        ensure!(has_no_response(answer), "answered {shown:?}");
    }
    Ok(())
}

/// Whether these bytes are nothing, or frames of HTTP/2 by which a server opens and closes a
/// connection: none that belongs to a response.
fn has_no_response(mut bytes: &[u8]) -> bool {
    while let [high, middle, low, kind, _, 0, 0, 0, 0, rest @ ..] = bytes {
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        let Some(next) = rest.get(length..).filter(|_| CONNECTION_FRAMES.contains(kind)) else {
            return false;
        };
        bytes = next;
    }
    bytes.is_empty()
}

/// The TCP ports of a host that take connections.
fn scan(host: Ipv4Addr) -> Result<Vec<u16>> {
    let mut open = Vec::new();
    std::thread::scope(|scope| {
        let part = |first: u16| {
            let ports = (first..=u16::MAX).step_by(SCANNERS.into()).filter(|port| *port > 0);
            ports.filter(|port| is_open(SocketAddr::from((host, *port)))).collect::<Vec<_>>()
        };
        let scanners: Vec<_> = (0..SCANNERS).map(|first| scope.spawn(move || part(first))).collect();
        for scanner in scanners {
            open.extend(scanner.join().ok().context("a scanner panicked")?);
        }
        anyhow::Ok(())
    })?;
    open.sort_unstable();
    Ok(open)
}

fn is_open(server: SocketAddr) -> bool {
    TcpStream::connect_timeout(&server, CONNECT_LIMIT).is_ok()
}

/// All that a port sends to a client that asks in clear.
fn in_clear(server: SocketAddrV4) -> Result<Vec<u8>> {
    let mut stream = match TcpStream::connect_timeout(&server.into(), CONNECT_LIMIT) {
        // The port takes connections and resets this one before the client has looked at it.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Vec::new()),
        connected => connected.with_context(|| format!("connect to {server}"))?,
    };
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut answer = Vec::new();
    // The port may close the connection before the request, or leave it open and say nothing.
    if stream.write_all(REQUEST.as_bytes()).is_ok() {
        stream.read_to_end(&mut answer).ok();
    }
    Ok(answer)
}

/// What a port sends to a datagram that means nothing.
fn by_datagram(server: SocketAddrV4) -> Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut answer = [0; 2048];
    for length in [1, 64, 1200] {
        // An ICMP error, as of a port that nobody has, is no answer.
        if socket.send(&vec![0x5a; length]).is_ok()
            && let Ok(length) = socket.recv(&mut answer)
        {
            return Ok(answer[..length].to_vec());
        }
    }
    Ok(Vec::new())
}

/// A certificate that a stranger made, with its key, in a file that is removed with this.
struct Identity(std::path::PathBuf);

impl Identity {
    fn make() -> Result<Self> {
        let file = std::env::temp_dir().join(format!("mesh-stranger-{}.pem", std::process::id()));
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-subj", "/OU=mesh-manager/CN=stranger", "-keyout"])
            .arg(&file)
            .output()
            .context("run openssl")?;
        ensure!(made.status.success(), "openssl req: {}", String::from_utf8_lossy(&made.stderr));
        let identity = Self(file);
        std::fs::OpenOptions::new().append(true).open(&identity.0)?.write_all(&made.stdout)?;
        Ok(identity)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("can't remove {}: {error}", self.0.display());
        }
    }
}

/// What a port answers inside TLS.
fn over_tls(server: SocketAddrV4, identity: Option<&Identity>) -> Result<Vec<u8>> {
    let mut command = Command::new("timeout");
    command.args([&ANSWER_LIMIT.as_secs().to_string(), "openssl", "s_client", "-quiet", "-connect"]);
    command.arg(server.to_string());
    if let Some(Identity(file)) = identity {
        command.arg("-cert").arg(file).arg("-key").arg(file);
    }
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut input = client.stdin.take().context("the input of openssl")?;
    // openssl may have ended already, as the handshake failed.
    input.write_all(REQUEST.as_bytes()).ok();
    let answer = client.wait_with_output().context("wait for openssl")?.stdout;
    drop(input);
    Ok(answer)
}

//! The listening sockets of the published ports: bound on every node, opened and closed as services
//! come and go.
//!
//! Invariants: a port that another process holds is logged once, reported as long as it is held,
//! tried again every few seconds, and affects no other port; a port that mesh itself needs is never
//! bound, whether or not anything listens there now; closing a listener leaves its TCP connections
//! alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_state::node::PortClash;
use mesh_state::spec::Protocol;
use rustix::fs::fstat;
use socket2::Type;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::accept::{accept_until, bind, listen};
use super::udp::sessions;
use super::{Proxy, connection, host_sockets};
use crate::names::{self, DNS_PORT};
use crate::view::NodeView;

type Published = (Protocol, u16);

/// The published ports on which this node listens.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    ports: BTreeMap<Published, Port>,
    /// Inodes of closed sockets that the kernel may still list.
    closing: BTreeSet<u64>,
    /// Ports that other processes hold at an address that other hosts can reach.
    held: BTreeSet<Published>,
    /// When the host's sockets were last listed.
    looked_at: Option<Instant>,
    /// Whether the kernel's list can't be read; the log says so once.
    is_blind: bool,
}

/// The least time between two listings of the host's sockets, unless a port can't be bound: tables
/// may arrive by the dozen.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Port {
    /// The port is bound.
    Open(Bound),
    /// The port can't be bound; the reason.
    Clashes(String),
}

/// A port that the proxy listens on.
#[derive(Debug)]
struct Bound {
    /// Cancelled to close the socket.
    close: CancellationToken,
    /// The socket's inode.
    inode: u64,
}

impl Listeners {
    /// Closes ports that the view doesn't publish any more, and opens those that are missing.
    pub(super) fn follow(&mut self, proxy: &Arc<Proxy>, view: &NodeView) {
        let wanted: BTreeMap<Published, &str> = view
            .frontends()
            .filter(|(_, port)| port.protocol != Protocol::Sctp)
            .map(|(service, port)| ((port.protocol, port.published), service.name.as_str()))
            .collect();
        self.ports.retain(|port, state| {
            let stays = wanted.contains_key(port);
            if let (false, Port::Open(bound)) = (stays, state) {
                bound.close.cancel();
                self.closing.insert(bound.inode);
            }
            stays
        });
        let inner = names::addresses(view);
        if wanted.keys().any(|(_, port)| *port == DNS_PORT) {
            // It may be shared with the name server, but with nobody else, which binding won't
            // tell.
            self.look_at_the_host(&inner);
        }
        let mut has_failed = false;
        for (port, service) in wanted {
            if !matches!(self.ports.get(&port), Some(Port::Open(_))) {
                has_failed |= !self.open(proxy, port, service);
            }
        }
        let open = |(port, state): (&Published, &Port)| (*port, matches!(state, Port::Open(_)));
        proxy.ledger.set_listeners(self.ports.iter().map(open).collect());
        if has_failed || self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL) {
            self.look_at_the_host(&inner);
            self.looked_at = Some(Instant::now());
        }
        proxy.tell_host_ports(self.held.iter().chain(proxy.settings.own_ports.keys()).copied().collect());
        proxy.tell_clashes(self.clashes());
    }

    /// Lists the ports that other processes hold. Where the kernel can't list sockets, ports count
    /// as held if binding them failed with "address in use".
    fn look_at_the_host(&mut self, inner: &BTreeSet<Ipv4Addr>) {
        match host_sockets::bound() {
            Ok(sockets) => {
                self.closing.retain(|inode| sockets.iter().any(|socket| socket.inode == *inode));
                let open = self.ports.values().filter_map(|port| match port {
                    Port::Open(bound) => Some(bound.inode),
                    Port::Clashes(_) => None,
                });
                let own = open.chain(self.closing.iter().copied()).collect();
                self.held = host_sockets::held_by_others(&sockets, &own, inner);
                self.is_blind = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_blind, true) {
                    tracing::warn!(
                        error = mesh_runtime::error_chain(&error),
                        "the kernel doesn't list sockets (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG): \
                         only ports that can't be bound are left to the host"
                    );
                }
                let in_use =
                    |port: &Port| matches!(port, Port::Clashes(reason) if reason.starts_with(IN_USE));
                let in_use =
                    self.ports.iter().filter(|(_, port)| in_use(port)).map(|(published, _)| *published);
                self.held = in_use.collect();
            }
        }
    }

    fn clashes(&self) -> Vec<PortClash> {
        let clash = |(published, state): (&Published, &Port)| {
            let reason = match state {
                // With `--listen-address`, another process may hold the port at another address;
                // the programs leave the port to it all the same.
                Port::Open(_) => self.held.contains(published).then(|| in_use(published.1)),
                Port::Clashes(reason) => Some(reason.clone()),
            };
            Some(PortClash { protocol: published.0, port: published.1, reason: reason? })
        };
        self.ports.iter().filter_map(clash).collect()
    }

    /// Binds a port; returns whether it succeeded.
    fn open(&mut self, proxy: &Arc<Proxy>, published: Published, service: &str) -> bool {
        let (protocol, port) = (published.0.as_str(), published.1);
        let own = proxy.settings.own_ports.get(&published);
        let started = match own {
            Some(purpose) => Err(format!("needed by mesh itself, for {purpose}: publish another port")),
            None if published.1 == DNS_PORT && self.held.contains(&published) => Err(in_use(port)),
            None => start(proxy, published).map_err(|error| reason(&error, port)),
        };
        match started {
            Ok(bound) => {
                tracing::info!(port, protocol, service, "listen on a published port");
                self.ports.insert(published, Port::Open(bound));
                true
            }
            Err(reason) => {
                let known =
                    matches!(self.ports.get(&published), Some(Port::Clashes(before)) if *before == reason);
                if !known {
                    tracing::error!(
                        port,
                        protocol,
                        service,
                        reason,
                        "can't listen on a published port; other ports go on"
                    );
                }
                self.ports.insert(published, Port::Clashes(reason));
                false
            }
        }
    }
}

/// The beginning of a clash's reason if another process holds the port.
const IN_USE: &str = "in use by another process";

fn in_use(port: u16) -> String {
    format!("{IN_USE}, see `ss -lntup sport = :{port}` there")
}

/// Why a port can't be bound, with the next step.
fn reason(error: &io::Error, port: u16) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => in_use(port),
        io::ErrorKind::PermissionDenied => {
            "no right to listen there, give mesh-agent CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => error.to_string(),
    }
}

fn start(proxy: &Arc<Proxy>, (protocol, port): Published) -> io::Result<Bound> {
    let address = SocketAddr::new(proxy.settings.listen_address, port);
    let close = proxy.stop.child_token();
    if protocol == Protocol::Udp {
        let socket = bind(address, Type::DGRAM)?;
        let inode = fstat(&socket)?.st_ino;
        sessions::start(proxy, socket, port, close.clone())?;
        return Ok(Bound { close, inode });
    }
    let listening = listen(address)?;
    let inode = fstat(&listening)?.st_ino;
    for worker in proxy.workers.iter() {
        let (serving, closing, acceptor) = (Arc::clone(proxy), close.clone(), worker.clone());
        let listening = listening.share()?;
        let accept = async move {
            accept_until(listening, &serving.room, &closing, |stream, peer, permit| {
                let home = serving.workers.home(&acceptor);
                let (proxy, warm, counted) = (Arc::clone(&serving), Arc::clone(&home.warm), home.count());
                home.handle.spawn(serving.tracker.track_future(async move {
                    match TcpStream::from_std(stream) {
                        Ok(stream) => connection::serve(&proxy, &warm, stream, peer, port).await,
                        Err(error) => tracing::warn!(%peer, error = mesh_runtime::error_chain(&error), "register a connection with the event loop"),
                    }
                    drop((permit, counted));
                }));
            })
            .await;
        };
        worker.handle.spawn(proxy.tracker.track_future(accept));
    }
    Ok(Bound { close, inode })
}

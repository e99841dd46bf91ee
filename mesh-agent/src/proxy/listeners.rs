//! The sockets of the published ports: really bound on every node, opened and closed as services come and go.
//!
//! Invariants: a port that something else holds is said once and reported as long as it is held, tried again every few seconds, and harms no other port;
//! closing a listener leaves its TCP connections alone.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_state::node::PortClash;
use mesh_state::spec::Protocol;
use socket2::Type;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::accept::{accept_until, bind, listen};
use super::udp::sessions;
use super::{Proxy, connection};
use crate::view::NodeView;

type Published = (Protocol, u16);

/// The published ports that this node listens on.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    ports: BTreeMap<Published, Port>,
}

#[derive(Debug)]
enum Port {
    /// Bound; cancelled to close it.
    Open(CancellationToken),
    /// Something else holds it, or it can't be bound.
    Clashes(String),
}

impl Listeners {
    /// Closes what the view doesn't publish any more, and opens what is missing.
    pub(super) fn follow(&mut self, proxy: &Arc<Proxy>, view: &NodeView) {
        let wanted: BTreeMap<Published, &str> = view
            .frontends()
            .filter(|(_, port)| port.protocol != Protocol::Sctp)
            .map(|(service, port)| ((port.protocol, port.published), service.name.as_str()))
            .collect();
        self.ports.retain(|port, state| {
            let stays = wanted.contains_key(port);
            if let (false, Port::Open(close)) = (stays, state) {
                close.cancel();
            }
            stays
        });
        for (port, service) in wanted {
            if !matches!(self.ports.get(&port), Some(Port::Open(_))) {
                self.open(proxy, port, service);
            }
        }
        let open = |(port, state): (&Published, &Port)| (*port, matches!(state, Port::Open(_)));
        proxy.ledger.set_listeners(self.ports.iter().map(open).collect());
        proxy.tell_clashes(self.clashes());
    }

    fn clashes(&self) -> Vec<PortClash> {
        let clash = |(published, state): (&Published, &Port)| match state {
            Port::Open(_) => None,
            Port::Clashes(reason) => {
                Some(PortClash { protocol: published.0, port: published.1, reason: reason.clone() })
            }
        };
        self.ports.iter().filter_map(clash).collect()
    }

    fn open(&mut self, proxy: &Arc<Proxy>, published: Published, service: &str) {
        let (protocol, port) = (published.0.as_str(), published.1);
        match start(proxy, published) {
            Ok(close) => {
                tracing::info!(port, protocol, service, "listen on a published port");
                self.ports.insert(published, Port::Open(close));
            }
            Err(error) => {
                let reason = reason(&error, port);
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
            }
        }
    }
}

/// What keeps a port from being bound, with the next step.
fn reason(error: &io::Error, port: u16) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("in use by another process, see `ss -lntup sport = :{port}` there")
        }
        io::ErrorKind::PermissionDenied => {
            "no right to listen there, give mesh-agent CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => error.to_string(),
    }
}

fn start(proxy: &Arc<Proxy>, (protocol, port): Published) -> io::Result<CancellationToken> {
    let address = SocketAddr::new(proxy.settings.listen_address, port);
    let close = proxy.stop.child_token();
    if protocol == Protocol::Udp {
        sessions::start(proxy, bind(address, Type::DGRAM)?, port, close.clone())?;
        return Ok(close);
    }
    let listening = listen(address)?;
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
                        Err(error) => tracing::warn!(%peer, %error, "watch a connection"),
                    }
                    drop((permit, counted));
                }));
            })
            .await;
        };
        worker.handle.spawn(proxy.tracker.track_future(accept));
    }
    Ok(close)
}

//! The sockets of the published ports: really bound on every node, opened and closed as services come and go.
//!
//! Invariants: a port that something else holds is reported once, tried again every few seconds, and harms no other port;
//! closing a listener leaves its connections alone.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_state::spec::Protocol;
use tokio_util::sync::CancellationToken;

use super::accept::{accept_until, bind};
use super::{Proxy, connection};
use crate::view::NodeView;

/// The published ports that this node listens on.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    ports: BTreeMap<u16, Port>,
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
        let wanted: BTreeMap<u16, &str> = view
            .frontends()
            .filter(|(_, port)| port.protocol == Protocol::Tcp)
            .map(|(service, port)| (port.published, service.name.as_str()))
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
        let open = |(port, state): (&u16, &Port)| (*port, matches!(state, Port::Open(_)));
        proxy.ledger.set_listeners(self.ports.iter().map(open).collect());
    }

    fn open(&mut self, proxy: &Arc<Proxy>, port: u16, service: &str) {
        match listen(proxy, port) {
            Ok(close) => {
                tracing::info!(port, service, "listen on a published port");
                self.ports.insert(port, Port::Open(close));
            }
            Err(error) => {
                let reason = error.to_string();
                let known = matches!(self.ports.get(&port), Some(Port::Clashes(before)) if *before == reason);
                if !known {
                    tracing::error!(
                        port,
                        service,
                        error = reason,
                        "can't listen on a published port: find its holder with `ss -ltnp sport = :{port}`; other ports go on"
                    );
                }
                self.ports.insert(port, Port::Clashes(reason));
            }
        }
    }
}

fn listen(proxy: &Arc<Proxy>, port: u16) -> io::Result<CancellationToken> {
    let listener = bind(SocketAddr::new(proxy.settings.listen_address, port))?;
    let close = proxy.stop.child_token();
    let (serving, closing) = (Arc::clone(proxy), close.clone());
    proxy.tracker.spawn(async move {
        accept_until(&listener, &serving.room, &closing, |stream, peer, permit| {
            let proxy = Arc::clone(&serving);
            serving.tracker.spawn(async move {
                connection::serve(&proxy, stream, peer, port).await;
                drop(permit);
            });
        })
        .await;
    });
    Ok(close)
}

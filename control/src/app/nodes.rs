//! Wires the service for nodes, and the CAs that it goes by. No decisions.

use std::sync::Arc;

use mesh_state::ca::ManagerCas;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::DaemonParts;
use crate::config::Config;
use crate::context::ApiContext;
use crate::metrics;
use crate::node_service::issued::Issued;
use crate::node_service::membership::{Admission, JoinRates};
use crate::node_service::own_etcd::OwnEtcd;
use crate::node_service::renewing_server::{RenewingServer, ServerExpiry};
use crate::node_service::session_context::SessionContext;
use crate::node_service::sessions::Sessions;
use crate::trust::{self, Trust};

/// Starts following the CAs in the cluster's record. Returns those of now.
pub(super) fn follow_trust(
    context: &ApiContext,
    opened: Trust,
    parts: &DaemonParts,
) -> watch::Receiver<Arc<Trust>> {
    let (sender, trust) = watch::channel(Arc::new(opened));
    let snapshots = context.feed.snapshots.clone();
    let following = trust::follow(snapshots, Arc::clone(&context.sealer), sender, parts.shutdown.clone());
    parts.start("the cluster's CAs", following);
    trust
}

/// Starts the sessions of nodes, and their server.
pub(super) fn start(
    config: &Config,
    listener: TcpListener,
    (shared, trust, cas): (SessionContext, watch::Receiver<Arc<Trust>>, watch::Sender<ManagerCas>),
    own_etcd: Option<OwnEtcd>,
    registry: &Registry,
    parts: &DaemonParts,
) -> anyhow::Result<()> {
    let (context, door) = (shared.cluster.clone(), Arc::clone(&shared.door));
    let sessions = Arc::new(Sessions::new(shared, parts.components.tracker().clone()));
    parts.start("the watch on sessions", Arc::clone(&sessions).sweep());
    let expiry = ServerExpiry::default();
    let etcd_certificate = config.etcd.identity.as_ref().map(|identity| identity.certificate.clone());
    metrics::certificates::register(Arc::clone(&expiry), trust.clone(), etcd_certificate, registry)?;
    let issued = Issued::register(registry)?;
    let rates = JoinRates::default();
    let admission = Arc::new(Admission { context, trust, door, rates, own_etcd, issued: issued.clone() });
    let nodes = RenewingServer {
        listener,
        advertise: config.advertise,
        admission,
        sessions,
        expiry,
        issued,
        cas,
        tracker: parts.components.tracker().clone(),
    };
    parts.start_server("the node service", nodes.serve(parts.shutdown.clone()));
    Ok(())
}

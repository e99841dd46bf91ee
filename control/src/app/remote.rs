//! Wires the Docker API for clients on other machines. No decisions.

use std::sync::Arc;

use axum::Router;
use hyper_util::service::TowerToHyperService;
use mesh_admission::door::Door;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::DaemonParts;
use crate::api;
use crate::config::Config;
use crate::context::ApiContext;
use crate::remote_api::{Certificate, RemoteApi};
use crate::trust::Trust;

/// Starts serving `router` on `listener`.
pub(super) fn start(
    config: &Config,
    (listener, door): (TcpListener, Arc<Door>),
    (context, trust): (ApiContext, watch::Receiver<Arc<Trust>>),
    router: Router,
    parts: &DaemonParts,
) -> anyhow::Result<()> {
    let hosts = config.remote_api.as_ref().map(|api| api.hosts(config.advertise)).unwrap_or_default();
    let snapshots = context.feed.snapshots.clone();
    let (certificate, tls) = Certificate::new(context, trust.clone(), hosts)?;
    parts.start_server("the remote Docker API's certificate", certificate.renew(parts.shutdown.clone()));
    let api = RemoteApi { listener, door, tls, snapshots, trust };
    let serving = api.serve(api::kind_of, TowerToHyperService::new(router), parts.shutdown.clone());
    parts.start("the remote Docker API", serving);
    Ok(())
}

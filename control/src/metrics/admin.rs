//! Serves `/metrics`, `/healthz`, `/readyz` and, for the service discovery of Prometheus,
//! `/prometheus-targets`.
//!
//! Invariant: no endpoint waits for the store.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus::{Encoder as _, Registry, TextEncoder};

use super::targets;
use crate::feed::watch::Feed;

/// The sources of the endpoints.
#[derive(Clone)]
pub struct Admin {
    /// All metric families of this process.
    pub registry: Registry,
    /// The feed, for whether there is a snapshot, and for the targets in it.
    pub feed: Feed,
}

/// The router that serves the endpoints of `admin`.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/prometheus-targets", get(prometheus_targets))
        .with_state(admin)
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let encoder = TextEncoder::new();
    let mut body = Vec::new();
    match encoder.encode(&admin.registry.gather(), &mut body) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], body).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("encode metrics: {error}\n")).into_response()
        }
    }
}

/// Ready once there is a snapshot to serve. Losing etcd later doesn't make a manager unready that
/// still serves its nodes.
async fn ready(State(admin): State<Admin>) -> Response {
    if admin.feed.snapshot().cluster.is_some() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the cluster was not read from etcd yet\n").into_response()
}

/// Prometheus keeps the targets that it knows while this is no 200. An empty list would take them
/// away.
async fn prometheus_targets(State(admin): State<Admin>) -> Response {
    let snapshot = admin.feed.snapshot();
    if snapshot.cluster.is_none() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the cluster was not read from etcd yet\n").into_response();
    }
    Json(targets::of(&snapshot)).into_response()
}

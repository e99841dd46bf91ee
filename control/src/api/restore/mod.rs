//! Backups over the control socket, which only root opens: `GET /mesh/backup` makes one, `POST
//! /mesh/restore` restores one onto the cluster while it runs.
//!
//! A restore takes the steps that an operator would take: each is one transaction on one object,
//! decided on the newest snapshot ([`step`]), so that between two of them the cluster is one that
//! an operator could have made. It gives the cluster its desired state back. What is observed, and
//! what runs of an object that doesn't differ, stays as it is.
//!
//! Invariants: `dry-run` writes nothing; a restore comes to an end, also if others write meanwhile.

mod difference;
mod saved;
mod step;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use chrono::Utc;
use http_body_util::{BodyExt as _, Limited};
use mesh_backup::{Backup, content};
use mesh_runtime::error_chain;
use mesh_state::store::TxnOutcome;
use serde::Serialize;
use tracing::info;

use super::access;
use super::body::Params;
use super::error::ApiError;
use crate::context::ApiContext;
use crate::dump::dump;
use difference::{Change, difference};
use saved::Saved;
use step::Next;

/// Steps beyond two for each difference: those that a conflict repeats.
const SPARE_STEPS: usize = 64;

/// The answer to a restore.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Restored {
    /// Whether nothing was written.
    dry_run: bool,
    /// What differed from the backup.
    changes: Vec<Change>,
    /// What still differs, with the reasons.
    left: Vec<String>,
}

/// `GET /mesh/backup`: the whole backup in clear.
pub(crate) async fn save(State(context): State<ApiContext>) -> Result<Response, ApiError> {
    let snapshot = access::current(&context).await?;
    let cluster = snapshot.cluster.as_ref().ok_or(ApiError::NoCluster)?;
    let store = context.store.as_ref();
    let backup = dump(store, &context.sealer, cluster.id.clone(), &context.manager_name, Utc::now()).await;
    let bytes = backup.map_err(|error| ApiError::Unavailable(error_chain(&error))).and_then(|backup| {
        info!(keys = backup.manifest().keys, revision = backup.manifest().revision, "made a backup");
        backup.encode().map_err(|error| ApiError::Unavailable(error.to_string()))
    })?;
    Ok(Response::new(Body::from(bytes.to_vec())))
}

/// `POST /mesh/restore`: restores the backup in the body onto this cluster.
pub(crate) async fn restore(
    State(context): State<ApiContext>,
    params: Params,
    request: Request,
) -> Result<Json<Restored>, ApiError> {
    let body = Limited::new(request.into_body(), content::BYTES_MAX).collect().await;
    let body = body.map_err(|error| ApiError::BadRequest(error.to_string()))?.to_bytes();
    let backup = Backup::decode(&body).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let snapshot = access::current(&context).await?;
    let cluster = snapshot.cluster.as_ref().ok_or(ApiError::NoCluster)?;
    let manifest = backup.manifest();
    if manifest.cluster != cluster.id && !params.flag("force") {
        return Err(ApiError::Conflict(format!(
            "the backup is of cluster {}, and this manager is of cluster {}: restore it on a new machine, or give --force to \
             make this cluster's services, networks, secrets and configs those of the backup",
            manifest.cluster, cluster.id
        )));
    }
    let saved = Saved::read(&backup, &context.sealer, &cluster.id)?;
    let changes = difference(&snapshot, &saved);
    let dry_run = params.flag("dry-run");
    if dry_run {
        return Ok(Json(Restored { dry_run, changes, left: Vec::new() }));
    }
    info!(taken_at = %manifest.taken_at, differences = changes.len(), "restores a backup onto the cluster");
    let left = carry_out(&context, &saved, 2 * changes.len() + SPARE_STEPS).await?;
    Ok(Json(Restored { dry_run, changes, left }))
}

/// Takes steps until none is left, at most `limit`. Returns what still differs.
async fn carry_out(context: &ApiContext, saved: &Saved, limit: usize) -> Result<Vec<String>, ApiError> {
    for _ in 0..limit {
        let snapshot = access::current(context).await?;
        let transaction = match step::next(&snapshot, saved, Utc::now()) {
            Next::Write(transaction) => transaction,
            Next::Done(left) => return Ok(left),
        };
        match context.store.txn(transaction.compares, transaction.ops).await? {
            // The next step is decided on what this one wrote.
            TxnOutcome::Committed(revision) => access::catch_up(context, revision).await?,
            TxnOutcome::Conflict => access::newer_than(context, snapshot.revision).await,
        }
    }
    Err(ApiError::Contended)
}

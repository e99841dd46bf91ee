//! `/mesh/clients`: issues, lists and revokes the certificates of remote clients of the Docker API.
//!
//! Invariants: only the control socket has these calls, so only root on a manager gives this right;
//! a client's key never comes here; a certificate opens nothing before its record is stored, and
//! nothing after the record is deleted.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Json, Router, routing};
use bytes::Bytes;
use chrono::Utc;
use mesh_runtime::error_chain;
use mesh_state::api_paths::CLIENTS_PATH;
use mesh_state::remote_client::{NAME_BYTES, RemoteClient, is_name};
use mesh_state::store::{Compare, Op};
use mesh_state::{Timestamp, codec, keys};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::access::{self, Transaction};
use super::error::ApiError;
use crate::ca::root::TrustedRoot;
use crate::context::ApiContext;
use crate::feed::snapshot::ClusterSnapshot;
use crate::slots::own_ports;
use crate::trust::Trust;

/// The most clients of a cluster.
const CLIENTS_MAX: usize = 1024;
/// The shortest and the longest validity of a client's certificate.
const LIFE_MIN: Duration = Duration::from_mins(1);
const LIFE_MAX: Duration = Duration::from_hours(2 * 365 * 24);
/// The most bytes of a certificate request.
const REQUEST_BYTES: usize = 16 << 10;

/// The calls for remote clients' certificates, to be served on the control socket alone.
pub(crate) fn routes() -> Router<ApiContext> {
    Router::new()
        .route(CLIENTS_PATH, routing::get(list).post(create))
        .route(&format!("{CLIENTS_PATH}/{{name}}"), routing::delete(revoke))
}

/// What a client is to be.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Wanted {
    name: String,
    /// PKCS#10 in PEM, with the client's own key.
    request: String,
    /// The validity of its certificate.
    life_seconds: u64,
}

/// A certificate, and what its holder needs besides.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Issued {
    certificate: String,
    /// The CAs by which the client knows managers.
    roots: String,
    until: Timestamp,
    /// Where managers take remote clients; empty if none does.
    managers: Vec<String>,
}

/// A client in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed<'a> {
    name: &'a str,
    created_at: Timestamp,
    until: Timestamp,
    /// Whether the certificate opens the API: `valid`, `expired` or `former CA`.
    state: &'static str,
}

/// `POST /mesh/clients`
async fn create(State(context): State<ApiContext>, body: Bytes) -> Result<Json<Issued>, ApiError> {
    let wanted: Wanted = serde_json::from_slice(&body)
        .map_err(|error| ApiError::BadRequest(format!("invalid JSON: {error}")))?;
    let life = check(&wanted)?;
    let snapshot = access::current(&context).await?;
    let cluster = snapshot.cluster.as_ref().ok_or(ApiError::NoCluster)?;
    let trust = Trust::of(cluster, &context.sealer).map_err(|error| ApiError::Unseal(error_chain(&error)))?;
    let now = Utc::now();
    let signed = trust
        .signer
        .sign_client(&wanted.request, &wanted.name, life, now)
        .map_err(|error| ApiError::BadRequest(error_chain(&error)))?;
    let client = RemoteClient {
        name: wanted.name,
        certificate: signed.digest,
        issuer: trust.signer.digest(),
        created_at: now,
        until: signed.until,
    };
    access::write(&context, |snapshot| keep(snapshot, &client, now)).await?;
    info!(client = client.name, until = %client.until, "issued a certificate for a remote client");
    let managers = own_ports::remote_apis(&snapshot);
    Ok(Json(Issued { certificate: signed.pem, roots: trust.roots_pem, until: client.until, managers }))
}

/// `GET /mesh/clients`
async fn list(State(context): State<ApiContext>) -> Result<Json<serde_json::Value>, ApiError> {
    let snapshot = access::current(&context).await?;
    let (trusted, now) = (trusted(&snapshot), Utc::now());
    let listed = snapshot.clients.values().map(|client| Listed {
        name: &client.name,
        created_at: client.created_at,
        until: client.until,
        state: state(client, &trusted, now),
    });
    let listed: Vec<_> = listed.collect();
    serde_json::to_value(listed).map(Json).map_err(|error| ApiError::Encode(codec::CodecError::Encode(error)))
}

/// `DELETE /mesh/clients/{name}`
async fn revoke(State(context): State<ApiContext>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    access::write(&context, |snapshot| {
        let Some(known) = snapshot.clients.get(&name) else {
            return Err(ApiError::Missing(format!(
                "no client is called {name}: `mesh client ls` lists them"
            )));
        };
        let key = keys::client(&name);
        let compares = vec![Compare::ModRevision(key.clone(), known.mod_revision)];
        Ok(Transaction { compares, ops: vec![Op::Delete { key }] })
    })
    .await?;
    info!(client = name, "revoked the certificate of a remote client");
    Ok(StatusCode::NO_CONTENT)
}

/// The validity that is asked for, once everything is sound.
fn check(wanted: &Wanted) -> Result<Duration, ApiError> {
    if !is_name(&wanted.name) {
        return Err(ApiError::BadRequest(format!(
            "a client's name has 1 to {NAME_BYTES} letters, digits, '-', '_' and '.', and begins with a letter or a digit"
        )));
    }
    if wanted.request.len() > REQUEST_BYTES {
        return Err(ApiError::BadRequest(format!("a certificate request has at most {REQUEST_BYTES} bytes")));
    }
    let life = Duration::from_secs(wanted.life_seconds);
    if !(LIFE_MIN..=LIFE_MAX).contains(&life) {
        let days = LIFE_MAX.as_secs() / 86_400;
        return Err(ApiError::BadRequest(format!(
            "a client's certificate is valid for 1 minute to {days} days"
        )));
    }
    Ok(life)
}

/// The write that keeps a new client. One that could still connect is not replaced.
fn keep(snapshot: &ClusterSnapshot, client: &RemoteClient, now: Timestamp) -> Result<Transaction, ApiError> {
    let trusted = trusted(snapshot);
    if !trusted.contains(&client.issuer) {
        return Err(ApiError::Unavailable("the cluster's CA changed meanwhile: try again".to_owned()));
    }
    let key = keys::client(&client.name);
    let unchanged = match snapshot.clients.get(&client.name) {
        Some(known) if state(known, &trusted, now) == VALID => {
            return Err(ApiError::Conflict(format!(
                "there is a client {name} with a certificate until {until}: revoke it first (`mesh client revoke {name}`), or choose another name",
                name = client.name,
                until = known.until,
            )));
        }
        Some(known) => Compare::ModRevision(key.clone(), known.mod_revision),
        None if snapshot.clients.len() >= CLIENTS_MAX => {
            return Err(ApiError::Conflict(format!(
                "there are {CLIENTS_MAX} clients already: revoke those that are not used (`mesh client ls`)"
            )));
        }
        None => Compare::Absent(key.clone()),
    };
    Ok(Transaction { compares: vec![unchanged], ops: vec![Op::put(key, codec::encode(client)?)] })
}

/// The state of a client whose certificate opens the API.
const VALID: &str = "valid";

fn state(client: &RemoteClient, trusted: &BTreeSet<String>, now: Timestamp) -> &'static str {
    if now >= client.until {
        "expired"
    } else if trusted.contains(&client.issuer) {
        VALID
    } else {
        "former CA"
    }
}

/// The digests of the CAs that the cluster trusts.
fn trusted(snapshot: &ClusterSnapshot) -> BTreeSet<String> {
    let pems = snapshot.cluster.iter().flat_map(|cluster| cluster.trusted_pems());
    pems.filter_map(|pem| TrustedRoot::read(pem).ok()).map(|root| root.digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::create_authority;
    use crate::fixtures::{World, cluster};

    fn wanted(name: &str, life_seconds: u64) -> Wanted {
        Wanted { name: name.to_owned(), request: String::new(), life_seconds }
    }

    #[test]
    fn what_is_asked_for_is_checked() {
        assert_eq!(check(&wanted("alice", 3600)).unwrap(), Duration::from_hours(1));
        for (bad, says) in [
            (wanted("a/../b", 3600), "a client's name has"),
            (wanted("alice", 59), "valid for 1 minute"),
            (wanted("alice", u64::MAX), "730 days"),
            (Wanted { request: "x".repeat(REQUEST_BYTES + 1), ..wanted("alice", 3600) }, "at most"),
        ] {
            let refused = check(&bad).unwrap_err().message();
            assert!(refused.contains(says), "expected {says:?}, saw {refused}");
        }
    }

    #[test]
    fn a_client_is_replaced_once_it_can_connect_no_more() {
        let now = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        let ca = create_authority(&"c".into(), now).unwrap();
        let issuer = TrustedRoot::read(&ca.certificate_pem).unwrap().digest;
        let mut world = World::with_nodes([]);
        let record = mesh_state::cluster::Cluster { ca_certificate_pem: ca.certificate_pem, ..cluster() };
        world.put(keys::CLUSTER.to_owned(), &record);
        let client = RemoteClient {
            name: "alice".to_owned(),
            certificate: "c1".to_owned(),
            issuer,
            created_at: now,
            until: now + LIFE_MIN,
        };
        let keep_at = |world: &World, now| keep(&world.snapshot, &client, now);
        let compares = |transaction: Transaction| transaction.compares;
        let first = compares(keep_at(&world, now).unwrap());
        assert_eq!(first, [Compare::Absent(keys::client("alice"))]);

        world.put(keys::client("alice"), &client);
        let refused = keep_at(&world, now).unwrap_err().message();
        assert!(refused.contains("mesh client revoke alice"), "{refused}");
        let replaced = keep_at(&world, now + LIFE_MIN).unwrap();
        assert!(matches!(compares(replaced)[..], [Compare::ModRevision(..)]), "an expired one is replaced");
        let former = RemoteClient { issuer: "of a former CA".to_owned(), ..client.clone() };
        assert_eq!(state(&former, &trusted(&world.snapshot), now), "former CA");
        world.put(keys::client("alice"), &former);
        assert!(keep_at(&world, now).is_ok(), "one of a former CA is replaced");
    }
}

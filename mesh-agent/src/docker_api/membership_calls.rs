//! `POST /swarm/init`, `join` and `leave`: this node makes a cluster, joins one, or leaves it.
//!
//! Invariant: a node with a manager leaves by the manager's word only, as its loss may cost the
//! cluster its quorum: unforced never, by force once the manager has given up its place.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::compose::CONTROL_TIMEOUT;
use super::error::{ApiError, full};
use super::filters::Query;
use super::manager_role::resign;
use super::membership::Membership;
use super::promotion::{Promotion, Promotions};
use super::{Body, Shared, drain};
use crate::datapath::host_addresses;
use crate::enrolment::address::SystemAddress;
use crate::enrolment::init::{InitBody, InitOrder};
use crate::enrolment::order::JoinOrder;
use crate::enrolment::{EnrolmentError, JOIN_LIMIT, LocalState};

/// The most bytes of a request's body.
const BODY_BYTES_MAX: usize = 64 << 10;

impl Shared {
    /// Whether a manager runs on this node. One that waits for a cluster of its own is none.
    async fn has_manager(&self) -> Result<bool, ApiError> {
        let Ok(control) = self.composer.control() else { return Ok(false) };
        let ping = Request::get("/_ping").body(Empty::<Bytes>::new());
        let ping = ping.map_err(|error| ApiError::BadRequest(error.to_string()))?;
        match control.call_within(CONTROL_TIMEOUT, ping).await {
            Ok(_) => Ok(true),
            Err(ApiError::NotAManager) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Joins or leaves a cluster.
    pub(super) async fn change_membership(
        &self,
        call: Membership,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let composer = &self.composer;
        let state = composer.enrolment().state();
        match call {
            Membership::Init if state == LocalState::Active => {
                if body::<InitBody>(request).await?.forces_new_cluster() {
                    self.force_new_cluster().await
                } else {
                    Err(EnrolmentError::AlreadyMember.into())
                }
            }
            Membership::Init | Membership::Join if state != LocalState::Inactive => {
                drain(request.into_body()).await;
                Err(EnrolmentError::AlreadyMember.into())
            }
            Membership::Init => {
                let (body, system) = (body(request).await?, system_addresses().await?);
                self.found(&InitOrder::new(body, &system, composer.tunnel_port())?).await
            }
            Membership::Join => {
                let order = JoinOrder::new(body(request).await?, &system_addresses().await?)?;
                let deadline = Instant::now() + JOIN_LIMIT;
                composer.enrolment().join(order).await?;
                promoted(composer.promotions(), deadline).await?;
                Ok(Response::new(full("")))
            }
            Membership::Leave => {
                let force = Query::of(request.uri()).value("force").is_some_and(|value| is_true(&value));
                let has_manager = self.has_manager().await?;
                if has_manager && !force {
                    return self.ask_control(request).await;
                }
                drain(request.into_body()).await;
                if has_manager {
                    // The manager must not join again while the node leaves.
                    composer.promotions().send_replace(Promotion::Leaving);
                    if let Err(error) = resign(composer.any_control(), force).await {
                        composer.promotions().send_replace(Promotion::Settled);
                        return Err(error);
                    }
                }
                composer.enrolment().leave(force).await?;
                Ok(Response::new(full("")))
            }
        }
    }
}

/// Waits until the manager on this node is one of the cluster's, if it is to be.
async fn promoted(promotions: &Promotions, deadline: Instant) -> Result<(), EnrolmentError> {
    let mut said = promotions.subscribe();
    let settles = said.wait_for(|promotion| *promotion != Promotion::Becoming);
    match timeout_at(deadline, settles).await.map(|said| said.map(|said| said.clone())) {
        Ok(Ok(Promotion::Refused(reason))) => Err(EnrolmentError::NoManager(reason)),
        Ok(_) => Ok(()),
        Err(_) => Err(EnrolmentError::Timeout),
    }
}

/// Whether the engine takes a query's value for true.
fn is_true(value: &str) -> bool {
    !["", "0", "no", "false", "none"].contains(&value.trim().to_lowercase().as_str())
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, ApiError> {
    let read = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let bytes = read.map_err(|error| ApiError::BadRequest(error.to_string()))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| ApiError::BadRequest(format!("invalid JSON: {error}")))
}

/// The host's addresses, by which a client may name its own.
async fn system_addresses() -> Result<Vec<SystemAddress>, EnrolmentError> {
    let read = tokio::task::spawn_blocking(host_addresses).await;
    let read = read.map_err(|error| EnrolmentError::HostAddresses(error.to_string()))?;
    let found = read.map_err(|error| EnrolmentError::HostAddresses(error.to_string()))?;
    Ok(found.into_iter().map(|(interface, address)| SystemAddress { interface, address }).collect())
}

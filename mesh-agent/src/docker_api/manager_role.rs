//! Keeps the manager on this machine what the node's role says: one that waits becomes a manager of
//! the cluster, one of a node that is a worker now gives its place up.
//!
//! Purpose: `docker swarm join` with a manager's token, `docker node promote` and `demote` end
//! here. Managers seal what a new one needs to the key that the waiting process offers; this
//! module carries the box.
//!
//! Invariants: a manager gives its place up only when a manager said that the node is a worker,
//! never by what is on this node's disk; whatever fails is tried again, so that a crash on the way
//! is made good.
//!
//! Left to others: what the manager does then (mesh-control's `app::managed`).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Method, Request, StatusCode};
use mesh_runtime::backoff::Backoff;
use mesh_state::api_paths::{JOIN_PATH, OFFER_PATH, RESIGN_PATH};
use mesh_state::proto::BecomeManagerRequest;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::compose::CONTROL_TIMEOUT;
use super::error::{ApiError, Peer};
use super::founding::call;
use super::promotion::{Promotion, Promotions};
use super::upstream::Upstream;
use crate::control_link::become_manager::{self, BecomeManagerError};
use crate::control_link::identity::Identity;
use crate::control_link::managers::Managers;

/// How long a manager may take to join the cluster.
const JOINING_LIMIT: Duration = Duration::from_secs(75);
/// How long a manager may take to give its place up.
const RESIGNING_LIMIT: Duration = Duration::from_secs(40);
/// The pause between two looks at a manager that gives its place up.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// How often a manager that runs is looked at: it may have lost its cluster.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
const PAUSE_SHORTEST: Duration = Duration::from_millis(300);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);

/// The word for a manager's role.
const MANAGER: &str = "manager";

/// Keeps the manager behind `control` in step with the node's role.
pub struct ManagerRole {
    /// The socket of the manager on this node.
    pub control: PathBuf,
    /// The cluster's managers.
    pub managers: Managers,
    /// This node's identity.
    pub identity: watch::Receiver<Identity>,
    /// Where the manager is reached.
    pub advertise: SocketAddr,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How far it is.
    pub promotions: Promotions,
}

/// What the manager on this node is.
enum Present {
    /// No process is there.
    Nobody,
    /// It waits for a cluster.
    Waits,
    /// It has one.
    Runs,
}

impl ManagerRole {
    /// Keeps it until `shutdown`.
    pub async fn keep(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.follow()).await;
    }

    async fn follow(self) -> Infallible {
        let manager = Upstream::new(Peer::Control, self.control.clone());
        let mut roles = self.managers.roles();
        let mut backoff = Backoff::new(PAUSE_SHORTEST, PAUSE_LONGEST);
        let mut last_failure = String::new();
        loop {
            let told = roles.borrow_and_update().clone();
            let outcome = self.adjust(&manager, told.as_deref()).await;
            let pause = match outcome {
                Ok(()) => {
                    last_failure.clear();
                    backoff.reset();
                    LOOK_PERIOD
                }
                Err(error) => {
                    let failure = error.to_string();
                    if failure != last_failure {
                        warn!(
                            failure,
                            "the manager on this node is not what the node's role says; will try again"
                        );
                        last_failure = failure;
                    }
                    backoff.pause(&mut rand::rng())
                }
            };
            tokio::select! {
                // The sender lives as long as `self`.
                _ = roles.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Makes the manager what the role says. Before a manager told it, the certificate says it.
    async fn adjust(&self, manager: &Upstream, told: Option<&str>) -> Result<(), ApiError> {
        let by_certificate = self.identity.borrow().role().unwrap_or_default();
        let is_manager = told.unwrap_or(&by_certificate) == MANAGER;
        if *self.promotions.borrow() == Promotion::Leaving {
            return Ok(());
        }
        match present(manager).await? {
            Present::Waits if is_manager => self.become_manager(manager).await,
            Present::Runs if !is_manager && told.is_some() => {
                self.say(Promotion::Settled);
                debug!("this node is a worker now: the manager on it is to give its place up");
                match resign(manager, false).await {
                    // One with an etcd of its operator's: that one stops it.
                    Err(ApiError::Founding { status: StatusCode::NOT_IMPLEMENTED, .. }) => Ok(()),
                    resigned => resigned,
                }
            }
            Present::Nobody if is_manager => {
                self.say(Promotion::Manager);
                Err(ApiError::NoInit)
            }
            Present::Runs if is_manager => {
                self.say(Promotion::Manager);
                Ok(())
            }
            Present::Nobody | Present::Waits | Present::Runs => {
                self.say(Promotion::Settled);
                Ok(())
            }
        }
    }

    async fn become_manager(&self, manager: &Upstream) -> Result<(), ApiError> {
        let offer = match call(manager, CONTROL_TIMEOUT, Method::POST, OFFER_PATH, None).await {
            // One that was killed left its socket behind.
            Err(ApiError::NotAManager) => {
                self.say(Promotion::Manager);
                return Err(ApiError::NoInit);
            }
            offer => offer?,
        };
        let text = |field: &str| offer[field].as_str().unwrap_or_default().to_owned();
        let request = BecomeManagerRequest {
            public_key: BASE64_STANDARD.decode(text("PublicKey")).unwrap_or_default(),
            advertise: self.advertise.to_string(),
            name: text("Name"),
        };
        let others: Vec<SocketAddr> =
            self.managers.all().into_iter().filter(|manager| *manager != self.advertise).collect();
        let identity = self.identity.borrow().clone();
        let sealed = match become_manager::ask(&others, &identity, &request).await {
            Ok(sealed) => sealed,
            Err(error) => {
                if let BecomeManagerError::Refused(reason) = &error {
                    self.say(Promotion::Refused(reason.clone()));
                }
                return Err(failed(error.to_string()));
            }
        };
        let joining = json!({
            "advertise": self.advertise,
            "listen": self.listen,
            "sealed": BASE64_STANDARD.encode(sealed),
        });
        self.say(Promotion::Becoming);
        call(manager, JOINING_LIMIT, Method::POST, JOIN_PATH, Some(&joining)).await?;
        info!("the manager on this node is one of its cluster now");
        self.say(Promotion::Manager);
        Ok(())
    }

    fn say(&self, promotion: Promotion) {
        self.promotions.send_if_modified(|said| {
            let changed = *said != promotion && *said != Promotion::Leaving;
            if changed {
                *said = promotion;
            }
            changed
        });
    }
}

fn failed(message: String) -> ApiError {
    ApiError::Founding { status: StatusCode::SERVICE_UNAVAILABLE, message }
}

/// What the manager on this node is.
async fn present(manager: &Upstream) -> Result<Present, ApiError> {
    if manager.present().is_err() {
        return Ok(Present::Nobody);
    }
    let ping = Request::get("/_ping").body(Empty::<Bytes>::new());
    let ping = ping.map_err(|error| ApiError::BadRequest(error.to_string()))?;
    match manager.call_within(CONTROL_TIMEOUT, ping).await {
        Ok(_) => Ok(Present::Runs),
        // Such is the answer of one that waits, too.
        Err(ApiError::NotAManager) if manager.present().is_ok() => Ok(Present::Waits),
        Err(ApiError::NotAManager) => Ok(Present::Nobody),
        Err(error) => Err(error),
    }
}

/// Makes the manager give its place up, and waits until it waits for a cluster again.
///
/// # Errors
/// It refuses, or doesn't come to its end in time.
pub(super) async fn resign(manager: &Upstream, force: bool) -> Result<(), ApiError> {
    let path = if force { format!("{RESIGN_PATH}?force=1") } else { RESIGN_PATH.to_owned() };
    let _accepted: Value = call(manager, CONTROL_TIMEOUT, Method::POST, &path, None).await?;
    let deadline = Instant::now() + RESIGNING_LIMIT;
    loop {
        match present(manager).await {
            Ok(Present::Waits | Present::Nobody) => return Ok(()),
            Ok(Present::Runs) | Err(_) if Instant::now() < deadline => sleep(LOOK_PAUSE).await,
            Ok(Present::Runs) => {
                return Err(failed("mesh-control did not give its place up in time: see its log".to_owned()));
            }
            Err(error) => return Err(error),
        }
    }
}

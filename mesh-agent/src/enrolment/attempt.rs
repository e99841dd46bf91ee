//! Asks the managers of an order to admit this node, until one does or refuses.
//!
//! Invariants: what time can't mend is an error at once; a manager that doesn't answer, or is busy,
//! is asked again.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_runtime::backoff::Backoff;
use mesh_runtime::error_chain;
use tonic::Code;

use super::error::EnrolmentError;
use super::order::JoinOrder;
use crate::control_link::identity::Identity;
use crate::control_link::join::{self, JoinError, Newcomer};

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(3);

/// What a node got as it joined.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// Its key and certificate.
    pub identity: Identity,
    /// The managers of the order.
    pub managers: Vec<SocketAddr>,
}

/// Joins the cluster of `order` under the name `hostname`. Goes on until it has an outcome.
///
/// # Errors
/// A manager refused, is of another cluster, or nobody listens at any of the addresses.
pub async fn join(order: &JoinOrder, hostname: &str) -> Result<Admitted, EnrolmentError> {
    let newcomer = Newcomer { hostname: hostname.to_owned(), availability: order.availability.clone() };
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    loop {
        let managers = resolve(&order.remotes).await?;
        let mut refusal = None;
        let mut may_succeed = false;
        for manager in &managers {
            match join::join(*manager, &order.token, newcomer.clone()).await {
                Ok(identity) => return Ok(Admitted { identity, managers }),
                Err(error) => match outcome_of(&error, order) {
                    Some(EnrolmentError::NobodyListens(address)) => {
                        refusal = Some(EnrolmentError::NobodyListens(address));
                    }
                    Some(last) => return Err(last),
                    None => {
                        tracing::warn!(error = %error_chain(&error), "can't join the cluster; will try again");
                        may_succeed = true;
                    }
                },
            }
        }
        match refusal {
            Some(refusal) if !may_succeed => return Err(refusal),
            _ => {}
        }
        let pause = backoff.pause(&mut rand::rng());
        tokio::time::sleep(pause).await;
    }
}

/// The managers' addresses; IPv4 ones first, as nodes reach each other by IPv4.
async fn resolve(remotes: &[String]) -> Result<Vec<SocketAddr>, EnrolmentError> {
    let mut managers: Vec<SocketAddr> = Vec::new();
    for remote in remotes {
        let found = tokio::net::lookup_host(remote).await.map_err(|error| EnrolmentError::BadRemote {
            address: remote.clone(),
            reason: error.to_string(),
        })?;
        managers.extend(found);
    }
    managers.sort_by_key(SocketAddr::is_ipv6);
    managers.dedup();
    Ok(managers)
}

/// The final outcome of a failed attempt; `None` if a later one may succeed.
fn outcome_of(error: &JoinError, order: &JoinOrder) -> Option<EnrolmentError> {
    if error.is_other_ca() {
        return Some(EnrolmentError::OtherCa(order.token.ca_digest().to_owned()));
    }
    match error {
        JoinError::Connect { manager, .. } if error.is_connection_refused() => {
            Some(EnrolmentError::NobodyListens(*manager))
        }
        JoinError::Connect { .. } | JoinError::Deadline { .. } => None,
        JoinError::Refused { status, .. } => match status.code() {
            Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::AlreadyExists => {
                None
            }
            Code::PermissionDenied => Some(EnrolmentError::WrongToken),
            code => Some(EnrolmentError::Refused {
                code: format!("{code:?}"),
                message: status.message().to_owned(),
            }),
        },
        JoinError::Request(_) | JoinError::OtherCa { .. } => Some(EnrolmentError::Join(error_chain(error))),
    }
}

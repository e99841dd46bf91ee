//! Asks managers for addresses of this node's containers that are no tasks, and gives them back.
//!
//! Invariants: any manager can answer, so one after the other is asked until one does; asking again
//! with the same id gives the same address, so an answer that was lost costs nothing.
//!
//! Left to others: which containers there are ([`crate::docker_api`]).

use std::time::Duration;

use mesh_state::ids::AttachmentId;
use mesh_state::network::AssignedNetwork;
use mesh_state::proto::node_service_client::NodeServiceClient;
use mesh_state::proto::{AttachRequest, DetachRequest};
use rand::seq::SliceRandom;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::channel;
use super::identity::Identity;
use super::managers::Managers;
use mesh_runtime::error_chain;

/// The deadline of a manager's answer: it waits for an address for at most 20 s.
const DEADLINE: Duration = Duration::from_secs(25);

/// Why a container wasn't attached or detached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// A manager refused, in its own words.
    #[error("rpc error: code = {:?} desc = {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    /// No manager answers.
    #[error("no manager answers, and only managers give addresses: try again once one does ({0})")]
    Away(String),
    /// A manager took the question, and didn't answer.
    #[error(
        "attaching to network failed, make sure your network options are correct and check manager logs: no answer within {DEADLINE:?}"
    )]
    Late,
    /// A manager's answer is no network.
    #[error("read the network that the manager gave: {0}")]
    Unreadable(#[source] serde_json::Error),
}

/// Calls to the managers about this node's containers.
pub struct Attacher {
    managers: Managers,
    identity: watch::Receiver<Identity>,
}

impl Attacher {
    /// Calls to `managers`. The next call uses a renewed identity.
    pub fn new(managers: Managers, identity: watch::Receiver<Identity>) -> Self {
        Self { managers, identity }
    }

    /// Attaches a container to a network, or tells more of one that is attached.
    pub async fn attach(&self, asked: &AttachRequest) -> Result<AssignedNetwork, AttachError> {
        let given = self
            .ask(|mut client| {
                let asked = asked.clone();
                async move { client.attach(asked).await }
            })
            .await?;
        serde_json::from_str(&given.network_json).map_err(AttachError::Unreadable)
    }

    /// Gives the address of an attached container back.
    pub async fn detach(&self, id: &AttachmentId) -> Result<(), AttachError> {
        let taken = self
            .ask(|mut client| {
                let asked = DetachRequest { attachment_id: id.to_string() };
                async move { client.detach(asked).await }
            })
            .await;
        taken.map(drop)
    }

    /// Makes the call to one manager after the other, until one answers.
    async fn ask<T, F, A>(&self, call: F) -> Result<T, AttachError>
    where
        F: Fn(NodeServiceClient<Channel>) -> A,
        A: Future<Output = Result<Response<T>, Status>>,
    {
        let mut managers = self.managers.all();
        managers.shuffle(&mut rand::rng());
        let mut last = "there is no manager in its settings".to_owned();
        for manager in managers {
            let identity = self.identity.borrow().clone();
            let channel = match channel::connect_member(manager, &identity).await {
                Ok(channel) => channel,
                Err(error) => {
                    last = format!("{manager}: {}", error_chain(&error));
                    continue;
                }
            };
            match timeout(DEADLINE, call(NodeServiceClient::new(channel))).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                // It stops, or has lost the store; another one may be better off.
                Ok(Err(status)) if status.code() == Code::Unavailable => {
                    last = format!("{manager}: {}", status.message());
                }
                Ok(Err(status)) => return Err(AttachError::Refused(Box::new(status))),
                Err(_) => return Err(AttachError::Late),
            }
        }
        Err(AttachError::Away(last))
    }
}

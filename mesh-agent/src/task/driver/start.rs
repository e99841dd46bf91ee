//! The start of a container: its networks are made, it is put on them, and it is started.
//!
//! Invariant: nothing here relies on an earlier attempt: an agent that died between two steps left
//! a container that lacks some of its networks. The networks that the preparation has just looked
//! at are not looked at again; if one of them has gone since, the engine refuses, and the next
//! attempt makes it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use mesh_state::network::AssignedNetwork;
use tokio::time::Instant;
use tracing::info;

use super::{Driver, Goal, Taken, done};
use crate::task::container::{Addresses, ContainerFacts, NetworkPlace, is_address_taken};
use crate::task::network::{StartingTask, addresses};
use crate::task::networks::NetworkFacts;
use crate::task::networks::keeper::NetworkError;
use crate::task::runtime::RuntimeError;
use crate::task::transition::start_failure;

/// How long a task waits for a network or an address that something on this node is in the way of.
/// Then it fails, and control makes another one, with another address or on another node.
const PATIENCE: Duration = Duration::from_secs(10);

impl Driver {
    /// Makes the networks of the task, unless they are there.
    ///
    /// # Errors
    /// What is to be done instead.
    pub(super) async fn ensure_networks(&mut self, goal: &Goal) -> Result<Vec<NetworkFacts>, Taken> {
        let networks = Arc::clone(&self.context.networks);
        let made = goal.assignment.networks.iter().map(|network| networks.ensure(network));
        match try_join_all(made).await {
            Ok(made) => Ok(made),
            Err(error) => Err(self.hindered(&error).await),
        }
    }

    /// Starts the container, on all its networks.
    pub(super) async fn start(&mut self, goal: &Goal, seen: Option<&ContainerFacts>) -> Taken {
        let Some(seen) = seen else { return Taken::Done };
        let mut made = std::mem::take(&mut self.made_networks);
        if !are_of(&made, &goal.assignment.networks) {
            made = match self.ensure_networks(goal).await {
                Ok(made) => made,
                Err(taken) => return taken,
            };
        }
        let connecting = goal.assignment.networks.iter().zip(&made);
        let connecting = connecting.map(|(network, found)| self.connect(seen, network, found));
        if let Err(error) = try_join_all(connecting).await {
            return self.hindered(&error).await;
        }
        let task = StartingTask { task_id: self.id.clone(), networks: addresses(&goal.assignment) };
        if let Err(error) = self.context.network.starting(&task).await {
            self.note(&error.to_string()).await;
            return Taken::Retry(error.to_string());
        }
        match self.context.runtime.start(&seen.id).await {
            Err(RuntimeError::Refused(reason)) if is_address_taken(&reason) => {
                let reason = addresses_taken(&goal.assignment.networks, &reason);
                self.wait_or_fail(&start_failure(&reason)).await
            }
            Err(RuntimeError::Refused(reason)) => self.fail(&start_failure(&reason)).await,
            other => done(other),
        }
    }

    /// Puts the container on a network, unless it is there with its address.
    async fn connect(
        &self,
        seen: &ContainerFacts,
        network: &AssignedNetwork,
        found: &NetworkFacts,
    ) -> Result<(), NetworkError> {
        let runtime = &self.context.runtime;
        let failed = |source| NetworkError::Engine { name: network.name.clone(), source };
        match seen.networks.get(&network.name) {
            Some(place) if is_right(place, network, found) => return Ok(()),
            Some(_) => runtime.disconnect(&seen.id, &network.name).await.map_err(failed)?,
            None => {}
        }
        runtime.connect(&seen.id, &found.id, Addresses::from(network)).await.map_err(failed)
    }

    async fn hindered(&mut self, error: &NetworkError) -> Taken {
        let reason = error.to_string();
        if error.is_passing() {
            self.note(&reason).await;
            return Taken::Retry(reason);
        }
        self.wait_or_fail(&reason).await
    }

    /// Reports `reason` and tries again, until that has taken too long.
    async fn wait_or_fail(&mut self, reason: &str) -> Taken {
        let since = *self.hindered_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= PATIENCE {
            info!(task = %self.id, waited = ?PATIENCE, "task can't get on its networks: it fails");
            return self.fail(reason).await;
        }
        self.note(reason).await;
        Taken::Retry(reason.to_owned())
    }
}

/// Whether `made` are the Docker networks of these networks, in their order.
fn are_of(made: &[NetworkFacts], networks: &[AssignedNetwork]) -> bool {
    made.len() == networks.len() && made.iter().zip(networks).all(|(made, network)| made.name == network.name)
}

/// Whether a container's place on a network is the one that it is to have.
fn is_right(place: &NetworkPlace, network: &AssignedNetwork, found: &NetworkFacts) -> bool {
    let is_same = place.network.as_ref().is_none_or(|id| *id == found.id);
    is_same && place.wanted == Some(Addresses::from(network))
}

/// The engine doesn't say which address is taken.
fn addresses_taken(networks: &[AssignedNetwork], reason: &str) -> String {
    let own: Vec<String> =
        networks.iter().map(|network| format!("{} on network {}", network.address, network.name)).collect();
    format!(
        "{reason}: another container of this node has an address of this task ({}); find it with docker network inspect",
        own.join(", ")
    )
}

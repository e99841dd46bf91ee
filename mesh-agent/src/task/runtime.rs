//! The interface of a container engine: the calls that the agent needs, and their results.
//!
//! Invariant: an absent container is a value (`None`), never an error; an error says that the
//! engine could not be reached or refused.

use std::net::Ipv4Addr;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use mesh_state::ids::TaskId;
use mesh_state::task::RegistryAuth;
use thiserror::Error;

use super::container::{Addresses, ContainerFacts};
use super::container_spec::ContainerPlan;
use super::description::EngineFacts;
use super::networks::{NetworkFacts, NetworkPlan, NetworkUsers, OwnNetwork};

/// The result of creating a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// The container was created; its id.
    Container(String),
    /// The engine doesn't have the image; the engine's words.
    NoImage(String),
}

/// Why the engine did not do as asked.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// The engine can't be reached, or closed the connection: try again; nothing is known of the
    /// container.
    #[error("the Docker engine does not answer: {0}")]
    Unavailable(String),
    /// The engine refused; the text is its own.
    #[error("{0}")]
    Refused(String),
}

/// A local container engine.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Pulls the image from its registry, unless the engine has it already. Gives up when the
    /// registry sends nothing for `patience`.
    async fn pull_image(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
        patience: Duration,
    ) -> Result<(), RuntimeError>;

    /// Creates a container from a local image, without starting it.
    async fn create(&self, plan: &ContainerPlan) -> Result<Made, RuntimeError>;

    /// Starts a container.
    async fn start(&self, container: &str) -> Result<(), RuntimeError>;

    /// Asks a container to stop, and kills it after `grace`. Returns when it has ended; succeeds if
    /// it is gone.
    async fn stop(&self, container: &str, grace: Duration) -> Result<(), RuntimeError>;

    /// Removes a container with its anonymous volumes; succeeds if it is gone.
    async fn remove(&self, container: &str) -> Result<(), RuntimeError>;

    /// Inspects a container, by id or name.
    async fn inspect(&self, container: &str) -> Result<Option<ContainerFacts>, RuntimeError>;

    /// Every container that an agent made, with its task.
    async fn task_containers(&self) -> Result<Vec<(TaskId, String)>, RuntimeError>;

    /// The tasks whose containers may have changed, as it happens. The stream ends or fails when
    /// the engine goes away.
    fn events(&self) -> BoxStream<'static, Result<TaskId, RuntimeError>>;

    /// An item for each removal of the network `mesh`, whoever removed it. Ends or fails when the
    /// engine goes away.
    fn bridge_removals(&self) -> BoxStream<'static, Result<(), RuntimeError>>;

    /// The tasks whose containers get an address on the network `mesh`, and the address, before the
    /// container's process runs. Ends or fails when the engine goes away.
    fn bridge_joins(&self) -> BoxStream<'static, Result<(TaskId, Ipv4Addr), RuntimeError>>;

    /// Inspects the network of this name.
    async fn network(&self, name: &str) -> Result<Option<NetworkFacts>, RuntimeError>;

    /// Counts the containers on the network with this id. The engine looks at all its containers
    /// for that, so ask only if the answer matters.
    async fn network_users(&self, network: &str) -> Result<NetworkUsers, RuntimeError>;

    /// The networks that an agent made: those with its label.
    async fn own_networks(&self) -> Result<Vec<OwnNetwork>, RuntimeError>;

    /// Creates a network.
    async fn create_network(&self, plan: &NetworkPlan) -> Result<(), RuntimeError>;

    /// Removes a network, by name or id; succeeds if it is gone.
    async fn remove_network(&self, network: &str) -> Result<(), RuntimeError>;

    /// Puts a container that was not started yet on a network, with these addresses.
    async fn connect(&self, container: &str, network: &str, at: Addresses) -> Result<(), RuntimeError>;

    /// Takes a container that was not started yet off a network.
    async fn disconnect(&self, container: &str, network: &str) -> Result<(), RuntimeError>;

    /// Checks that the engine answers.
    async fn ping(&self) -> Result<(), RuntimeError>;

    /// What the engine reports of itself and its machine.
    async fn engine(&self) -> Result<EngineFacts, RuntimeError>;
}

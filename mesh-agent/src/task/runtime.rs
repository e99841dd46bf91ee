//! The seam to the engine: what the agent needs of one, and what it hears back.
//!
//! Invariant: an absent container is a value (`None`), never an error; an error says that the engine could not be asked or refused.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use mesh_state::ids::TaskId;
use mesh_state::task::RegistryAuth;
use thiserror::Error;

use super::bridge::{BridgeFacts, BridgePlan};
use super::container::ContainerFacts;
use super::container_spec::ContainerPlan;
use super::description::EngineFacts;

/// What came of asking for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// It was made, with this id.
    Container(String),
    /// Its image is not here; the engine's words.
    NoImage(String),
}

/// Why the engine did not do as asked.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// The engine can't be reached, or broke off. Worth trying again; nothing is known of the container.
    #[error("the Docker engine does not answer: {0}")]
    Unavailable(String),
    /// The engine answered no; the text is its own.
    #[error("{0}")]
    Refused(String),
}

/// A local container engine.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Gets the image from its registry, unless the engine has what the registry has. Gives up when nothing comes for `patience`.
    async fn pull_image(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
        patience: Duration,
    ) -> Result<(), RuntimeError>;

    /// Makes a container of an image that is here; it is not started.
    async fn create(&self, plan: &ContainerPlan) -> Result<Made, RuntimeError>;

    /// Starts a container.
    async fn start(&self, container: &str) -> Result<(), RuntimeError>;

    /// Asks a container to end, and kills it after `grace`. Returns when it has ended; one that is gone has ended.
    async fn stop(&self, container: &str, grace: Duration) -> Result<(), RuntimeError>;

    /// Removes a container with its anonymous volumes. One that is gone is removed.
    async fn remove(&self, container: &str) -> Result<(), RuntimeError>;

    /// What there is to know of a container, by id or name.
    async fn inspect(&self, container: &str) -> Result<Option<ContainerFacts>, RuntimeError>;

    /// Every container that an agent made, with its task.
    async fn task_containers(&self) -> Result<Vec<(TaskId, String)>, RuntimeError>;

    /// Tasks whose container may have come to something else, as it happens. The stream ends or fails when the engine goes away.
    fn events(&self) -> BoxStream<'static, Result<TaskId, RuntimeError>>;

    /// The network `mesh` was removed, as it happens, by whomever. Ends or fails when the engine goes away.
    fn bridge_removals(&self) -> BoxStream<'static, Result<(), RuntimeError>>;

    /// The network `mesh` as it is.
    async fn bridge(&self) -> Result<Option<BridgeFacts>, RuntimeError>;

    /// Makes the network `mesh`.
    async fn create_bridge(&self, plan: &BridgePlan) -> Result<(), RuntimeError>;

    /// Removes the network `mesh`.
    async fn remove_bridge(&self) -> Result<(), RuntimeError>;

    /// Whether the engine answers at all.
    async fn ping(&self) -> Result<(), RuntimeError>;

    /// What the engine says of itself and its machine.
    async fn engine(&self) -> Result<EngineFacts, RuntimeError>;
}

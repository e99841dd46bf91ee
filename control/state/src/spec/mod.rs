//! The user's intent: Docker's `ServiceSpec`, spelled as Docker spells it.
//!
//! Invariants: no field is lost on a round trip (fields that mesh doesn't read stay in `extra`);
//! absent stays absent, so a spec that is decoded and encoded again is equal. Defaults are applied
//! where a decision is taken, by the methods here.
//!
//! Left to others: validation (control's API) and every decision.

mod container;
mod generic;
mod policy;
mod port;
mod reference;
mod service;

pub use container::{ContainerSpec, HealthConfig};
pub use generic::{DiscreteResource, GenericResource, NamedResource};
pub use policy::{
    FailureAction, Placement, PlacementPreference, ResourceLimits, ResourceReservations, Resources,
    RestartCondition, RestartPolicy, SpreadOver, UpdateConfig, UpdateOrder,
};
pub use port::{EndpointSpec, PortConfig, Protocol, PublishMode};
pub use reference::{ConfigReference, FileTarget, Reference, SecretReference};
pub use service::{
    GlobalJobMode, GlobalMode, ReplicatedJobMode, ReplicatedMode, ServiceMode, ServiceSpec, TaskSpec,
};

/// Fields of an object that mesh keeps without reading them.
pub type Extra = serde_json::Map<String, serde_json::Value>;

/// Labels: key to value, ordered so that equal specs have equal encodings.
pub type Labels = std::collections::BTreeMap<String, String>;

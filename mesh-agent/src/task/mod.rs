//! Running what control assigned to this node.
//!
//! Purpose: one container for each task, brought as far as its desired state, and an account of how far it came. [`transition`]
//! decides (pure), [`container_spec`] says what the container is (pure), [`runtime`] is the seam to the engine and [`docker`] the
//! only implementation on a real one, [`dependencies`] keeps secrets and configs, [`driver`] walks one task, [`drain`] says how long its
//! flows are waited for (pure), [`listening`] whether it may have any, [`worker`] keeps the set of them, [`cache`] lets a restarted agent go
//! on where it was.
//!
//! Invariants: an observed state only rises; a container that runs is never restarted by the agent, whatever happened to the agent; a
//! failed task stays failed, its replacement is another task and control's decision; nothing is reported that was not seen.
//!
//! Left to others: which tasks exist and where (mesh-control), what connects them to the mesh ([`network::TaskNetwork`] is implemented
//! by the data plane and the proxy), getting assignments and sending statuses (`control_link`).

pub mod runtime;
pub mod transition;

pub mod container;
pub mod container_spec;
pub mod dependencies;

pub mod bridge;
pub mod docker;

pub mod cache;
mod drain;
mod driver;
pub mod engine_watch;
mod image;
mod listening;
pub mod load;
pub mod network;
pub mod worker;

pub mod description;
pub mod logs;

//! Runs the tasks that control assigned to this node.
//!
//! Purpose: one container for each task, brought to its desired state, and a report of its observed
//! state. [`transition`] decides the next step (pure), [`container_spec`] plans the container
//! (pure), [`runtime`] is the interface of an engine and [`docker`] its only implementation,
//! [`dependencies`] holds secrets and configs, [`networks`] makes the Docker networks of services,
//! [`driver`] drives one task, [`drain`] decides how long its flows are waited for (pure),
//! [`listening`] whether it may have any, [`local`] publishes its addresses, [`worker`] owns the
//! set of drivers, [`cache`] lets a restarted agent continue.
//!
//! Invariants: an observed state only rises; the agent never restarts a running container, whatever
//! happened to the agent; a failed task stays failed, its replacement is another task and control's
//! decision; only what was observed is reported.
//!
//! Left to others: which tasks exist and where (mesh-control), connecting them to the mesh (the
//! data plane and the proxy implement [`network::TaskNetwork`]), receiving assignments and sending
//! statuses ([`crate::control_link`]).

pub mod runtime;
pub mod transition;

pub mod container;
pub mod container_spec;
pub mod dependencies;

pub mod bridge;
pub mod docker;
pub mod networks;

pub mod cache;
mod drain;
mod driver;
pub mod engine_watch;
mod image;
mod listening;
pub mod load;
pub mod local;
pub mod network;
pub mod worker;

pub mod description;
pub mod logs;

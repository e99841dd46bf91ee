//! Rolling updates: slots whose tasks no longer match their service's spec get new tasks, a few at a time.
//!
//! Invariants: where an update stands is read from the tasks and from [`mesh_state::service::UpdateStatus`] alone, so a new leader goes on
//! where the old one stopped; every batch rewrites the service under a compare, so an update that races with its user begins anew.
//!
//! Left to others: the number of slots (orchestrators), tasks that die meanwhile (restart), the moment at which a prepared task may run
//! (promotion).

pub mod dirty;
pub mod progress;
pub mod settings;

pub mod roll;
pub mod rollback;

//! How many tasks a service has: one in each slot of a replicated service, one on each eligible node for a global one, and as many at a
//! time as a job may.
//!
//! Invariants: slots are filled and dropped here and nowhere else; a task is made by [`create::TaskMaker`] and asked to stop by
//! [`create::stopped`] alone, so that every new task has its backend ids and every stop its moment.
//!
//! Left to others: where a task runs (scheduler), what follows a task's end (restart), which spec a running task has (update).

pub mod create;
pub mod slots;

pub mod global;
pub mod jobs;
pub mod reap;
pub mod release;
pub mod replicated;

#[cfg(test)]
mod tests;

//! What follows the end of a task, or the loss of its node.
//!
//! Invariants: a failed task is replaced, never revived; the decision stands on what is in the store alone, so a new leader decides alike.
//!
//! Left to others: slots that have no task at all (orchestrators), the replacement's node (scheduler).

pub mod decide;
pub mod history;

pub mod promote;
pub mod replace;

#[cfg(test)]
mod tests;

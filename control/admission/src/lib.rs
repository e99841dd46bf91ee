//! One admission policy for all input from outside to mesh's daemons.
//!
//! Purpose: a client may be slow, broken or hostile. Whatever it does, it uses a bounded share of
//! connections, descriptors, memory, time and log, and all other clients are served. [`figures`] is
//! the one table of limits; [`register`], [`rate`] and [`text`] decide, without a clock or I/O;
//! [`door`], [`accept`] and [`http`] wrap listeners and carry the decisions out. Each refusal has a
//! [`refusals::Reason`], is counted under it, and is logged at a bounded rate.
//!
//! Invariants: a decision is O(log n) in the open connections; nothing from outside is logged
//! unescaped or at full length.
//!
//! Left to others: what a request means, and who may make it.

pub mod accept;
pub mod descriptors;
pub mod door;
pub mod figures;
pub mod http;
pub mod log;
pub mod rate;
pub mod refusals;
pub mod register;
pub mod stream;
pub mod text;

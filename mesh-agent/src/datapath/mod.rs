//! The kernel data plane of this node, seen from userspace.
//!
//! Pure parts: [`diff`] plans map writes over [`contents`], with [`members`] and [`index`].

pub mod contents;
pub mod diff;
pub mod facts;
pub mod index;
pub mod members;

//! What every developer command needs of the checkout.
//!
//! Code map: [`workspace`] has its paths, [`command`] runs other programs, [`setup`] installs what
//! is missing.

pub mod command;
pub mod setup;
pub mod workspace;

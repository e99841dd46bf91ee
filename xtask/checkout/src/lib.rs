//! What every developer command knows of the checkout.
//!
//! Code map: [`workspace`] knows where things lie, [`command`] starts other programs, [`setup`]
//! installs what is missing.

pub mod command;
pub mod setup;
pub mod workspace;

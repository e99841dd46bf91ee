//! Rolling updates of a service, by the docker CLI.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::{Docker, eventually};

/// Begins an update with these flags of `docker service update`.
///
/// # Errors
/// It is refused.
pub(super) fn begin(docker: &Docker, service: &str, flags: &[&str]) -> Result<()> {
    docker.run(&[&["service", "update", "--detach"][..], flags, &[service]].concat()).map(drop)
}

/// Waits until the last update is in this state: `updating`, `completed`.
///
/// # Errors
/// It isn't within `within`.
pub(super) fn wait_until(docker: &Docker, service: &str, state: &str, within: Duration) -> Result<()> {
    eventually(&format!("the update of {service} to be {state}"), within, || {
        let format = "{{.UpdateStatus.State}} {{.UpdateStatus.Message}}";
        let seen = docker.run(&["service", "inspect", "--format", format, service])?;
        ensure!(seen.split_whitespace().next() == Some(state), "its state: {}", seen.trim());
        Ok(())
    })
}

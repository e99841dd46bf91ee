//! Secrets and configs that are removed with the test.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::{Cluster, eventually};

use crate::PATIENCE;

/// A secret or config that is removed when the test ends. Create it before the services that use
/// it: they are dropped first then.
#[derive(Debug)]
pub struct Deposit {
    kind: &'static str,
    name: String,
    cluster: Cluster,
    removed: bool,
}

impl Deposit {
    /// `docker secret create NAME -`, with the value on standard input.
    ///
    /// # Errors
    /// The CLI fails.
    pub fn secret(cluster: &Cluster, name: &str, value: &[u8]) -> Result<Self> {
        Self::create(cluster, "secret", &[], name, value)
    }

    /// `docker secret|config create --template-driver golang NAME -`, with the template on standard
    /// input.
    ///
    /// # Errors
    /// The CLI fails.
    pub fn template(cluster: &Cluster, kind: &'static str, name: &str, template: &str) -> Result<Self> {
        Self::create(cluster, kind, &["--template-driver", "golang"], name, template.as_bytes())
    }

    /// `docker config create NAME -`, with the value on standard input.
    ///
    /// # Errors
    /// The CLI fails.
    pub fn config(cluster: &Cluster, name: &str, value: &[u8]) -> Result<Self> {
        Self::create(cluster, "config", &[], name, value)
    }

    fn create(
        cluster: &Cluster,
        kind: &'static str,
        options: &[&str],
        name: &str,
        value: &[u8],
    ) -> Result<Self> {
        let mut command = cluster.docker()?.command(&[&[kind, "create"], options, &[name, "-"]].concat());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no standard input")?.write_all(value)?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "docker {kind} create {name}: {}", said.trim());
        Ok(Self { kind, name: name.to_owned(), cluster: cluster.clone(), removed: false })
    }

    /// The object's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Deposit {
    /// Removes it before the test ends.
    ///
    /// # Errors
    /// The CLI fails.
    pub fn remove(mut self) -> Result<()> {
        self.removed = true;
        self.cluster.docker()?.run(&[self.kind, "rm", &self.name]).map(drop)
    }
}

impl Drop for Deposit {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        // A service that was removed just now may still refer to it for a moment.
        let removed = eventually("the removal", PATIENCE, || {
            self.cluster.docker()?.run(&[self.kind, "rm", &self.name]).map(drop)
        });
        if let Err(error) = removed {
            eprintln!("can't remove {} {}: {error:#}", self.kind, self.name);
        }
    }
}

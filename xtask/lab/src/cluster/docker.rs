//! The unmodified `docker` command, towards one socket.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The docker CLI with its `DOCKER_HOST`.
#[derive(Debug, Clone)]
pub struct Docker {
    host: String,
}

/// How the CLI refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it wrote to standard error.
    pub message: String,
}

/// A line of `docker service ps`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskRow {
    /// The task's id.
    #[serde(rename = "ID")]
    pub id: String,
    /// The name of its slot; the CLI draws history under it only in its own table.
    pub name: String,
    /// The node it is on, if any.
    pub node: String,
    /// How far it is to go.
    pub desired_state: String,
    /// Its state and for how long, as in `Running 3 seconds ago`.
    pub current_state: String,
    /// Why it failed.
    pub error: String,
}

impl TaskRow {
    /// Whether it is wanted and runs.
    pub fn is_running(&self) -> bool {
        self.desired_state == "Running" && self.current_state.starts_with("Running")
    }
}

impl Docker {
    /// The CLI towards `host`, such as `unix:///run/mesh/docker.sock`.
    pub fn towards(host: &str) -> Self {
        Self { host: host.to_owned() }
    }

    /// Where it goes.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The command with these arguments, for who needs the process itself.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", &self.host).env_remove("DOCKER_CONTEXT").args(args).stdin(Stdio::null());
        command
    }

    /// Runs it and returns its standard output.
    ///
    /// # Errors
    /// When it exits with something else than 0; tells what it said.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } = self.output(args)?;
        if !status.success() {
            bail!(
                "`docker {}` failed ({status}): {}",
                args.join(" "),
                String::from_utf8_lossy(&stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    /// Runs it where it must be refused.
    ///
    /// # Errors
    /// When it exits with 0.
    pub fn refused(&self, args: &[&str]) -> Result<Refusal> {
        let Output { status, stdout, stderr } = self.output(args)?;
        if status.success() {
            bail!(
                "expected `docker {}` to be refused, but it said: {}",
                args.join(" "),
                String::from_utf8_lossy(&stdout).trim()
            );
        }
        Ok(Refusal { code: status.code(), message: String::from_utf8_lossy(&stderr).trim().to_owned() })
    }

    /// The service's tasks with their history, as `docker service ps` lists them.
    ///
    /// # Errors
    /// When the CLI fails or writes something else than its rows.
    pub fn tasks(&self, service: &str) -> Result<Vec<TaskRow>> {
        let listed = self.run(&["service", "ps", "--no-trunc", "--format", "{{json .}}", service])?;
        listed
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("a row of service ps: {line}")))
            .collect()
    }

    fn output(&self, args: &[&str]) -> Result<Output> {
        self.command(args).output().with_context(|| format!("start `docker {}`", args.join(" ")))
    }
}

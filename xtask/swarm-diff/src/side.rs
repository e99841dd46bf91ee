//! Runs a section's commands against one cluster, and polls its API for their effects.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::eventually;
use mesh_lab::ready;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::script::{Action, Await, Section};

/// The deadline for a command's effect on the cluster.
const AWAIT_LIMIT: Duration = Duration::from_mins(1);
/// The deadline for the cluster to become empty between sections.
const CLEAN_LIMIT: Duration = Duration::from_secs(90);
/// The time limit of a command, in seconds.
const COMMAND_LIMIT: &str = "60";
/// The node whose socket commands go to by default.
const FIRST_NODE: &str = "node-1";

/// Removes what a section leaves behind, so that sections don't see each other's objects.
const CLEAN: &str = "\
ids=$(docker service ls -q); test -z \"$ids\" || docker service rm $ids
ids=$(docker secret ls -q); test -z \"$ids\" || docker secret rm $ids
ids=$(docker config ls -q); test -z \"$ids\" || docker config rm $ids
";

/// Removes networks, once no task uses them any more.
const CLEAN_NETWORKS: &str = "ids=$(docker network ls -q --filter driver=overlay --filter type=custom); test -z \"$ids\" || docker network rm $ids";

/// The result of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Its line in the section's file.
    pub(super) line: usize,
    /// The command itself.
    pub(super) command: String,
    /// Its exit code.
    pub(super) code: i32,
    /// What it wrote to standard output.
    pub(super) stdout: String,
    /// What it wrote to standard error.
    pub(super) stderr: String,
}

/// A cluster that commands can be run against.
#[derive(Debug)]
pub(super) struct Cluster {
    /// The sockets of the nodes, by name.
    pub(super) sockets: BTreeMap<String, PathBuf>,
    /// The directory of the commands' files.
    pub(super) files: PathBuf,
    /// An empty home directory for the CLI.
    pub(super) home: PathBuf,
}

impl Cluster {
    /// Runs a section on the empty cluster and empties it again.
    ///
    /// # Errors
    /// A command can't be started, or the cluster doesn't become empty. A failed command is an
    /// answer, no error.
    pub(super) fn run(&self, section: &Section) -> Result<Vec<Outcome>> {
        let mut node = FIRST_NODE.to_owned();
        let mut outcomes: Vec<Outcome> = Vec::new();
        for step in &section.steps {
            match &step.action {
                Action::On(name) => node.clone_from(name),
                Action::Command(command) => {
                    let mut outcome = self.shell(&node, command)?;
                    outcome.line = step.line;
                    outcomes.push(outcome);
                }
                Action::Await(wanted) => {
                    // The missing effect shows at the command that should have caused it.
                    if let Err(error) = self.wait(wanted)
                        && let Some(cause) = outcomes.last_mut()
                    {
                        eprintln!("{}.cmds:{}: {error:#}", section.name, step.line);
                        // Writing to a String can't fail.
                        writeln!(cause.stdout, "\nawaited in vain: {wanted:?}").ok();
                    }
                }
            }
        }
        self.clean().context("empty the cluster")?;
        Ok(outcomes)
    }

    /// Runs a command against the first node.
    ///
    /// # Errors
    /// It can't be started.
    pub(super) fn first(&self, command: &str) -> Result<Outcome> {
        self.shell(FIRST_NODE, command)
    }

    fn shell(&self, node: &str, command: &str) -> Result<Outcome> {
        let output = Command::new("timeout")
            .args([COMMAND_LIMIT, "sh", "-c", command])
            .current_dir(&self.files)
            .env("DOCKER_HOST", format!("unix://{}", self.socket(node)?.display()))
            .env("DOCKER_CLI_HINTS", "false")
            .env("HOME", &self.home)
            .env_remove("DOCKER_CONTEXT")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start `{command}`"))?;
        Ok(Outcome {
            line: 0,
            command: command.to_owned(),
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn socket(&self, node: &str) -> Result<&PathBuf> {
        self.sockets.get(node).with_context(|| format!("there is no node `{node}`"))
    }

    /// Removes everything that a section may have left, and waits until no task is left.
    ///
    /// # Errors
    /// Something can't be removed.
    pub(super) fn clean(&self) -> Result<()> {
        let cleaned = self.shell(FIRST_NODE, CLEAN)?;
        ensure!(cleaned.code == 0, "{}", cleaned.stderr.trim());
        // A Swarm keeps tasks of jobs that ended for ever, and shows them nowhere.
        eventually("no tasks that run", CLEAN_LIMIT, || {
            let mut tasks = self.tasks()?;
            tasks.retain(|task| !task.has_ended());
            ensure!(tasks.is_empty(), "these are left: {tasks:?}");
            Ok(())
        })?;
        eventually("no networks", CLEAN_LIMIT, || {
            let cleaned = self.shell(FIRST_NODE, CLEAN_NETWORKS)?;
            ensure!(cleaned.code == 0, "{}", cleaned.stderr.trim());
            Ok(())
        })
    }

    /// Waits for an effect of a command.
    ///
    /// # Errors
    /// It takes too long.
    pub(super) fn wait(&self, wanted: &Await) -> Result<()> {
        if let Await::Running { service, .. }
        | Await::State { service, .. }
        | Await::Error { service }
        | Await::Updated { service, .. } = wanted
        {
            // A refused service has no effect to wait for.
            self.get(&format!("/services/{service}"))?;
        }
        eventually(&format!("{wanted:?}"), AWAIT_LIMIT, || match wanted {
            Await::Running { service, count } => {
                let tasks = self.tasks_of(service)?;
                ensure!(all_run(&tasks, *count), "{tasks:?}");
                Ok(())
            }
            Await::State { service, state, count } => {
                let tasks = self.tasks_of(service)?;
                let found = tasks.iter().filter(|task| task.state == *state).count();
                ensure!(found >= *count, "{tasks:?}");
                Ok(())
            }
            Await::Error { service } => {
                let tasks = self.tasks_of(service)?;
                ensure!(tasks.iter().any(|task| !task.error.is_empty()), "{tasks:?}");
                Ok(())
            }
            Await::Updated { service, state } => {
                let service = self.get(&format!("/services/{service}"))?;
                let found = service["UpdateStatus"]["State"].as_str().unwrap_or("none");
                ensure!(found == state, "the update is {found}");
                Ok(())
            }
            Await::Node { name, state } => {
                let node = self.get(&format!("/nodes/{name}"))?;
                let found = node["Status"]["State"].as_str().unwrap_or("none");
                ensure!(found == state, "the node is {found}");
                Ok(())
            }
            Await::Quiet => {
                let tasks = self.tasks()?;
                ensure!(tasks.iter().all(Task::is_settled), "{tasks:?}");
                Ok(())
            }
        })
    }

    fn tasks(&self) -> Result<Vec<Task>> {
        let listed = self.get("/tasks")?;
        let tasks = listed.as_array().context("a list of tasks")?;
        Ok(tasks.iter().map(Task::read).collect())
    }

    /// Whether `count` tasks of the service run, and no other is starting.
    ///
    /// # Errors
    /// The API doesn't answer, or there is no such service.
    pub(super) fn runs(&self, service: &str, count: usize) -> Result<bool> {
        Ok(all_run(&self.tasks_of(service)?, count))
    }

    fn tasks_of(&self, service: &str) -> Result<Vec<Task>> {
        let id = self.get(&format!("/services/{service}"))?["ID"].as_str().context("an id")?.to_owned();
        Ok(self.tasks()?.into_iter().filter(|task| task.service == id).collect())
    }

    fn get(&self, path: &str) -> Result<Value> {
        let answer = ready::get_unix(self.socket(FIRST_NODE)?, path)?;
        serde_json::from_str(&answer).with_context(|| format!("parse the answer to {path}"))
    }
}

fn all_run(tasks: &[Task], count: usize) -> bool {
    tasks.iter().filter(|task| task.is("running", "running")).count() == count
        && tasks.iter().all(Task::is_settled)
}

/// The part of a task that the polls need.
#[derive(Debug)]
struct Task {
    service: String,
    state: String,
    desired: String,
    error: String,
}

impl Task {
    fn read(value: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            service: text(&value["ServiceID"]),
            state: text(&value["Status"]["State"]),
            desired: text(&value["DesiredState"]),
            error: text(&value["Status"]["Err"]),
        }
    }

    fn is(&self, state: &str, desired: &str) -> bool {
        self.state == state && self.desired == desired
    }

    fn has_ended(&self) -> bool {
        matches!(self.state.as_str(), "complete" | "shutdown" | "failed" | "rejected" | "orphaned")
    }

    /// Whether it has reached its desired state: it runs, or it has ended.
    fn is_settled(&self) -> bool {
        if self.desired == "running" { self.state == "running" } else { self.has_ended() }
    }
}

//! Secrets and configs of this node's tasks: what control delivered, and the files that tasks see.
//!
//! Purpose: [`Dependencies`] holds the objects in memory to which tasks refer that are to run, and
//! writes a task's files to a tmpfs before its container is made ([`files`]).
//!
//! Invariants: nothing is on a disk; a task's files live until it has ended and outlive the agent,
//! so that a restarted agent needs neither the objects nor a manager; memory is zeroized when no
//! task refers to an object.
//!
//! Left to others: which files a task has and where ([`super::container_spec`]), which objects are
//! sent (control).

pub mod delivered;
pub mod expand;
pub mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_state::dependency::DependencyKind;
use mesh_state::ids::{DependencyId, TaskId};
use mesh_state::spec::ContainerSpec;
use mesh_state::task::{Assignment, TaskState};
use tokio::sync::watch;
use tracing::{error, warn};

use delivered::{Delivered, ObjectData};
use expand::PayloadContext;
use files::{FilePlan, OwnFile, TaskFiles};

/// How long a task waits for a delivery before its status says so.
const PATIENCE: Duration = Duration::from_secs(2);

/// A kind and an id.
type Named = (DependencyKind, DependencyId);

/// Why a task's files can't be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Objects were not delivered yet.
    Waiting(String),
    /// An object is refused, or can't be written.
    Refused(String),
}

/// The objects of this node's tasks.
#[derive(Debug)]
pub struct Dependencies {
    files: TaskFiles,
    held: watch::Sender<BTreeMap<Named, ObjectData>>,
}

impl Dependencies {
    /// No objects, and files below `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { files: TaskFiles::new(root), held: watch::Sender::default() }
    }

    /// The directory of all tasks' files.
    pub(super) fn root(&self) -> &Path {
        self.files.root()
    }

    /// Stores a delivery, if any of `tasks` is to run and refers to it.
    pub(super) fn take<'a>(
        &self,
        delivered: Delivered,
        tasks: impl Iterator<Item = (&'a Assignment, TaskState)>,
    ) {
        let name = (delivered.kind, delivered.id);
        if needed(tasks).contains(&name) {
            self.held.send_modify(|held| drop(held.insert(name, delivered.found)));
        }
    }

    /// Drops the objects that none of `tasks` needs; control delivers them again for the next task
    /// that does.
    pub(super) fn keep_needed<'a>(&self, tasks: impl Iterator<Item = (&'a Assignment, TaskState)>) {
        if self.held.borrow().is_empty() {
            return;
        }
        let needed = needed(tasks);
        self.held.send_if_modified(|held| {
            held.retain(|name, _| needed.contains(name));
            // An object that no task needs has no waiters.
            false
        });
    }

    /// Writes a task's files where its container will find them. Cancel-safe, and repeatable while
    /// there is no container.
    pub(super) async fn place(
        &self,
        task: &TaskId,
        plans: &[FilePlan],
        payload: &PayloadContext,
        own: Option<&OwnFile>,
    ) -> Result<(), Missing> {
        if plans.is_empty() && own.is_none() {
            return Ok(());
        }
        let contents = tokio::time::timeout(PATIENCE, self.delivered(plans)).await;
        let found = contents.map_err(|_| Missing::Waiting(self.awaited(plans)))??;
        let own = own.cloned();
        let contents = expand::contents(plans, &found, payload).map_err(Missing::Refused)?;
        let (files, task, plans) = (self.files.clone(), task.clone(), plans.to_vec());
        let written =
            tokio::task::spawn_blocking(move || files.write(&task, &plans, &contents, own.as_ref())).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => Err(Missing::Refused(mesh_runtime::error_chain(&failure))),
            Err(failure) => Err(Missing::Waiting(format!("write the task's files: {failure}"))),
        }
    }

    /// Removes a task's files. A failure is only logged: the task has ended all the same, and the
    /// next sweep tries again.
    pub(super) async fn remove(&self, task: &TaskId) {
        let (files, owner) = (self.files.clone(), task.clone());
        match tokio::task::spawn_blocking(move || files.remove(&owner)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                warn!(%task, error = mesh_runtime::error_chain(&failure), "can't remove the task's files");
            }
            Err(failure) => error!(%task, error = %failure, "can't remove the task's files"),
        }
    }

    /// Removes the files of all tasks that are not in `living`. Blocks for an instant.
    pub(super) fn sweep(&self, living: &BTreeSet<TaskId>) {
        if let Err(failure) = self.files.sweep(living) {
            warn!(error = mesh_runtime::error_chain(&failure), "can't sweep tasks' files");
        }
    }

    /// The objects of the files, in the files' order, once all of them were delivered.
    async fn delivered(&self, plans: &[FilePlan]) -> Result<Vec<ObjectData>, Missing> {
        let mut held = self.held.subscribe();
        let complete = held.wait_for(|held| plans.iter().all(|plan| held.contains_key(&plan.dependency())));
        let Ok(held) = complete.await else {
            return Err(Missing::Waiting("the agent stops".to_owned()));
        };
        let found = plans.iter().filter_map(|plan| held.get(&plan.dependency()));
        found
            .map(|found| match found {
                ObjectData::Refused(reason) => Err(Missing::Refused(reason.clone())),
                delivered => Ok(delivered.clone()),
            })
            .collect()
    }

    /// The names of the objects that are still to come.
    fn awaited(&self, plans: &[FilePlan]) -> String {
        let held = self.held.borrow();
        let missing = plans.iter().filter(|plan| !held.contains_key(&plan.dependency()));
        let names: BTreeSet<String> = missing.map(|plan| format!("{} {}", plan.kind, plan.name)).collect();
        let names: Vec<String> = names.into_iter().collect();
        format!("waits for a manager to send {}", names.join(", "))
    }
}

fn needed<'a>(tasks: impl Iterator<Item = (&'a Assignment, TaskState)>) -> BTreeSet<Named> {
    let to_run = tasks.filter(|(_, desired)| *desired <= TaskState::Running);
    let containers = to_run.filter_map(|(assignment, _)| assignment.spec.container_spec.as_ref());
    containers.flat_map(ContainerSpec::references).map(|it| (it.kind, it.id.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::delivered::PrivateBytes;
    use super::*;
    use crate::task::worker::tests::assignment;

    fn referring(id: &str, secret: &str) -> Assignment {
        let mut assignment = assignment(id);
        let container = assignment.spec.container_spec.get_or_insert_default();
        container.secrets = vec![mesh_state::spec::SecretReference {
            secret_id: secret.into(),
            secret_name: secret.to_owned(),
            ..Default::default()
        }];
        assignment
    }

    fn delivery(id: &str, found: ObjectData) -> Delivered {
        Delivered { kind: DependencyKind::Secret, id: id.into(), found }
    }

    fn data(text: &str) -> ObjectData {
        ObjectData::Data(PrivateBytes::new(text.as_bytes().to_vec()))
    }

    fn plan(id: &str) -> FilePlan {
        FilePlan {
            kind: DependencyKind::Secret,
            id: id.into(),
            name: id.to_owned(),
            source: PathBuf::new(),
            target: format!("/run/secrets/{id}"),
            owner: (0, 0),
            permissions: 0o444,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_waits_for_its_delivery_and_says_for_which() {
        let dependencies = Dependencies::new("/nowhere".into());
        let wanting = referring("t", "s");
        let tasks = || std::iter::once((&wanting, TaskState::Running));
        let plans = [plan("s")];
        let contents = dependencies.delivered(&plans);
        tokio::pin!(contents);
        assert!(futures::poll!(&mut contents).is_pending(), "nothing was delivered");
        dependencies.take(delivery("other", data("x")), tasks());
        assert!(futures::poll!(&mut contents).is_pending(), "something else was delivered");
        let placed = dependencies.place(&"t".into(), &[plan("s")], &PayloadContext::default(), None).await;
        assert_eq!(placed, Err(Missing::Waiting("waits for a manager to send secret s".to_owned())));
        dependencies.take(delivery("s", data("x")), tasks());
        assert_eq!(contents.await, Ok(vec![data("x")]));
    }

    #[tokio::test]
    async fn a_refusal_is_passed_on() {
        let dependencies = Dependencies::new("/nowhere".into());
        let wanting = referring("t", "s");
        let refusal = ObjectData::Refused("secret s was removed".to_owned());
        dependencies.take(delivery("s", refusal), std::iter::once((&wanting, TaskState::Running)));
        let refused = dependencies.place(&"t".into(), &[plan("s")], &PayloadContext::default(), None).await;
        assert_eq!(refused, Err(Missing::Refused("secret s was removed".to_owned())));
    }

    #[test]
    fn memory_holds_only_what_a_task_needs_that_is_to_run() {
        let dependencies = Dependencies::new("/nowhere".into());
        let wanting = referring("t", "s");
        let held = || dependencies.held.borrow().len();
        dependencies.take(delivery("s", data("x")), std::iter::once((&wanting, TaskState::Shutdown)));
        assert_eq!(held(), 0, "its task was called off");
        dependencies.take(delivery("s", data("x")), std::iter::once((&wanting, TaskState::Ready)));
        assert_eq!(held(), 1);
        dependencies.keep_needed(std::iter::once((&wanting, TaskState::Running)));
        assert_eq!(held(), 1, "its task is to run");
        dependencies.keep_needed(std::iter::once((&wanting, TaskState::Shutdown)));
        assert_eq!(held(), 0, "no task needs it any more");
    }
}

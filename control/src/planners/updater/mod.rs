//! The updater: begins, continues, judges and ends rolling updates. Slots whose tasks no longer
//! match their service's spec get new tasks, a few at a time.
//!
//! It decides from each slot's tasks, old and new ([`progress`]), and from the service's update
//! settings ([`settings`]). A slot waits, is underway, or is done. As many slots may be underway at
//! a time as `parallelism` says, and a slot keeps its place for the update's delay after its new
//! task serves. A task that dies before it ran for the monitor's time is a failure, and too many
//! failures pause the update or roll it back ([`rollback`]).
//!
//! "Serves" means more than "runs": every node that is heard has acknowledged a mesh table with the
//! new task. Only then may the old task of a start-first update go, or the next slot begin;
//! otherwise a node would forward to a task that has stopped. A node that acknowledges nothing is
//! waited for ten seconds at most, so that one hung agent can't stop every update.
//!
//! It can't see whether the new version answers well, only that its container runs and is healthy
//! if it has a health check. So a broken version without a health check rolls over the whole
//! service; `monitor` catches those that exit. It can't see the user's intention either: a spec
//! that is changed in the middle of an update makes the half-done slots outdated once more, and
//! they are replaced again.
//!
//! Invariants: where an update stands is read from the tasks and from [`UpdateStatus`] alone, so a
//! new leader goes on where the old one stopped; every batch rewrites the service under a compare,
//! so an update that races with its user begins anew.
//!
//! Left to others: the number of slots (`replicated`, `global`), tasks that die meanwhile
//! (`restart`), the moment at which a prepared task may run (`promote`).

pub mod progress;
pub mod rollback;
pub mod settings;

use std::time::Duration;

use mesh_state::Timestamp;
use mesh_state::ids::TaskId;
use mesh_state::service::{Service, UpdateState, UpdateStatus};
use mesh_state::spec::{FailureAction, UpdateOrder};
use mesh_state::task::TaskState;
use rand::RngCore;

use self::progress::{Phase, SlotStep};
use self::settings::Settings;
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::plan::{Action, Plan};
use crate::slots;
use crate::slots::create::{Start, TaskMaker, stopped};
use crate::slots::eligible::{Suits, takes_new};
use crate::slots::outdated::OutdatedTasks;
use crate::slots::restart_policy::after;

/// Takes every update one step further.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let mut maker = TaskMaker::new(now, snapshot, ids);
    for service in snapshot.services.values() {
        if is_concerned(snapshot, &service.value) {
            Roll { now, snapshot, service, settings: Settings::of(&service.value) }
                .step(&mut maker, &mut plan);
        }
    }
    maker.finish(&mut plan);
    plan
}

/// Whether a service has an update in progress, or tasks of an older spec.
fn is_concerned(snapshot: &ClusterSnapshot, service: &Service) -> bool {
    // A job that is changed is executed again, not rolled.
    !service.spec.mode.is_job() && is_rolled(snapshot, service)
}

fn is_rolled(snapshot: &ClusterSnapshot, service: &Service) -> bool {
    goes_on(service).is_some() || {
        let outdated = OutdatedTasks::new(snapshot, service);
        snapshot
            .tasks_of(&service.id)
            .any(|task| task.desired_state != TaskState::Remove && outdated.contains(task))
    }
}

/// The status of an update in progress.
fn goes_on(service: &Service) -> Option<&UpdateStatus> {
    service.update_status.as_ref().filter(|status| status.state.goes_on())
}

struct Roll<'a> {
    now: Timestamp,
    snapshot: &'a ClusterSnapshot,
    service: &'a Stored<Service>,
    settings: Settings,
}

impl Roll<'_> {
    fn step(&self, maker: &mut TaskMaker<'_>, plan: &mut Plan) {
        let steps = progress::steps(self.now, self.snapshot, &self.service.value, &self.settings);
        let Some(status) = goes_on(self.service).cloned().or_else(|| self.begun(&steps)) else {
            self.stop_superseded(&steps, plan);
            return;
        };
        if let Some(failed) = self.too_many_failures(&steps) {
            self.fail(&status, failed, plan);
            return;
        }
        self.stop_superseded(&steps, plan);
        self.begin_batch(&steps, &status, maker, plan);
        self.end(&steps, &status, plan);
    }

    /// The status of an update that begins now, if one does; none begins while a failed one is
    /// paused.
    fn begun(&self, steps: &[SlotStep<'_>]) -> Option<UpdateStatus> {
        let waits =
            self.service.update_status.as_ref().is_some_and(|status| {
                matches!(status.state, UpdateState::Paused | UpdateState::RollbackPaused)
            });
        let dirty = steps.iter().any(|step| matches!(step.phase, Phase::Dirty { .. }));
        (dirty && !waits).then(|| UpdateStatus::begun(self.now))
    }

    fn write(&self, status: UpdateStatus, plan: &mut Plan) {
        plan.reasons.push(format!("service {}: {}", self.service.spec.name, status.message));
        let service = Service { update_status: Some(status), ..self.service.value.clone() };
        plan.actions.push(Action::UpdateService { service, expected: self.service.mod_revision });
    }

    /// The last of the failed tasks, if there are more of them than the settings allow.
    fn too_many_failures<'s>(&self, steps: &[SlotStep<'s>]) -> Option<&'s TaskId> {
        let mut failures: Vec<(Timestamp, &TaskId)> = steps.iter().filter_map(|step| step.failed).collect();
        failures.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "slots are far below 2^23")]
        let ratio = failures.len() as f32 / steps.len().max(1) as f32;
        let acts =
            self.settings.on_failure != FailureAction::Continue && ratio > self.settings.failure_ratio_max;
        failures.last().filter(|_| acts).map(|(_, task)| *task)
    }

    fn fail(&self, status: &UpdateStatus, failed: &TaskId, plan: &mut Plan) {
        let cause = format!("due to failure or early termination of task {failed}");
        if status.state == UpdateState::RollbackStarted {
            // A rollback isn't rolled back.
            let message = format!("rollback paused {cause}");
            self.write(UpdateStatus { state: UpdateState::RollbackPaused, message, ..status.clone() }, plan);
            return;
        }
        if self.settings.on_failure == FailureAction::Rollback {
            let message = format!("update rolled back {cause}");
            let rolled_back = UpdateStatus {
                state: UpdateState::RollbackStarted,
                message,
                batch_at: None,
                ..status.clone()
            };
            match rollback::plan(self.now, self.snapshot, self.service, rolled_back, plan) {
                Ok(()) => return,
                Err(error) => plan
                    .reasons
                    .push(format!("service {} can't be rolled back: {error}", self.service.spec.name)),
            }
        }
        let message = format!("update paused {cause}");
        self.write(UpdateStatus { state: UpdateState::Paused, message, ..status.clone() }, plan);
    }

    fn stop_superseded(&self, steps: &[SlotStep<'_>], plan: &mut Plan) {
        for step in steps {
            if let Phase::Superseded { old } = &step.phase {
                plan.reasons.push(format!("{}: the old task stops", self.service.task_name(step.slot)));
                plan.actions.extend(old.iter().map(|task| stopped(self.now, task, TaskState::Shutdown)));
            }
        }
    }

    /// Begins as many outdated slots as there are free places, first those whose task doesn't run.
    fn begin_batch(
        &self,
        steps: &[SlotStep<'_>],
        status: &UpdateStatus,
        maker: &mut TaskMaker<'_>,
        plan: &mut Plan,
    ) {
        let occupied = steps.iter().filter(|step| self.occupies(step, plan)).count();
        let mut waiting: Vec<(bool, &SlotStep<'_>)> = steps
            .iter()
            .filter_map(|step| match step.phase {
                Phase::Dirty { runs } => Some((runs, step)),
                _ => None,
            })
            .collect();
        waiting.sort_by_key(|(runs, step)| (*runs, step.slot));
        waiting.truncate(self.settings.parallelism.saturating_sub(occupied));
        if waiting.is_empty() {
            return;
        }
        let mut batch = Plan::default();
        for (_, step) in waiting {
            self.replace(step, maker, &mut batch);
        }
        if !batch.actions.is_empty() {
            self.write(UpdateStatus { batch_at: Some(self.now), ..status.clone() }, plan);
        }
        plan.actions.append(&mut batch.actions);
        plan.reasons.append(&mut batch.reasons);
    }

    /// Whether a slot occupies a place: while it is underway, and for the delay after that.
    fn occupies(&self, step: &SlotStep<'_>, plan: &mut Plan) -> bool {
        match &step.phase {
            Phase::Dirty { .. } => false,
            Phase::Superseded { .. } => true,
            Phase::Underway { until } => {
                if let Some(moment) = until {
                    plan.wake_by(*moment);
                }
                true
            }
            Phase::Done { at } => self.is_ahead(*at, self.settings.delay, plan),
        }
    }

    /// Whether `moment` (which is not in the future) plus `span` is still to come; if so, asks for
    /// a pass at that time.
    fn is_ahead(&self, moment: Timestamp, span: Duration, plan: &mut Plan) -> bool {
        let end = after(moment.min(self.now), span).filter(|end| *end > self.now);
        if let Some(moment) = end {
            plan.wake_by(moment);
        }
        end.is_some()
    }

    fn replace(&self, step: &SlotStep<'_>, maker: &mut TaskMaker<'_>, plan: &mut Plan) {
        let old: Vec<_> = step.tasks.iter().filter(|task| slots::is_wanted(task)).collect();
        let (start, stays) = match self.settings.order {
            // One old task goes on in the meantime: the one that serves.
            UpdateOrder::StartFirst => (Start::Now, slots::most_useful(self.snapshot, &step.tasks)),
            UpdateOrder::StopFirst => (slots::start(self.now, self.snapshot, &step.tasks, None), None),
        };
        let mut created = Plan::default();
        if maker.create(&mut created, &self.service.value, step.slot, start) {
            let stops = old.into_iter().filter(|task| stays.is_none_or(|stays| stays.id != task.id));
            plan.actions.extend(stops.map(|task| stopped(self.now, task, TaskState::Shutdown)));
        }
        plan.actions.append(&mut created.actions);
        plan.reasons.append(&mut created.reasons);
    }

    /// Whether the service was updated before it had any task, and has none yet: its first tasks
    /// belong to the update.
    fn lacks_its_first_tasks(&self) -> bool {
        let service = &self.service.value;
        if self.snapshot.tasks_of(&service.id).next().is_some() {
            return false;
        }
        service.spec.mode.replicas().map_or_else(
            || {
                let suits = Suits::new(&service.spec.task_template);
                self.snapshot.nodes.values().any(|node| takes_new(self.snapshot, node, &suits))
            },
            |replicas| replicas > 0,
        )
    }

    /// Ends the update once every slot is done and the last one was monitored for long enough.
    fn end(&self, steps: &[SlotStep<'_>], status: &UpdateStatus, plan: &mut Plan) {
        let watched = if self.settings.on_failure == FailureAction::Continue {
            Duration::ZERO
        } else {
            self.settings.monitor
        };
        let mut over = !self.lacks_its_first_tasks();
        for step in steps {
            over &= match step.phase {
                Phase::Done { at } => !self.is_ahead(at, watched, plan),
                _ => false,
            };
        }
        if !over {
            return;
        }
        let (state, message) = if status.state == UpdateState::RollbackStarted {
            (UpdateState::RollbackCompleted, "rollback completed")
        } else {
            (UpdateState::Completed, "update completed")
        };
        let message = message.to_owned();
        self.write(UpdateStatus { state, message, completed_at: Some(self.now), ..status.clone() }, plan);
    }
}

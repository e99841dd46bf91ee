//! Measures the loads of this node's tasks once a second: CPU time against its limit, and the load
//! that a task itself reports over HTTP.
//!
//! Purpose: the levels of this node's backends for the selection by load, here and on other nodes.
//!
//! Invariants: a burst of work shows within two seconds; a task of which nothing can be read has no
//! level. Nothing here waits for managers.
//!
//! Left to others: keeping levels ([`crate::lb::loads`]), the kernel's table ([`crate::datapath`]),
//! sending them to managers ([`crate::control_link`]).

mod cgroup;
mod http;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;
use mesh_state::ids::{BackendId, TaskId};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::cgroup::CpuAccount;
use super::network::RunningTask;
use crate::datapath::Datapath;
use crate::lb::loads::{LOAD_MAX, Loads};
use crate::view::NodeView;
use mesh_runtime::error_chain;

const PERIOD: Duration = Duration::from_secs(1);
/// The time constant of smoothing: after it, a change of CPU usage shows by two thirds.
const SMOOTHING: Duration = Duration::from_secs(1);
/// The most tasks that are asked over HTTP at once.
const ASKED_AT_ONCE: usize = 64;

/// The tasks whose load is measured.
#[derive(Debug, Default)]
pub struct LoadMeter {
    tasks: Mutex<BTreeMap<TaskId, Gauge>>,
}

/// The CPU usage of one task.
#[derive(Debug)]
struct Gauge {
    pid: u32,
    account: Option<CpuAccount>,
    last: Option<(Instant, Duration)>,
    ratio: Option<f64>,
}

impl LoadMeter {
    /// Measures a task from now on. Repeating it is harmless.
    pub fn started(&self, task: &RunningTask) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.get(&task.task_id).is_some_and(|gauge| gauge.pid == task.pid) {
            return;
        }
        let account = CpuAccount::of_process(task.pid);
        tracing::debug!(task = %task.task_id, ?account, "measure a task's load");
        tasks.insert(task.task_id.clone(), Gauge { pid: task.pid, account, last: None, ratio: None });
    }

    /// Stops measuring a task.
    pub fn stopped(&self, task: &TaskId) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).remove(task);
    }

    /// Measures the smoothed CPU usage of every task against its limit.
    fn measure(&self, now: Instant) -> BTreeMap<TaskId, f64> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let measured = tasks.iter_mut().filter_map(|(id, gauge)| {
            let account = gauge.account.as_ref()?;
            gauge.take(now, account.used()?, account.limit());
            Some((id.clone(), gauge.ratio?))
        });
        measured.collect()
    }

    /// Measures until `shutdown`: levels go to `loads` and, if there is one, to the kernel data
    /// plane.
    pub async fn run(
        self: Arc<Self>,
        views: watch::Receiver<Arc<NodeView>>,
        loads: Arc<Loads>,
        datapath: Option<Arc<Datapath>>,
        shutdown: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let meter = Arc::clone(&self);
            let measured = tokio::task::spawn_blocking(move || meter.measure(Instant::now())).await;
            let view = views.borrow().clone();
            let reported = ask_tasks(&view).await;
            let levels = levels(&view, &measured.unwrap_or_default(), &reported);
            loads.set_own(&levels, Instant::now());
            let known: BTreeSet<BackendId> = view.weighted().map(|backend| backend.id).collect();
            loads.retain(|backend| known.contains(&backend));
            let Some(datapath) = datapath.clone() else { continue };
            let noted = tokio::task::spawn_blocking(move || datapath.note_own_loads(&levels)).await;
            if let Ok(Err(error)) = noted {
                tracing::warn!(
                    error = error_chain(&error),
                    "can't write the loads of this node's tasks to the kernel's table"
                );
            }
        }
    }
}

impl Gauge {
    fn take(&mut self, now: Instant, used: Duration, limit: f64) {
        let last = self.last.replace((now, used));
        let Some((then, before)) = last else { return };
        let time = now.saturating_duration_since(then).as_secs_f64();
        if time <= 0.0 || limit <= 0.0 {
            return;
        }
        let ratio = used.saturating_sub(before).as_secs_f64() / time / limit;
        let weight = 1.0 - (-time / SMOOTHING.as_secs_f64()).exp();
        self.ratio = Some(self.ratio.map_or(ratio, |present| present + weight * (ratio - present)));
    }
}

/// Asks the tasks of services that request it for their load.
async fn ask_tasks(view: &NodeView) -> BTreeMap<TaskId, f64> {
    let mut wanted: BTreeMap<TaskId, (IpAddr, u16, String)> = BTreeMap::new();
    for backend in view.backends.values().filter(|backend| view.is_local(backend)) {
        let service = view.services.get(&backend.service_id);
        if let Some(load_http) = service.and_then(|service| service.lb.load_http.as_ref()) {
            let question = (backend.address, load_http.port, load_http.path.clone());
            wanted.insert(backend.task_id.clone(), question);
        }
    }
    stream::iter(wanted)
        // No async closure: rustc 1.95 crashes on this one in incremental builds
        // (`evaluate_obligation`).
        .map(|(task, (address, port, path))| async move {
            let answer = http::ask(SocketAddr::new(address, port), &path).await;
            if let Err(error) = &answer {
                tracing::debug!(%task, error = error_chain(&error), "a task doesn't report its load");
            }
            answer.ok().map(|ratio| (task, ratio))
        })
        .buffer_unordered(ASKED_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// The levels of this node's backends: the higher one of CPU usage and reported load.
fn levels(
    view: &NodeView,
    measured: &BTreeMap<TaskId, f64>,
    reported: &BTreeMap<TaskId, f64>,
) -> Vec<(BackendId, u8)> {
    let published = view.backends.values().filter(|backend| view.is_local(backend));
    let published = published.map(|backend| (backend.task_id.clone(), backend.id));
    let members = view.members.values().filter(|member| member.node_id == view.node_id);
    let of_virtual_ips = members.flat_map(|member| {
        let ids = member.attachments.iter().filter_map(|attachment| attachment.backend_id);
        ids.map(|id| (TaskId::from(member.id.as_str()), id))
    });
    published
        .chain(of_virtual_ips)
        .filter_map(|(task, id)| {
            let figures = [measured, reported].into_iter().filter_map(|figures| figures.get(&task));
            let worst = figures.copied().reduce(f64::max)?;
            Some((id, level(worst)))
        })
        .collect()
}

/// Scales a ratio to 1 (idle) to [`LOAD_MAX`] (saturated).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 126")]
fn level(ratio: f64) -> u8 {
    let steps = f64::from(LOAD_MAX - 1);
    1 + (ratio.clamp(0.0, 1.0) * steps).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_go_from_idle_to_saturated() {
        assert_eq!([-1.0, 0.0, 0.5, 1.0, 7.0].map(level), [1, 1, 64, 127, 127]);
    }

    #[test]
    fn a_burst_shows_within_two_seconds_and_is_forgotten_as_fast() {
        let mut gauge = Gauge { pid: 1, account: None, last: None, ratio: None };
        let start = Instant::now();
        let mut used = Duration::ZERO;
        let mut seen = Vec::new();
        for (second, busy) in [0, 0, 1, 1, 0, 0, 0].into_iter().enumerate() {
            used += Duration::from_secs(busy);
            let now = start + Duration::from_secs(second as u64);
            gauge.take(now, used, 2.0);
            seen.push(gauge.ratio.map(level));
        }
        let expected = [None, Some(1), Some(41), Some(55), Some(21), Some(8), Some(4)];
        assert_eq!(seen, expected, "half of two CPUs for two seconds");
    }
}

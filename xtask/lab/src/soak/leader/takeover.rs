//! How long it takes after the leader's death until another manager leads, and until what a client
//! writes runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::cluster::{Docker, eventually};
use crate::soak::managers::api::{Api, is_without_leader};

/// What the names of the services that are written begin with.
const PROBE: &str = "probe";
/// The pause between two writes.
const WRITE_PAUSE: Duration = Duration::from_millis(500);
/// The pause between two looks at a service's tasks.
const PAUSE: Duration = Duration::from_millis(50);
/// How long both are waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// The times since the leader's death.
#[derive(Debug, Clone, Copy)]
pub(super) struct Takeover {
    /// Until another node is shown as the leader.
    pub(super) led: Duration,
    /// Until a write was taken.
    pub(super) taken: Duration,
    /// Until the task that follows from it ran.
    pub(super) runs: Duration,
    /// How often the write was refused before.
    pub(super) refused: usize,
}

impl Takeover {
    /// Measures from `since` on, when the machine of `leader` dies, by a surviving manager's API.
    ///
    /// # Errors
    /// Nobody takes over, or a refusal is not in Swarm's words.
    pub(super) fn measure(api: &Api, leader: &str, since: Instant) -> Result<Self> {
        let (led, written) = thread::scope(|scope| {
            let led = scope.spawn(|| leads(api, leader, since));
            let written = write(api, since);
            (led.join().unwrap_or_else(|_| Err(anyhow!("the watch on the leader panicked"))), written)
        });
        let (taken, runs, refused) = written.context("a write after the leader's death")?;
        Ok(Self { led: led?, taken, runs, refused })
    }
}

/// Removes the services of writes that were refused and made all the same.
///
/// # Errors
/// docker fails.
pub(super) fn clear(docker: &Docker) -> Result<()> {
    let left = docker.run(&["service", "ls", "--quiet", "--filter", &format!("name={PROBE}")])?;
    left.lines().try_for_each(|id| docker.run(&["service", "rm", id]).map(drop))
}

fn leads(api: &Api, dead: &str, since: Instant) -> Result<Duration> {
    eventually("another leader", PATIENCE, || {
        let leader = api.leader()?;
        ensure!(leader.as_ref().is_some_and(|name| name != dead), "the leader: {leader:?}");
        Ok(since.elapsed())
    })
}

/// How long a write and its task's start take while nothing is broken: the floor of
/// [`Takeover::runs`].
///
/// # Errors
/// The write is refused, or no task runs.
pub(super) fn floor(api: &Api) -> Result<Duration> {
    let progress = Progress::default();
    let written = write_one(api, &format!("{PROBE}-floor"), Instant::now(), &progress)?;
    written.runs.context("the write was refused")
}

/// What the writes have come to, all together.
#[derive(Debug, Default)]
struct Progress {
    /// Whether a write was taken.
    taken: AtomicBool,
    /// Whether a task runs.
    runs: AtomicBool,
}

/// Writes again and again until a write is taken, each time another service, without waiting for
/// the answer of the writes before: one that etcd's dead leader swallowed is answered only after a
/// deadline. Further writes would only make the tasks' start slower. Returns when the first one was
/// taken and when the first task ran, and the number of refusals.
fn write(api: &Api, since: Instant) -> Result<(Duration, Duration, usize)> {
    let progress = Progress::default();
    let written: Vec<Written> = thread::scope(|scope| {
        let mut writes = Vec::new();
        while !progress.taken.load(Ordering::Relaxed) && since.elapsed() < PATIENCE {
            let (name, progress) = (format!("{PROBE}{}", writes.len()), &progress);
            writes.push(scope.spawn(move || write_one(api, &name, since, progress)));
            thread::sleep(WRITE_PAUSE);
        }
        let joined = writes.into_iter().map(|one| one.join().map_err(|_| anyhow!("a write panicked"))?);
        joined.collect::<Result<_>>()
    })?;
    let taken = written.iter().filter_map(|one| one.taken).min().context("no write was taken")?;
    let runs = written.iter().filter_map(|one| one.runs).min().context("no task ran")?;
    Ok((taken, runs, written.iter().filter(|one| one.taken.is_none()).count()))
}

/// When a write was taken and its task ran; `None` where it was refused, or another one's task ran
/// first.
struct Written {
    taken: Option<Duration>,
    runs: Option<Duration>,
}

fn write_one(api: &Api, name: &str, since: Instant, progress: &Progress) -> Result<Written> {
    let answer = api.create(name)?;
    if answer.status != 201 {
        is_without_leader(&answer)?;
        return Ok(Written { taken: None, runs: None });
    }
    progress.taken.store(true, Ordering::Relaxed);
    let mut written = Written { taken: Some(since.elapsed()), runs: None };
    while !progress.runs.load(Ordering::Relaxed) {
        if api.runs(name)? {
            written.runs = Some(since.elapsed());
            progress.runs.store(true, Ordering::Relaxed);
        }
        ensure!(since.elapsed() < PATIENCE, "no task of {name} runs");
        thread::sleep(PAUSE);
    }
    api.remove(name)?;
    Ok(written)
}

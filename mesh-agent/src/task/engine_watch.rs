//! Loops beside the worker: hearing what happens to containers, keeping the network `mesh`, and noticing that the engine is gone.
//!
//! Invariant: whenever the event stream begins again the worker is told so, for anything may have happened meanwhile.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use mesh_state::ids::TaskId;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::bridge::{BridgePlan, BridgeStep, decide};
use super::driver::BridgeState;
use super::runtime::{Runtime, RuntimeError};
use crate::control_link::backoff::Backoff;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(3);
/// How often the engine is asked for a sign of life.
const PING_PERIOD: Duration = Duration::from_secs(1);
/// So many failures in a row mean that it is away: one that is only slow answers in the end.
const PING_FAILURES: u32 = 3;
/// How often the network is looked at without cause.
const BRIDGE_PERIOD: Duration = Duration::from_secs(30);

/// What was heard of the engine.
#[derive(Debug)]
pub(super) enum Heard {
    /// Something happened to a task's container.
    Task(TaskId),
    /// The event stream begins, or begins again.
    Resumed,
}

/// Follows the engine's events until the worker is gone.
pub(super) async fn follow_events(runtime: Arc<dyn Runtime>, heard: mpsc::Sender<Heard>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    loop {
        let mut events = runtime.events();
        if heard.send(Heard::Resumed).await.is_err() {
            return;
        }
        while let Some(event) = events.next().await {
            match event {
                Ok(task) => {
                    backoff.reset();
                    if heard.send(Heard::Task(task)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    warn!(%error, "follow the engine's events");
                    break;
                }
            }
        }
        let wait = backoff.next(&mut rand::rng());
        tokio::time::sleep(wait).await;
    }
}

/// Tells whether the engine is away, until nobody listens.
pub async fn watch_engine(runtime: Arc<dyn Runtime>, away: watch::Sender<bool>) {
    let mut failures = 0;
    while !away.is_closed() {
        failures = match runtime.ping().await {
            Ok(()) => 0,
            Err(_) => failures + 1,
        };
        let is_away = failures >= PING_FAILURES;
        if away.send_if_modified(|present| std::mem::replace(present, is_away) != is_away) {
            warn!(is_away, "the Docker engine");
        }
        tokio::time::sleep(PING_PERIOD).await;
    }
}

/// Keeps the network as `plan` wants it, and tells whether it is there.
pub(super) async fn keep_bridge(
    runtime: Arc<dyn Runtime>,
    mut plan: watch::Receiver<BridgePlan>,
    state: watch::Sender<BridgeState>,
) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    let mut removals = None;
    loop {
        // Before the look at the network, so that no removal falls in between.
        let removed = removals.get_or_insert_with(|| runtime.bridge_removals());
        let wanted = *plan.borrow_and_update();
        let (next, wait) = match ensure(&*runtime, &wanted).await {
            Ok(BridgeState::Ready) => {
                backoff.reset();
                (BridgeState::Ready, BRIDGE_PERIOD)
            }
            Ok(not_yet) => (not_yet, backoff.next(&mut rand::rng())),
            Err(error) => (
                BridgeState::NotYet(format!("make the Docker network mesh: {error}")),
                backoff.next(&mut rand::rng()),
            ),
        };
        state.send_if_modified(|current| {
            let changed = *current != next;
            if changed {
                info!(state = ?next, "Docker network mesh");
                *current = next;
            }
            changed
        });
        let pause = tokio::time::sleep(wait);
        tokio::select! {
            changed = plan.changed() => if changed.is_err() { return },
            Some(Ok(())) = removed.next() => info!("the Docker network mesh was removed"),
            // The stream may have ended meanwhile, with the engine.
            () = pause => removals = None,
        }
        if state.is_closed() {
            return;
        }
    }
}

async fn ensure(runtime: &dyn Runtime, wanted: &BridgePlan) -> Result<BridgeState, RuntimeError> {
    let found = runtime.bridge().await?;
    match decide(wanted, found.as_ref()) {
        BridgeStep::Keep => {}
        BridgeStep::Create => runtime.create_bridge(wanted).await?,
        BridgeStep::Recreate => {
            runtime.remove_bridge().await?;
            runtime.create_bridge(wanted).await?;
        }
        BridgeStep::Wait(reason) => return Ok(BridgeState::NotYet(reason)),
    }
    Ok(BridgeState::Ready)
}

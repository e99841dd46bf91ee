//! Loops beside the worker: follow the engine's events, maintain the network `mesh`, and detect
//! that the engine doesn't answer.
//!
//! Invariant: whenever the event stream begins again the worker learns of it, for anything may have
//! happened meanwhile.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use mesh_state::ids::TaskId;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::bridge::{BridgePlan, NETWORK_NAME, decide, gateway_of};
use super::driver::BridgeState;
use super::networks::NetworkStep;
use super::runtime::{Runtime, RuntimeError};
use mesh_runtime::backoff::Backoff;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(3);
/// How often the engine is pinged.
const PING_PERIOD: Duration = Duration::from_secs(1);
/// An engine that doesn't answer a ping within this time hangs: answering needs no work.
const PING_DEADLINE: Duration = Duration::from_secs(3);
/// This many failed pings in a row mean that the engine is away; one that is only slow answers one
/// of them.
const PING_FAILURES: u32 = 3;
/// How long making the network must fail before the node takes no tasks: those that wait there are
/// rejected and placed elsewhere.
const UNFIT_AFTER: Duration = Duration::from_secs(10);
/// How often the network is inspected without an event.
const BRIDGE_PERIOD: Duration = Duration::from_secs(30);

/// A message of the engine's event stream.
#[derive(Debug)]
pub(super) enum EngineEvent {
    /// Something happened to a task's container.
    Task(TaskId),
    /// A task's container got this address on the network `mesh`; its process doesn't run yet.
    Address(TaskId, Ipv4Addr),
    /// The event stream begins, or begins again.
    Resumed,
}

/// Follows the engine's events until the worker is gone.
pub(super) async fn follow_events(runtime: Arc<dyn Runtime>, heard: mpsc::Sender<EngineEvent>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    loop {
        let mut events = runtime.events();
        if heard.send(EngineEvent::Resumed).await.is_err() {
            return;
        }
        while let Some(event) = events.next().await {
            match event {
                Ok(task) => {
                    backoff.reset();
                    if heard.send(EngineEvent::Task(task)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    warn!(
                        error = mesh_runtime::error_chain(&error),
                        "can't follow the engine's events; will try again"
                    );
                    break;
                }
            }
        }
        let wait = backoff.pause(&mut rand::rng());
        tokio::time::sleep(wait).await;
    }
}

/// Follows the containers that get an address on the network `mesh`, until the worker is gone. What
/// is missed while the engine is away is seen when the containers are inspected.
pub(super) async fn follow_joins(runtime: Arc<dyn Runtime>, heard: mpsc::Sender<EngineEvent>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    while !heard.is_closed() {
        let mut joins = runtime.bridge_joins();
        while let Some(Ok((task, address))) = joins.next().await {
            backoff.reset();
            if heard.send(EngineEvent::Address(task, address)).await.is_err() {
                return;
            }
        }
        let wait = backoff.pause(&mut rand::rng());
        tokio::time::sleep(wait).await;
    }
}

/// Publishes whether the engine is away, until nobody listens.
pub async fn watch_engine(runtime: Arc<dyn Runtime>, away: watch::Sender<bool>) {
    let mut failures = 0;
    while !away.is_closed() {
        let failure = match tokio::time::timeout(PING_DEADLINE, runtime.ping()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer to a ping within {PING_DEADLINE:?}: it hangs")),
        };
        failures = if failure.is_some() { failures + 1 } else { 0 };
        let is_away = failures >= PING_FAILURES;
        if away.send_if_modified(|present| std::mem::replace(present, is_away) != is_away) {
            warn!(is_away, reason = failure, "the Docker engine");
        }
        tokio::time::sleep(PING_PERIOD).await;
    }
}

/// Maintains the network as `plan` describes it, and publishes whether it exists, and whether the
/// node is unfit without it.
pub(super) async fn keep_bridge(
    runtime: Arc<dyn Runtime>,
    mut plan: watch::Receiver<BridgePlan>,
    state: watch::Sender<BridgeState>,
    unfit: watch::Sender<Option<String>>,
) {
    let mut failing_since: Option<Instant> = None;
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    let mut removals = None;
    loop {
        // Subscribed before the network is inspected, so that no removal is missed in between.
        let removed = removals.get_or_insert_with(|| runtime.bridge_removals());
        let wanted = *plan.borrow_and_update();
        let trial = ensure(&*runtime, &wanted).await;
        if matches!(trial, Trial::Failed(_)) {
            failing_since.get_or_insert_with(Instant::now);
        } else {
            failing_since = None;
        }
        let next = judge(trial, failing_since.map(|since| since.elapsed()).unwrap_or_default());
        let wait = if matches!(next, BridgeState::Ready { .. }) {
            backoff.reset();
            BRIDGE_PERIOD
        } else {
            backoff.pause(&mut rand::rng())
        };
        tell_unfit(&unfit, &next);
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

/// The result of an attempt to make the network.
enum Trial {
    /// The network exists; the node's own address on it.
    There { address: Option<Ipv4Addr> },
    /// It is too early: nothing is wrong with this node.
    Early(String),
    /// The network can't be made here.
    Failed(String),
}

async fn ensure(runtime: &dyn Runtime, wanted: &BridgePlan) -> Trial {
    match attempt(runtime, wanted).await {
        Ok(Attempt::Made(address)) => Trial::There { address },
        Ok(Attempt::Waits(reason)) if wanted.subnet.is_none() => Trial::Early(reason),
        Ok(Attempt::Waits(reason)) => Trial::Failed(reason),
        // [`watch_engine`] reports that the engine is away; its tasks wait for it.
        Err(error @ RuntimeError::Unavailable(_)) => Trial::Early(in_words(&error)),
        Err(error) => Trial::Failed(in_words(&error)),
    }
}

fn in_words(error: &RuntimeError) -> String {
    format!("make the Docker network mesh: {error}")
}

/// What came of an attempt that the engine answered.
enum Attempt {
    /// The network is there; the node's own address on it.
    Made(Option<Ipv4Addr>),
    /// It must wait, for this reason.
    Waits(String),
}

/// Makes the network.
async fn attempt(runtime: &dyn Runtime, wanted: &BridgePlan) -> Result<Attempt, RuntimeError> {
    let found = match runtime.network(NETWORK_NAME).await? {
        Some(found) => {
            let users = runtime.network_users(&found.id).await?;
            Some((found, users))
        }
        None => None,
    };
    match (decide(wanted, found.as_ref()), wanted.network()) {
        (NetworkStep::Wait(reason), _) => return Ok(Attempt::Waits(reason)),
        (NetworkStep::Create, Some(plan)) => runtime.create_network(&plan).await?,
        (NetworkStep::Recreate, Some(plan)) => {
            runtime.remove_network(NETWORK_NAME).await?;
            runtime.create_network(&plan).await?;
        }
        // Without a subnet, an earlier network is kept.
        (NetworkStep::Keep, _) | (NetworkStep::Create | NetworkStep::Recreate, None) => {}
    }
    let subnet = wanted.subnet.or_else(|| found.as_ref()?.0.subnet);
    Ok(Attempt::Made(subnet.map(gateway_of)))
}

/// What drivers learn after an attempt, when attempts have failed for `failing`.
fn judge(trial: Trial, failing: Duration) -> BridgeState {
    match trial {
        Trial::There { address } => BridgeState::Ready { address },
        Trial::Failed(reason) if failing >= UNFIT_AFTER => BridgeState::Unfit(reason),
        Trial::Early(reason) | Trial::Failed(reason) => BridgeState::NotYet(reason),
    }
}

fn tell_unfit(unfit: &watch::Sender<Option<String>>, state: &BridgeState) {
    let why = match state {
        BridgeState::Unfit(reason) => Some(reason.clone()),
        BridgeState::Ready { .. } => None,
        // The state stays: that an engine restarts doesn't mend the network.
        BridgeState::NotYet(_) => return,
    };
    unfit.send_if_modified(|present| {
        let changed = *present != why;
        *present = why;
        changed
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_unfit_once_its_network_could_not_be_made_for_a_while() {
        let failed = || Trial::Failed("no chain".to_owned());
        let early = || Trial::Early("no subnet yet".to_owned());
        let not_yet = |reason: &str| BridgeState::NotYet(reason.to_owned());
        assert_eq!(judge(failed(), Duration::ZERO), not_yet("no chain"));
        assert_eq!(judge(failed(), UNFIT_AFTER), BridgeState::Unfit("no chain".to_owned()));
        assert_eq!(judge(early(), UNFIT_AFTER), not_yet("no subnet yet"), "that is not the node's fault");
        let address = Some(Ipv4Addr::new(10, 128, 0, 1));
        assert_eq!(judge(Trial::There { address }, UNFIT_AFTER), BridgeState::Ready { address });

        let (unfit, seen) = watch::channel(None);
        let tell = |state| {
            tell_unfit(&unfit, &state);
            seen.borrow().clone()
        };
        assert_eq!(tell(not_yet("no chain")), None);
        assert_eq!(tell(BridgeState::Unfit("no chain".to_owned())).as_deref(), Some("no chain"));
        assert_eq!(tell(not_yet("the engine is away")).as_deref(), Some("no chain"), "nothing is mended yet");
        assert_eq!(tell(BridgeState::Ready { address: None }), None);
    }
}

//! Makes the Docker networks that tasks need, and removes those that no task needs any more.
//!
//! Invariants: at most one engine call is in flight for each network; calls for different networks
//! run concurrently. A network that is needed or held is not removed: both are checked again under
//! the network's lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_state::ids::NetworkId;
use mesh_state::network::AssignedNetwork;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{NetworkFacts, NetworkPlan, NetworkStep, decide, is_as_planned, plan};
use crate::task::bridge::BridgePlan;
use crate::task::runtime::{Runtime, RuntimeError};

/// The time that a network stays after its last task: in an update of the service, the next task
/// comes within this time, as a rule.
const LINGER: Duration = Duration::from_secs(5);
/// The period of the search for unneeded networks, which also starts on events.
const PERIOD: Duration = Duration::from_secs(30);

/// Why a network does not exist yet.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The network can't be made in the present state of this node.
    #[error("{0}")]
    Hindered(String),
    /// The engine failed or does not answer.
    #[error("make the Docker network {name}: {source}")]
    Engine {
        /// The network's name.
        name: String,
        /// The engine's error.
        source: RuntimeError,
    },
}

impl NetworkError {
    /// Whether the engine is unavailable, which says nothing about the network.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Engine { source: RuntimeError::Unavailable(_), .. })
    }
}

/// Keeps the Docker networks of this node's tasks.
pub struct Networks {
    runtime: Arc<dyn Runtime>,
    /// The plan of the network `mesh`. The other networks have its MTU, unless a user set one.
    bridge: watch::Receiver<BridgePlan>,
    /// The networks that tasks of this node need; `None` until control has sent a full list of
    /// tasks.
    needed: watch::Sender<Option<BTreeSet<NetworkId>>>,
    /// The networks of the [`Hold`]s that live.
    held: Mutex<Vec<NetworkId>>,
    /// One lock for each network, by name.
    locks: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// Keeps a network from being removed, until it is dropped: for a container that is about to be put
/// on the network, which keeps it from then on.
pub struct Hold {
    networks: Arc<Networks>,
    network: NetworkId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.networks.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = held.iter().position(|network| *network == self.network) {
            held.swap_remove(at);
        }
    }
}

/// Removes every network that an agent made, the network `mesh` too, unless containers use it.
///
/// # Errors
/// An error of the engine; further networks may be left too.
pub async fn remove_all(runtime: &dyn Runtime) -> Result<Vec<String>, RuntimeError> {
    let mut removed = Vec::new();
    for own in runtime.own_networks().await? {
        match runtime.network(&own.name).await? {
            Some(found) if found.id == own.id => {
                let containers = runtime.network_users(&own.id).await?.containers;
                if containers > 0 {
                    warn!(network = own.name, containers, "a Docker network stays: containers use it");
                    continue;
                }
            }
            _ => {}
        }
        runtime.remove_network(&own.id).await?;
        removed.push(own.name);
    }
    Ok(removed)
}

impl Networks {
    /// The networks in the engine of `runtime`.
    pub fn new(runtime: Arc<dyn Runtime>, bridge: watch::Receiver<BridgePlan>) -> Self {
        Self {
            runtime,
            bridge,
            needed: watch::Sender::new(None),
            held: Mutex::default(),
            locks: Mutex::default(),
        }
    }

    /// Replaces the set of networks that tasks of this node need. Other networks are removed once
    /// no container uses them. A network must be in this set before it is made.
    pub fn need(&self, networks: BTreeSet<NetworkId>) {
        self.needed.send_if_modified(|needed| {
            let changed = needed.as_ref() != Some(&networks);
            *needed = Some(networks);
            changed
        });
    }

    /// Keeps a network, whether it is made already or not, for as long as the result lives.
    pub fn hold(self: &Arc<Self>, network: &NetworkId) -> Hold {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(network.clone());
        Hold { networks: Arc::clone(self), network: network.clone() }
    }

    /// Makes a network unless it exists. Returns its state in the engine.
    ///
    /// # Errors
    /// [`NetworkError`]; its text says what to do about the obstacle.
    pub async fn ensure(&self, network: &AssignedNetwork) -> Result<NetworkFacts, NetworkError> {
        let plan = plan(network, self.bridge.borrow().mtu);
        let lock = self.lock_of(&plan.name);
        let _held = lock.lock().await;
        let engine = |source| NetworkError::Engine { name: plan.name.clone(), source };
        let found = match self.runtime.network(&plan.name).await.map_err(engine)? {
            Some(found) if is_as_planned(&plan, &found) => return Ok(found),
            Some(found) => {
                let users = self.runtime.network_users(&found.id).await.map_err(engine)?;
                Some((found, users))
            }
            None => None,
        };
        match (decide(&plan, found.as_ref()), found) {
            (NetworkStep::Keep, Some((found, _))) => return Ok(found),
            (NetworkStep::Wait(reason), _) => return Err(NetworkError::Hindered(reason)),
            (NetworkStep::Recreate, Some((found, _))) => {
                self.runtime.remove_network(&found.id).await.map_err(engine)?;
            }
            (NetworkStep::Create | NetworkStep::Keep | NetworkStep::Recreate, _) => {}
        }
        self.create(&plan).await.map_err(engine)
    }

    async fn create(&self, plan: &NetworkPlan) -> Result<NetworkFacts, RuntimeError> {
        self.runtime.create_network(plan).await?;
        info!(network = plan.name, subnet = %plan.subnet, device = plan.device, "made a Docker network");
        let made = self.runtime.network(&plan.name).await?;
        made.ok_or_else(|| RuntimeError::Refused("it was removed at once".to_owned()))
    }

    fn lock_of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Locks that are not in use are dropped.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(name.to_owned()).or_default())
    }

    /// Removes networks that no task needs and no container uses, whenever that may have changed.
    /// Never returns.
    pub async fn remove_unneeded(&self) {
        let mut needed = self.needed.subscribe();
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = needed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    tokio::time::sleep(LINGER).await;
                    needed.mark_unchanged();
                }
                _ = period.tick() => {}
            }
            if let Err(error) = self.sweep().await {
                warn!(
                    error = mesh_runtime::error_chain(&error),
                    "can't remove the Docker networks that no task needs; will try again"
                );
            }
        }
    }

    async fn sweep(&self) -> Result<(), RuntimeError> {
        if self.needed.borrow().is_none() {
            return Ok(());
        }
        for network in self.runtime.own_networks().await? {
            let lock = self.lock_of(&network.name);
            let _held = lock.lock().await;
            if !self.is_unneeded(&network.label) {
                continue;
            }
            // Check again under the lock: a task or a container may have joined since the list was
            // read.
            let found = self.runtime.network(&network.name).await?;
            if found.is_some_and(|found| found.id == network.id)
                && self.runtime.network_users(&network.id).await?.holders() == 0
            {
                self.runtime.remove_network(&network.id).await?;
                info!(network = network.name, "removed a Docker network: no task of this node needs it");
            }
        }
        Ok(())
    }

    /// Whether the network with this label belongs to the cluster, and no task needs it and nothing
    /// holds it.
    fn is_unneeded(&self, label: &str) -> bool {
        let network = NetworkId::from(label);
        let is_held = self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(&network);
        let needed = self.needed.borrow();
        // The network `mesh` has an empty label.
        !label.is_empty() && !is_held && needed.as_ref().is_some_and(|needed| !needed.contains(&network))
    }
}

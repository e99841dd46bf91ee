//! Makes the Docker networks that tasks need, and removes those that none needs any more.
//!
//! Invariants: of one network, one call to the engine at a time; of different ones, as many as
//! there are. A network that is needed or held is not removed: that is looked at again while the
//! network is locked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_state::ids::NetworkId;
use mesh_state::network::AssignedNetwork;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{NetworkFacts, NetworkPlan, NetworkStep, decide, plan};
use crate::task::bridge::BridgePlan;
use crate::task::runtime::{Runtime, RuntimeError};

/// How long a network stays when its last task is gone: the next task of a service that is being
/// updated comes within this time, as a rule.
const LINGER: Duration = Duration::from_secs(5);
/// How often networks are looked for that nobody needs, without an event.
const PERIOD: Duration = Duration::from_secs(30);

/// Why a network isn't there yet.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// It can't be made as things are on this node.
    #[error("{0}")]
    Hindered(String),
    /// The engine failed or doesn't answer.
    #[error("make the Docker network {name}: {source}")]
    Engine {
        /// The network.
        name: String,
        /// What the engine said.
        source: RuntimeError,
    },
}

impl NetworkError {
    /// Whether the engine is away, which is nothing wrong with the network.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Engine { source: RuntimeError::Unavailable(_), .. })
    }
}

/// Keeps the Docker networks of this node's tasks.
pub struct Networks {
    runtime: Arc<dyn Runtime>,
    /// The network `mesh` as it should be: the other networks have its MTU, unless a user says
    /// otherwise.
    bridge: watch::Receiver<BridgePlan>,
    /// The networks that tasks of this node need; absent until control has sent a full list of
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
/// The engine's; other networks may be left too.
pub async fn remove_all(runtime: &dyn Runtime) -> Result<(), RuntimeError> {
    for own in runtime.own_networks().await? {
        match runtime.network(&own.name).await? {
            Some(found) if found.id == own.id && found.users > 0 => {
                warn!(
                    network = own.name,
                    containers = found.users,
                    "a Docker network stays: containers use it"
                );
            }
            _ => runtime.remove_network(&own.id).await?,
        }
    }
    Ok(())
}

impl Networks {
    /// The networks of the engine behind `runtime`.
    pub fn new(runtime: Arc<dyn Runtime>, bridge: watch::Receiver<BridgePlan>) -> Self {
        Self {
            runtime,
            bridge,
            needed: watch::Sender::new(None),
            held: Mutex::default(),
            locks: Mutex::default(),
        }
    }

    /// Replaces the set of networks that tasks of this node need: others are removed, once no
    /// container uses them. A network is named here before it is made.
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

    /// Makes a network, unless it is there. Returns it as it is.
    ///
    /// # Errors
    /// [`NetworkError`]; the next step of what is in the way is in its text.
    pub async fn ensure(&self, network: &AssignedNetwork) -> Result<NetworkFacts, NetworkError> {
        let plan = plan(network, self.bridge.borrow().mtu);
        let lock = self.lock_of(&plan.name);
        let _held = lock.lock().await;
        let engine = |source| NetworkError::Engine { name: plan.name.clone(), source };
        let found = self.runtime.network(&plan.name).await.map_err(engine)?;
        match (decide(&plan, found.as_ref()), found) {
            (NetworkStep::Keep, Some(found)) => return Ok(found),
            (NetworkStep::Wait(reason), _) => return Err(NetworkError::Hindered(reason)),
            (NetworkStep::Recreate, Some(found)) => {
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
        // Those that nobody holds or waits for are dropped.
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
            // Only now: a task may have come, and a container have joined, since the list.
            match self.runtime.network(&network.name).await? {
                Some(found) if found.id == network.id && found.holders() == 0 => {
                    self.runtime.remove_network(&found.id).await?;
                    info!(network = network.name, "removed a Docker network: no task of this node needs it");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the network with this label is a service's, and neither a task needs it nor anybody
    /// holds it.
    fn is_unneeded(&self, label: &str) -> bool {
        let network = NetworkId::from(label);
        let is_held = self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(&network);
        let needed = self.needed.borrow();
        // The network `mesh` has an empty label.
        !label.is_empty() && !is_held && needed.as_ref().is_some_and(|needed| !needed.contains(&network))
    }
}

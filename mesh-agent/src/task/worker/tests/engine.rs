//! An engine in memory.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use mesh_state::ids::TaskId;
use mesh_state::task::RegistryAuth;

use crate::task::bridge::NETWORK_NAME;
use crate::task::container::{Addresses, ContainerFacts, NetworkPlace, Phase};
use crate::task::container_spec::{ContainerPlan, TASK_ID_LABEL};
use crate::task::description::EngineFacts;
use crate::task::networks::{NetworkFacts, NetworkPlan, NetworkUsers, OwnNetwork};
use crate::task::runtime::{Made, Runtime, RuntimeError};

/// An engine in memory. Containers are kept by name; an id is a name.
#[derive(Default)]
pub(super) struct Engine {
    state: Mutex<EngineState>,
}

#[derive(Default)]
pub(super) struct EngineState {
    pub(super) away: bool,
    /// Whether the image is here; it is once it was asked for.
    pub(super) has_image: bool,
    /// What was pulled.
    pub(super) pulls: Vec<String>,
    /// Whether calls are taken and never answered.
    pub(super) hangs: bool,
    pub(super) containers: BTreeMap<String, (TaskId, ContainerFacts)>,
    pub(super) starts: usize,
    pub(super) networks: Vec<NetworkFacts>,
    pub(super) networks_made: usize,
    /// How often a network was inspected, and its containers were counted.
    pub(super) networks_inspected: usize,
    pub(super) users_counted: usize,
    /// Whether someone removes all networks while the next container is created.
    pub(super) loses_networks: bool,
}

impl Engine {
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut EngineState) -> T) -> Result<T, RuntimeError> {
        let mut state = self.state.lock().expect("no test thread panicked");
        if state.away { Err(RuntimeError::Unavailable("away".to_owned())) } else { Ok(work(&mut state)) }
    }

    pub(super) fn set_away(&self, away: bool) {
        self.state.lock().expect("no test thread panicked").away = away;
    }

    pub(super) fn set_phase(&self, container: &str, phase: Phase) {
        let done =
            self.with(|state| state.containers.get_mut(container).map(|(_, facts)| facts.phase = phase));
        assert!(done.is_ok_and(|found| found.is_some()), "{container} exists");
    }

    pub(super) fn starts(&self) -> usize {
        self.state.lock().expect("no test thread panicked").starts
    }
}

#[async_trait]
impl Runtime for Engine {
    async fn pull_image(
        &self,
        reference: &str,
        _auth: Option<&RegistryAuth>,
        _patience: Duration,
    ) -> Result<(), RuntimeError> {
        self.with(|state| state.pulls.push(reference.to_owned()))?;
        if reference.starts_with("away.example/") {
            return Err(RuntimeError::Refused("dial tcp: no route to host".to_owned()));
        }
        Ok(())
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<Made, RuntimeError> {
        let labels = plan.body.labels.clone().unwrap_or_default();
        let task = TaskId::from(labels.get(TASK_ID_LABEL).cloned().unwrap_or_default());
        let (pid, address) = (7, Some([10, 128, 0, 2].into()));
        let facts = ContainerFacts {
            pid,
            address,
            networks: plan.places(),
            ..ContainerFacts::made(plan.name.clone())
        };
        self.with(|state| {
            if !std::mem::replace(&mut state.has_image, true) {
                return Ok(Made::NoImage("No such image: x".to_owned()));
            }
            if std::mem::take(&mut state.loses_networks) {
                state.networks.clear();
            }
            if state.containers.contains_key(&plan.name) {
                return Err(RuntimeError::Refused("the name is in use".to_owned()));
            }
            state.containers.insert(plan.name.clone(), (task, facts));
            Ok(Made::Container(plan.name.clone()))
        })?
    }

    async fn start(&self, container: &str) -> Result<(), RuntimeError> {
        self.with(|state| state.starts += 1)?;
        self.set_phase(container, Phase::Running);
        Ok(())
    }

    async fn stop(&self, container: &str, _grace: Duration) -> Result<(), RuntimeError> {
        self.with(|_| ())?;
        self.set_phase(container, Phase::Exited);
        Ok(())
    }

    async fn remove(&self, container: &str) -> Result<(), RuntimeError> {
        self.with(|state| state.containers.remove(container)).map(drop)
    }

    async fn inspect(&self, container: &str) -> Result<Option<ContainerFacts>, RuntimeError> {
        self.with(|state| state.containers.get(container).map(|(_, facts)| facts.clone()))
    }

    async fn task_containers(&self) -> Result<Vec<(TaskId, String)>, RuntimeError> {
        self.with(|state| {
            state.containers.iter().map(|(name, (task, _))| (task.clone(), name.clone())).collect()
        })
    }

    fn events(&self) -> BoxStream<'static, Result<TaskId, RuntimeError>> {
        futures::stream::pending().boxed()
    }

    fn bridge_removals(&self) -> BoxStream<'static, Result<(), RuntimeError>> {
        futures::stream::pending().boxed()
    }

    fn bridge_joins(&self) -> BoxStream<'static, Result<(TaskId, Ipv4Addr), RuntimeError>> {
        futures::stream::pending().boxed()
    }

    async fn network(&self, name: &str) -> Result<Option<NetworkFacts>, RuntimeError> {
        if name == NETWORK_NAME {
            return self.with(|_| Some(NetworkFacts::default()));
        }
        self.with(|state| {
            state.networks_inspected += 1;
            state.networks.iter().find(|network| network.name == name).cloned()
        })
    }

    async fn network_users(&self, _network: &str) -> Result<NetworkUsers, RuntimeError> {
        self.with(|state| state.users_counted += 1)?;
        Ok(NetworkUsers::default())
    }

    async fn own_networks(&self) -> Result<Vec<OwnNetwork>, RuntimeError> {
        let own = |facts: &NetworkFacts| {
            Some(OwnNetwork { id: facts.id.clone(), name: facts.name.clone(), label: facts.label.clone()? })
        };
        self.with(|state| state.networks.iter().filter_map(own).collect())
    }

    async fn create_network(&self, plan: &NetworkPlan) -> Result<(), RuntimeError> {
        self.with(|state| {
            state.networks_made += 1;
            state.networks.push(NetworkFacts {
                id: format!("{}-{}", plan.name, state.networks_made),
                name: plan.name.clone(),
                label: Some(plan.label.clone()),
                device: Some(plan.device.clone()),
                subnet: Some(plan.subnet),
                gateway: plan.gateway,
                mtu: Some(plan.mtu),
                internal: plan.internal,
                has_ipv6: plan.subnet6.is_some(),
            });
        })
    }

    async fn remove_network(&self, network: &str) -> Result<(), RuntimeError> {
        self.with(|state| state.networks.retain(|known| known.id != network && known.name != network))
    }

    async fn connect(&self, container: &str, network: &str, at: Addresses) -> Result<(), RuntimeError> {
        let place = NetworkPlace { network: None, wanted: Some(at) };
        self.with(|state| {
            let Some(known) = state.networks.iter().find(|known| known.id == network) else {
                return Err(RuntimeError::Refused(format!("network {network} not found")));
            };
            let (_, facts) = state.containers.get_mut(container).expect("it was made");
            facts.networks.insert(known.name.clone(), place);
            Ok(())
        })?
    }

    async fn disconnect(&self, container: &str, network: &str) -> Result<(), RuntimeError> {
        self.with(|state| {
            let (_, facts) = state.containers.get_mut(container).expect("it was made");
            facts.networks.remove(network).expect("it is on it");
        })
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        if self.with(|state| state.hangs)? { std::future::pending().await } else { Ok(()) }
    }

    async fn engine(&self) -> Result<EngineFacts, RuntimeError> {
        self.with(|_| EngineFacts::default())
    }
}

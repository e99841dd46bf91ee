//! The implementation of [`Runtime`] for a real Docker engine, over bollard.
//!
//! Invariants: paths carry no API version, so the engine answers in its own. A client is made anew
//! for each call: the engine may stop, come back, or be replaced. Every call has a deadline.

mod logs;
pub mod model;
mod networks;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, EventMessage, GenericResourcesInner,
    HealthStatusEnum, PortBinding, PortMap, SystemInfo,
};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, EventsOptions, InspectContainerOptions,
    ListContainersOptions, RemoveContainerOptions, StartContainerOptions, StopContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use mesh_state::ids::TaskId;
use mesh_state::spec::{GenericResource, Protocol};
use mesh_state::task::{HostPort, RegistryAuth};
use zeroize::Zeroizing;

use super::bridge::NETWORK_NAME;
use super::container::{Addresses, ContainerFacts, Health, Phase};
use super::container_spec::{ContainerPlan, NODE_LABEL, TASK_ID_LABEL};
use super::description::EngineFacts;
use super::networks::{NetworkFacts, NetworkPlan, NetworkUsers, OwnNetwork};
use super::runtime::{Made, Runtime, RuntimeError};

/// Deadline of a call; starting a container on a loaded machine is the slowest.
const CALL_TIMEOUT: Duration = Duration::from_mins(2);
/// How the engine's answer begins if it has no such image.
const NO_IMAGE: &str = "No such image";
/// Events that can change a container's facts. Others come by the hundred: three per health check.
const RELEVANT_EVENTS: [&str; 7] = ["start", "die", "destroy", "health_status", "pause", "unpause", "rename"];
/// Events are requested from this long before the subscription, when the stream was down.
const EVENTS_OVERLAP: Duration = Duration::from_secs(5);

/// A Docker engine behind a unix socket.
#[derive(Debug, Clone)]
pub struct DockerEngine {
    socket: PathBuf,
}

impl DockerEngine {
    /// The engine at `socket`. It need not run yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    fn client(&self, deadline: Duration) -> Result<Docker, RuntimeError> {
        let path = self.socket.to_string_lossy();
        Docker::connect_with_unix(&path, deadline.as_secs(), API_DEFAULT_VERSION).map_err(failed)
    }

    async fn list(
        &self,
        filter: (&str, String),
    ) -> Result<Vec<bollard::models::ContainerSummary>, RuntimeError> {
        let filters = HashMap::from([(filter.0.to_owned(), vec![filter.1])]);
        let options =
            ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
        self.client(CALL_TIMEOUT)?.list_containers(Some(options)).await.map_err(failed)
    }

    /// The engine's events that pass `filters`, from `since` (Unix time) or from now on.
    fn follow(
        &self,
        filters: &[(&str, &[&str])],
        since: Option<Duration>,
    ) -> BoxStream<'static, Result<EventMessage, RuntimeError>> {
        let client = match self.client(CALL_TIMEOUT) {
            Ok(client) => client,
            Err(error) => return stream::once(async { Err(error) }).boxed(),
        };
        let filters = filters.iter().map(|(key, values)| {
            ((*key).to_owned(), values.iter().map(|&value| value.to_owned()).collect::<Vec<_>>())
        });
        let options = EventsOptions {
            filters: Some(filters.collect::<HashMap<_, _>>()),
            since: since.map(|since| since.as_secs().to_string()),
            ..EventsOptions::default()
        };
        client.events(Some(options)).map(|event| event.map_err(failed)).boxed()
    }
}

#[async_trait]
impl Runtime for DockerEngine {
    async fn pull_image(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
        patience: Duration,
    ) -> Result<(), RuntimeError> {
        let credentials = auth.map(credentials).transpose()?;
        let client = self.client(CALL_TIMEOUT)?;
        let mut options =
            CreateImageOptions { from_image: Some(reference.to_owned()), ..CreateImageOptions::default() };
        let last = reference.rsplit('/').next().unwrap_or(reference);
        if !last.contains(':') && !last.contains('@') {
            // Without a tag the engine would pull every tag.
            options.tag = Some("latest".to_owned());
        }
        let mut progress = client.create_image(Some(options), None, credentials);
        loop {
            match tokio::time::timeout(patience, progress.next()).await {
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => return Err(failed(error)),
                Ok(None) => return Ok(()),
                Err(_) => return Err(RuntimeError::Unavailable("the pull makes no progress".to_owned())),
            }
        }
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<Made, RuntimeError> {
        let options =
            CreateContainerOptions { name: Some(plan.name.clone()), ..CreateContainerOptions::default() };
        match self.client(CALL_TIMEOUT)?.create_container(Some(options), plan.body.clone()).await {
            Ok(made) => Ok(Made::Container(made.id)),
            Err(Error::DockerResponseServerError { status_code: 404, message })
                if message.starts_with(NO_IMAGE) =>
            {
                Ok(Made::NoImage(message))
            }
            Err(error) => Err(failed(error)),
        }
    }

    async fn start(&self, container: &str) -> Result<(), RuntimeError> {
        let started =
            self.client(CALL_TIMEOUT)?.start_container(container, None::<StartContainerOptions>).await;
        started.map_err(failed)
    }

    async fn stop(&self, container: &str, grace: Duration) -> Result<(), RuntimeError> {
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let options =
            StopContainerOptions { t: Some(i32::try_from(seconds).unwrap_or(i32::MAX)), signal: None };
        let client = self.client(CALL_TIMEOUT.saturating_add(grace))?;
        let stopped = client.stop_container(container, Some(options)).await;
        present(stopped.map_err(failed_or_absent)).map(drop)
    }

    async fn remove(&self, container: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptions { v: true, force: true, link: false };
        let removed = self.client(CALL_TIMEOUT)?.remove_container(container, Some(options)).await;
        present(removed.map_err(failed_or_absent)).map(drop)
    }

    async fn inspect(&self, container: &str) -> Result<Option<ContainerFacts>, RuntimeError> {
        let inspected =
            self.client(CALL_TIMEOUT)?.inspect_container(container, None::<InspectContainerOptions>).await;
        Ok(present(inspected.map_err(failed_or_absent))?.map(facts))
    }

    async fn task_containers(&self) -> Result<Vec<(TaskId, String)>, RuntimeError> {
        let containers = self.list(("label", NODE_LABEL.to_owned())).await?;
        let named = containers.into_iter().filter_map(|container| {
            let task = container.labels?.remove(TASK_ID_LABEL)?;
            Some((TaskId::from(task), container.id?))
        });
        Ok(named.collect())
    }

    fn events(&self) -> BoxStream<'static, Result<TaskId, RuntimeError>> {
        let since =
            SystemTime::now().checked_sub(EVENTS_OVERLAP).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let filters = [("type", &["container"][..]), ("label", &[NODE_LABEL]), ("event", &RELEVANT_EVENTS)];
        self.follow(&filters, since)
            .filter_map(async |event| match event {
                Ok(event) => {
                    event.actor?.attributes?.remove(TASK_ID_LABEL).map(|task| Ok(TaskId::from(task)))
                }
                Err(error) => Some(Err(error)),
            })
            .boxed()
    }

    fn bridge_removals(&self) -> BoxStream<'static, Result<(), RuntimeError>> {
        self.removals()
    }

    fn bridge_joins(&self) -> BoxStream<'static, Result<(TaskId, Ipv4Addr), RuntimeError>> {
        self.joins()
    }

    async fn network(&self, name: &str) -> Result<Option<NetworkFacts>, RuntimeError> {
        self.find_network(name).await
    }

    async fn network_users(&self, network: &str) -> Result<NetworkUsers, RuntimeError> {
        Ok(networks::users(&self.list(("network", network.to_owned())).await?))
    }

    async fn own_networks(&self) -> Result<Vec<OwnNetwork>, RuntimeError> {
        self.list_own_networks().await
    }

    async fn create_network(&self, plan: &NetworkPlan) -> Result<(), RuntimeError> {
        self.client(CALL_TIMEOUT)?.create_network(networks::request(plan)).await.map(drop).map_err(failed)
    }

    async fn remove_network(&self, network: &str) -> Result<(), RuntimeError> {
        let removed = self.client(CALL_TIMEOUT)?.remove_network(network).await;
        present(removed.map_err(failed_or_absent)).map(drop)
    }

    async fn connect(&self, container: &str, network: &str, at: Addresses) -> Result<(), RuntimeError> {
        self.put_on_network(container, network, at).await
    }

    async fn disconnect(&self, container: &str, network: &str) -> Result<(), RuntimeError> {
        self.take_off_network(container, network).await
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        self.client(CALL_TIMEOUT)?.ping().await.map(drop).map_err(failed)
    }

    async fn engine(&self) -> Result<EngineFacts, RuntimeError> {
        self.client(CALL_TIMEOUT)?.info().await.map(engine_facts).map_err(failed)
    }
}

/// Parses a client's `X-Registry-Auth`: JSON in base64, in either alphabet, padded or not.
fn credentials(auth: &RegistryAuth) -> Result<DockerCredentials, RuntimeError> {
    let plain: String = auth.0.trim_end_matches('=').replace('-', "+").replace('_', "/");
    let decoded = Zeroizing::new(STANDARD_NO_PAD.decode(plain).unwrap_or_default());
    serde_json::from_slice(&decoded).map_err(|_| {
        RuntimeError::Refused(
            "the registry credentials of the service can't be read: update it --with-registry-auth"
                .to_owned(),
        )
    })
}

/// The engine's answer is an error for the caller, or says that the object doesn't exist.
enum NoAnswer {
    Absent,
    Failed(RuntimeError),
}

fn failed_or_absent(error: Error) -> NoAnswer {
    match error {
        Error::DockerResponseServerError { status_code: 404, .. } => NoAnswer::Absent,
        other => NoAnswer::Failed(failed(other)),
    }
}

fn present<T>(answer: Result<T, NoAnswer>) -> Result<Option<T>, RuntimeError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(NoAnswer::Absent) => Ok(None),
        Err(NoAnswer::Failed(error)) => Err(error),
    }
}

fn failed(error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { message, .. } => RuntimeError::Refused(message),
        Error::DockerStreamError { error } => RuntimeError::Refused(error),
        other => RuntimeError::Unavailable(mesh_runtime::error_chain(&other)),
    }
}

fn facts(container: ContainerInspectResponse) -> ContainerFacts {
    let state = container.state.unwrap_or_default();
    let running = state.running.unwrap_or(false);
    let phase = match state.status {
        _ if running => Phase::Running,
        Some(ContainerStateStatusEnum::CREATED) => Phase::Created,
        _ => Phase::Exited,
    };
    let health = match state.health.and_then(|health| health.status) {
        Some(HealthStatusEnum::STARTING) => Health::Starting,
        Some(HealthStatusEnum::HEALTHY) => Health::Healthy,
        Some(HealthStatusEnum::UNHEALTHY) => Health::Unhealthy,
        Some(HealthStatusEnum::NONE | HealthStatusEnum::EMPTY) | None => Health::Unchecked,
    };
    let settings = container.network_settings.unwrap_or_default();
    let endpoints = settings.networks.unwrap_or_default();
    let endpoint = endpoints.get(NETWORK_NAME);
    let address = endpoint.and_then(|endpoint| endpoint.ip_address.as_deref());
    let address6 = endpoint.and_then(|endpoint| endpoint.global_ipv6_address.as_deref());
    ContainerFacts {
        id: container.id.unwrap_or_default(),
        phase,
        pid: state.pid.unwrap_or(0),
        exit_code: state.exit_code.unwrap_or(0),
        error: state.error.unwrap_or_default(),
        health,
        address: address.and_then(|address| address.parse().ok()),
        address6: address6.and_then(|address| address.parse().ok()),
        networks: endpoints
            .iter()
            .map(|(name, endpoint)| (name.clone(), networks::place(endpoint)))
            .collect(),
        host_ports: host_ports(settings.ports.unwrap_or_default()),
    }
}

/// The engine's bindings, each port once: for IPv6 it may have chosen another port, which Docker's
/// clients don't look for.
fn host_ports(bindings: PortMap) -> Vec<HostPort> {
    let bound = |(port, bindings): (String, Option<Vec<PortBinding>>)| {
        let (target, protocol) = port.split_once('/')?;
        let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|own| own.as_str() == protocol)?;
        let published = bindings?.into_iter().next()?.host_port?.parse().ok()?;
        Some(HostPort { protocol, target: target.parse().ok()?, published })
    };
    let mut ports: Vec<HostPort> = bindings.into_iter().filter_map(bound).collect();
    ports.sort_unstable();
    ports
}

fn engine_facts(info: SystemInfo) -> EngineFacts {
    let plugins = info.plugins.unwrap_or_default();
    let kinds = [
        ("Volume", plugins.volume),
        ("Network", plugins.network),
        ("Authorization", plugins.authorization),
        ("Log", plugins.log),
    ];
    let plugins = kinds.into_iter().flat_map(|(kind, names)| {
        names.unwrap_or_default().into_iter().map(move |name| (kind.to_owned(), name))
    });
    EngineFacts {
        plugins: plugins.collect(),
        version: info.server_version.unwrap_or_default(),
        architecture: info.architecture.unwrap_or_default(),
        os: info.os_type.unwrap_or_default(),
        kernel: info.kernel_version.unwrap_or_default(),
        cpus: info.ncpu.unwrap_or(0),
        memory_bytes: info.mem_total.unwrap_or(0),
        labels: info.labels.unwrap_or_default(),
        generic_resources: info
            .generic_resources
            .unwrap_or_default()
            .into_iter()
            .filter_map(generic)
            .collect(),
    }
}

fn generic(resource: GenericResourcesInner) -> Option<GenericResource> {
    if let Some(named) = resource.named_resource_spec {
        return Some(GenericResource::named(named.kind?, named.value?));
    }
    let discrete = resource.discrete_resource_spec?;
    Some(GenericResource::discrete(discrete.kind?, discrete.value?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_in_every_spelling_of_base64() {
        let given = r#"{"username":"u","password":"p?>~","serveraddress":"r:5000"}"#;
        let url_safe = base64::engine::general_purpose::URL_SAFE.encode(given);
        let standard = STANDARD_NO_PAD.encode(given);
        assert!(url_safe.contains('_') || url_safe.contains('-'), "the alphabets differ in {url_safe}");
        for text in [url_safe, standard] {
            let read = credentials(&RegistryAuth(text.clone())).unwrap();
            assert_eq!(read.password.as_deref(), Some("p?>~"), "{text}");
        }
        let refused = credentials(&RegistryAuth("nonsense".to_owned())).unwrap_err().to_string();
        assert!(!refused.contains("nonsense"), "what was given is shown: {refused}");
    }

    #[test]
    fn bound_ports_are_told_once_each() {
        let binding = |port: &str| PortBinding { host_ip: None, host_port: Some(port.to_owned()) };
        let bindings = PortMap::from([
            ("80/tcp".to_owned(), Some(vec![binding("49153"), binding("49160")])),
            ("53/udp".to_owned(), Some(vec![binding("5353")])),
            ("443/tcp".to_owned(), None),
            ("nonsense".to_owned(), Some(vec![binding("1")])),
        ]);
        let port = |protocol, target, published| HostPort { protocol, target, published };
        assert_eq!(host_ports(bindings), [port(Protocol::Tcp, 80, 49153), port(Protocol::Udp, 53, 5353)]);
    }
}

//! `Service`.

use mesh_state::service::{Service as StoredService, UpdateStatus as StoredUpdateStatus};
use mesh_state::spec::{
    EndpointSpec, FailureAction, PortConfig, ReplicatedJobMode, RestartCondition, RestartPolicy, ServiceSpec,
    UpdateConfig, UpdateOrder,
};
use mesh_state::task::TaskState;
use mesh_state::{Timestamp, node::NodeState};
use serde::Serialize;
use serde_json::json;

use super::{Version, shown};
use crate::feed::snapshot::{ClusterSnapshot, Versioned};
use crate::slots::outdated::is_current;

/// Swarm's default time between the stop signal and SIGKILL, nanoseconds.
const STOP_GRACE_PERIOD: i64 = 10_000_000_000;

/// Swarm's default monitor time: a death within it after the start fails the update, nanoseconds.
const MONITOR: i64 = 5_000_000_000;

/// A service as `GET /services` shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Service {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: Timestamp,
    updated_at: Timestamp,
    spec: ServiceSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_spec: Option<ServiceSpec>,
    endpoint: Endpoint,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_status: Option<UpdateStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_status: Option<ServiceStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_status: Option<JobStatus>,
}

/// The iteration of a job's present execution.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct JobStatus {
    job_iteration: Version,
    last_execution: Timestamp,
}

/// How a service is reached: on its networks by virtual IPs, at published ports by the nodes' own
/// addresses.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    spec: EndpointSpec,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<PortConfig>,
    #[serde(rename = "VirtualIPs", skip_serializing_if = "Vec::is_empty")]
    virtual_ips: Vec<VirtualIp>,
}

/// A service's address on a network.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct VirtualIp {
    #[serde(rename = "NetworkID")]
    network_id: String,
    addr: String,
}

/// How far the last update or rollback came.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct UpdateStatus {
    state: &'static str,
    started_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<Timestamp>,
    message: String,
}

/// Counts of a service's tasks.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceStatus {
    running_tasks: usize,
    desired_tasks: u64,
    completed_tasks: usize,
}

impl Service {
    /// The API object of a stored service.
    pub(crate) fn new(snapshot: &ClusterSnapshot, service: &Versioned<StoredService>) -> Self {
        let stored = &service.value;
        Self {
            id: stored.id.to_string(),
            version: Version { index: service.mod_revision },
            created_at: stored.created_at,
            updated_at: stored.updated_at,
            endpoint: Endpoint {
                spec: shown::endpoint(stored.spec.endpoint_spec.clone().unwrap_or_default()),
                ports: stored.ports.clone(),
                virtual_ips: virtual_ips(snapshot, stored),
            },
            spec: shown::spec(&stored.spec),
            previous_spec: stored.previous_spec.as_ref().map(shown::spec),
            update_status: stored.update_status.as_ref().map(update_status),
            service_status: None,
            job_status: stored.job.map(|job| JobStatus {
                job_iteration: Version { index: i64::try_from(job.iteration).unwrap_or(i64::MAX) },
                last_execution: job.last_execution,
            }),
        }
    }

    /// Adds the counts of its tasks.
    #[must_use]
    pub(crate) fn with_status(mut self, snapshot: &ClusterSnapshot, service: &StoredService) -> Self {
        self.service_status = Some(service_status(snapshot, service));
        self
    }

    /// Fills in Swarm's defaults where the user set nothing.
    #[must_use]
    pub(crate) fn with_defaults(mut self) -> Self {
        insert_defaults(&mut self.spec);
        self
    }
}

/// The virtual IPs with the prefix lengths of their networks: clients read them as CIDR, and give
/// up on anything else.
fn virtual_ips(snapshot: &ClusterSnapshot, service: &StoredService) -> Vec<VirtualIp> {
    let shown = service.virtual_ips.iter().filter_map(|virtual_ip| {
        let network = snapshot.networks.get(&virtual_ip.network_id)?;
        let addr = network.with_prefix(virtual_ip.address);
        Some(VirtualIp { network_id: network.id.to_string(), addr })
    });
    shown.collect()
}

fn insert_defaults(spec: &mut ServiceSpec) {
    let template = &mut spec.task_template;
    if let Some(container) = &mut template.container_spec {
        container.stop_grace_period.get_or_insert(STOP_GRACE_PERIOD);
        container.extra.entry("DNSConfig".to_owned()).or_insert_with(|| json!({}));
    }
    template.resources.get_or_insert_default();
    let restart = template.restart_policy.get_or_insert_default();
    restart.condition.get_or_insert(RestartCondition::Any);
    let delay = u64::try_from(RestartPolicy::DEFAULT_DELAY.as_nanos()).unwrap_or(u64::MAX);
    restart.delay.get_or_insert(delay);
    restart.max_attempts.get_or_insert(0);
    template.placement.get_or_insert_default();
    insert_update_defaults(spec.update_config.get_or_insert_with(UpdateConfig::swarm_default));
    insert_update_defaults(spec.rollback_config.get_or_insert_with(UpdateConfig::swarm_default));
}

fn insert_update_defaults(config: &mut UpdateConfig) {
    config.failure_action.get_or_insert(FailureAction::Pause);
    config.monitor.get_or_insert(MONITOR);
    config.order.get_or_insert(UpdateOrder::StopFirst);
}

fn update_status(status: &StoredUpdateStatus) -> UpdateStatus {
    UpdateStatus {
        state: status.state.as_str(),
        started_at: status.started_at,
        completed_at: status.completed_at,
        message: status.message.clone(),
    }
}

/// Counts tasks. A task on a node that is down doesn't count as running: its state is unknown, and
/// its replacement counts.
fn service_status(snapshot: &ClusterSnapshot, service: &StoredService) -> ServiceStatus {
    let tasks = || snapshot.tasks_of(&service.id).filter(|task| is_current(service, task));
    let heard = |node: Option<&_>| node.is_some_and(|node| snapshot.node_state(node) != NodeState::Down);
    let running = tasks()
        .filter(|task| snapshot.state_of(task) == TaskState::Running && heard(task.node_id.as_ref()))
        .count();
    let completed = tasks().filter(|task| snapshot.state_of(task) == TaskState::Complete).count();
    let wanted = tasks().filter(|task| {
        let is_done = service.job.is_some() && snapshot.state_of(task) == TaskState::Complete;
        task.desired_state <= TaskState::Running && !is_done
    });
    let mode = &service.spec.mode;
    let at_once = mode.replicated_job.as_ref().map(ReplicatedJobMode::max_concurrent);
    ServiceStatus {
        running_tasks: running,
        desired_tasks: mode.replicas().or(at_once).unwrap_or_else(|| wanted.count() as u64),
        completed_tasks: completed,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::fixtures::{self, World};

    fn answer(stored: &StoredService) -> Service {
        let mut world = World::new();
        world.put_service(stored);
        Service::new(&world.snapshot, &world.snapshot.services[&stored.id])
    }

    fn rendered(service: Service) -> Value {
        serde_json::to_value(service).unwrap()
    }

    #[test]
    fn a_service_has_dockers_shape() {
        let mut stored = fixtures::service("web", 1);
        stored.ports = vec![fixtures::ingress(30_000, 80)];
        let seen = rendered(answer(&stored));
        assert_eq!(seen["ID"], "web");
        assert!(seen["Version"]["Index"].as_i64().is_some_and(|index| index > 0), "saw {}", seen["Version"]);
        assert_eq!(seen["Spec"]["Mode"], json!({"Replicated": {"Replicas": 1}}));
        assert_eq!(seen["Endpoint"]["Spec"]["Mode"], "vip");
        assert_eq!(seen["Endpoint"]["Ports"][0]["PublishedPort"], 30_000);
        for absent in ["PreviousSpec", "UpdateStatus", "ServiceStatus"] {
            assert_eq!(seen.get(absent), None, "{absent} should be absent");
        }
    }

    #[test]
    fn defaults_fill_only_what_is_open() {
        let mut stored = fixtures::service("web", 1);
        stored.spec.update_config = Some(UpdateConfig {
            parallelism: 0,
            order: Some(UpdateOrder::StartFirst),
            ..UpdateConfig::default()
        });
        assert_eq!(rendered(answer(&stored))["Spec"]["TaskTemplate"]["ContainerSpec"].get("DNSConfig"), None);
        let seen = rendered(answer(&stored).with_defaults());
        let update = json!({"Parallelism": 0, "FailureAction": "pause", "Monitor": MONITOR, "MaxFailureRatio": 0.0,
                            "Order": "start-first"});
        assert_eq!(seen["Spec"]["UpdateConfig"], update, "the user's parallelism and order stay");
        assert_eq!(seen["Spec"]["RollbackConfig"]["Parallelism"], 1);
        assert_eq!(
            seen["Spec"]["TaskTemplate"]["RestartPolicy"],
            json!({"Condition": "any", "Delay": 5_000_000_000_u64, "MaxAttempts": 0})
        );
        let container = &seen["Spec"]["TaskTemplate"]["ContainerSpec"];
        assert_eq!(container["StopGracePeriod"], STOP_GRACE_PERIOD);
        assert_eq!(container["DNSConfig"], json!({}));
        assert_eq!(seen["Spec"]["TaskTemplate"]["Resources"], json!({}));
        let dns = json!({"Nameservers": ["10.0.0.1"]});
        let sent = stored.spec.task_template.container_spec.as_mut().expect("a container");
        sent.extra.insert("DNSConfig".to_owned(), dns.clone());
        let seen = rendered(answer(&stored).with_defaults());
        assert_eq!(seen["Spec"]["TaskTemplate"]["ContainerSpec"]["DNSConfig"], dns, "as it was sent");
    }
}

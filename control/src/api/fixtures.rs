//! Builders for the tests of this part.

use mesh_state::Timestamp;
use mesh_state::codec;
use mesh_state::keys;
use mesh_state::service::Service;
use mesh_state::spec::{
    ContainerSpec, EndpointSpec, PortConfig, ReplicatedMode, ServiceMode, ServiceSpec, TaskSpec,
};
use mesh_state::store::KeyValue;
use serde::Serialize;

use super::ports;
use super::services::write::NAME_KIND;
use crate::snapshot::ClusterSnapshot;

/// An ingress port, TCP.
pub(crate) fn ingress_port(published: u16, target: u16) -> PortConfig {
    PortConfig { target_port: target, published_port: published, ..PortConfig::default() }
}

/// A replicated service of one nginx.
pub(crate) fn service(id: &str, name: &str, assigned: Vec<PortConfig>) -> Service {
    Service {
        id: id.into(),
        spec: spec(name, assigned.clone()),
        previous_spec: None,
        spec_version: 1,
        previous_spec_version: None,
        ports: assigned,
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        update_status: None,
    }
}

/// The spec of such a service.
pub(crate) fn spec(name: &str, ports: Vec<PortConfig>) -> ServiceSpec {
    let container = ContainerSpec { image: "nginx:latest".to_owned(), ..ContainerSpec::default() };
    ServiceSpec {
        name: name.to_owned(),
        task_template: TaskSpec { container_spec: Some(container), ..TaskSpec::default() },
        mode: ServiceMode {
            replicated: Some(ReplicatedMode { replicas: Some(1) }),
            ..ServiceMode::default()
        },
        endpoint_spec: Some(EndpointSpec { ports, ..EndpointSpec::default() }),
        ..ServiceSpec::default()
    }
}

/// A snapshot that holds services with their claims and specs.
pub(crate) fn snapshot_with(services: &[Service]) -> ClusterSnapshot {
    let mut items = Vec::new();
    for service in services {
        items.push(item(keys::service(&service.id), service));
        items.push(item(keys::spec(&service.id, service.spec_version), &service.spec));
        items.push(item(keys::name(NAME_KIND, &service.spec.name), &service.id));
        for (protocol, port) in ports::claims(&service.ports) {
            items.push(item(keys::port(protocol, port), &service.id));
        }
    }
    let revision = 10;
    ClusterSnapshot::from_listing(revision, items)
}

fn item(key: String, value: &impl Serialize) -> KeyValue {
    KeyValue { key, value: codec::encode(value).unwrap(), create_revision: 5, mod_revision: 7 }
}

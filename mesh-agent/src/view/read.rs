//! Reads the entries of a table that a manager sent.

use std::num::NonZeroU32;
use std::str::FromStr;

use mesh_state::ids::BackendId;
use mesh_state::lb::LbSettings;
use mesh_state::proto;
use mesh_state::spec::Protocol;

use super::{BackendState, BackendView, PeerEncryption, PeerNode, PortView, ServiceView, ViewError};

mod networks;

pub(super) use networks::{member, network};

pub(super) fn node(node: &proto::MeshNode) -> Result<PeerNode, ViewError> {
    Ok(PeerNode {
        id: node.id.as_str().into(),
        address: parse("node", &node.id, "address", &node.address)?,
        hostname: node.hostname.clone(),
        subnet: match node.subnet.as_str() {
            "" => None,
            subnet => Some(parse("node", &node.id, "subnet", subnet)?),
        },
        in_userspace: node.datapath == "userspace",
        takes_cookies: node.takes_cookies,
        encryption: encryption(node),
    })
}

/// A node's end of encrypted tunnels; `None` if it has none, or what it reports can't be one.
fn encryption(node: &proto::MeshNode) -> Option<PeerEncryption> {
    let public_key = node.public_key.as_slice().try_into().ok()?;
    let port = u16::try_from(node.encryption_port).ok().filter(|port| *port != 0)?;
    Some(PeerEncryption { public_key, port })
}

pub(super) fn service(service: &proto::MeshService) -> Result<ServiceView, ViewError> {
    let read_port = |given: &proto::MeshPort| {
        Ok(PortView {
            protocol: protocol("service", &service.id, &given.protocol)?,
            published: port("service", &service.id, "published port", given.published)?,
            target: port("service", &service.id, "target port", given.target)?,
        })
    };
    Ok(ServiceView {
        id: service.id.as_str().into(),
        name: service.name.clone(),
        lb: settings(service)?,
        ports: service.ports.iter().map(read_port).collect::<Result<_, _>>()?,
        networks: networks::service_networks(service)?,
    })
}

fn settings(service: &proto::MeshService) -> Result<LbSettings, ViewError> {
    let policy = parse("service", &service.id, "policy", &service.policy)?;
    if service.settings_json.is_empty() {
        return Ok(LbSettings { policy, ..LbSettings::default() });
    }
    let settings: LbSettings =
        serde_json::from_str(&service.settings_json).map_err(|_| ViewError::InvalidField {
            kind: "service",
            id: service.id.clone(),
            field: "settings",
            value: service.settings_json.clone(),
        })?;
    Ok(LbSettings { policy, ..settings })
}

pub(super) fn backend(backend: &proto::MeshBackend) -> Result<BackendView, ViewError> {
    let id = backend.id.to_string();
    let entry =
        |field, value: String| ViewError::InvalidField { kind: "backend", id: id.clone(), field, value };
    let state = state(backend.state()).ok_or_else(|| entry("state", backend.state.to_string()))?;
    Ok(BackendView {
        id: BackendId::new(backend.id).ok_or_else(|| entry("id", id.clone()))?,
        service_id: backend.service_id.as_str().into(),
        task_id: backend.task_id.as_str().into(),
        task_name: backend.task_name.clone(),
        node_id: backend.node_id.as_str().into(),
        address: parse("backend", &id, "address", &backend.address)?,
        protocol: protocol("backend", &id, &backend.protocol)?,
        published: port("backend", &id, "published port", backend.published)?,
        target: port("backend", &id, "target port", backend.target)?,
        state,
        weight: NonZeroU32::new(backend.weight).ok_or_else(|| entry("weight", backend.weight.to_string()))?,
        container_id: backend.container_id.clone(),
    })
}

pub(super) fn state(state: proto::BackendState) -> Option<BackendState> {
    match state {
        proto::BackendState::Active => Some(BackendState::Active),
        proto::BackendState::Draining => Some(BackendState::Draining),
        proto::BackendState::Silent => Some(BackendState::Silent),
        proto::BackendState::Retired => Some(BackendState::Retired),
        proto::BackendState::Unspecified => None,
    }
}

pub(super) fn parse<T: FromStr>(
    kind: &'static str,
    id: &str,
    field: &'static str,
    text: &str,
) -> Result<T, ViewError> {
    text.parse().map_err(|_| ViewError::InvalidField {
        kind,
        id: id.to_owned(),
        field,
        value: text.to_owned(),
    })
}

fn protocol(kind: &'static str, id: &str, text: &str) -> Result<Protocol, ViewError> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(ViewError::InvalidField {
            kind,
            id: id.to_owned(),
            field: "protocol",
            value: text.to_owned(),
        }),
    }
}

fn port(kind: &'static str, id: &str, field: &'static str, port: u32) -> Result<u16, ViewError> {
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| ViewError::InvalidField {
        kind,
        id: id.to_owned(),
        field,
        value: port.to_string(),
    })
}

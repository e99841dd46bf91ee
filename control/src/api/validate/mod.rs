//! Validates specs. Pure, in Swarm's words where Swarm has words for it.
//!
//! Invariant: what mesh can't do is refused here and named; no field is silently dropped.
//!
//! Left to others: clashes with other objects (`ports`, `services::write`) and the JSON itself
//! (`body`).

mod health;
mod not_served;
mod policies;
mod references;
mod templates;
pub(crate) mod words;

use std::collections::BTreeSet;

use mesh_state::ids::BackendId;
use mesh_state::lb::{self, LabelError, LbSettings, Mode, WEIGHT_LABEL};
use mesh_state::node::NodeSpec;
use mesh_state::spec::{ContainerSpec, EndpointSpec, Protocol, PublishMode, ReplicatedJobMode, ServiceSpec};
use thiserror::Error;

use crate::slots::constraint::ConstraintError;

/// The most characters of a service's name, as of a DNS label.
const NAME_LENGTH_MAX: usize = 63;

/// The most ingress ports of one service, and the most of its secrets and configs. Each is a claim
/// of its own, and etcd takes 128 writes at once: that leaves room for the service itself and its
/// networks. An update whose transaction exceeds that is refused when it is written.
pub(crate) const INGRESS_PORTS_MAX: usize = 110;

/// The most replicas of one service: backend ids couldn't distinguish more, even with one published
/// port each.
const REPLICAS_MAX: u64 = BackendId::MAX as u64;

/// Why a spec is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum SpecError {
    /// There is no name.
    #[error("meta: name must be provided")]
    NameMissing,
    /// The name is longer than a DNS label.
    #[error("name must be {NAME_LENGTH_MAX} characters or fewer")]
    NameTooLong,
    /// The name has characters that a DNS label can't have.
    #[error("name must be valid as a DNS name component")]
    NameNotDns,
    /// The task template has no container.
    #[error("mismatched Runtime and *Spec fields")]
    RuntimeMissing,
    /// The container has no image.
    #[error("ContainerSpec: image reference must be provided")]
    ImageMissing,
    /// The image reference is malformed.
    #[error("ContainerSpec: \"{0}\" is not a valid repository/tag")]
    ImageInvalid(String),
    /// A time of the health check is too short.
    #[error("ContainerSpec: {0} in HealthConfig cannot be less than 1ms")]
    HealthTimeTooShort(&'static str),
    /// The retries of the health check are negative.
    #[error("ContainerSpec: Retries in HealthConfig cannot be negative")]
    HealthRetriesNegative,
    /// Two mounts have the same path.
    #[error("ContainerSpec: duplicate mount point: {0}")]
    MountTwice(String),
    /// A constraint can't be parsed.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// A label of mesh is invalid.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// There are several modes.
    #[error("must specify only one service mode")]
    Modes,
    /// The mode is unknown.
    #[error("service mode must be one of Replicated, Global, ReplicatedJob and GlobalJob")]
    Mode,
    /// A job can't have an update config: its tasks are not replaced one after the other.
    #[error("Jobs may not have an update config")]
    JobUpdate,
    /// There are more replicas than backend ids can distinguish.
    #[error("{0} replicas are too many: at most {REPLICAS_MAX} a service")]
    TooManyReplicas(u64),
    /// The endpoint mode is unknown.
    #[error("invalid endpoint mode '{0}': must be vip or dnsrr")]
    EndpointMode(String),
    /// Ingress ports need the mesh, dnsrr bypasses it.
    #[error("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")]
    DnsrrWithIngress,
    /// A published port occurs twice.
    #[error("EndpointSpec: duplicate published ports provided")]
    PortTwice,
    /// A port has no target port.
    #[error("EndpointSpec: target port must be provided")]
    TargetPortMissing,
    /// The data plane doesn't carry the transport.
    #[error("EndpointSpec: port {0}/sctp can't be published: mesh carries tcp and udp")]
    Sctp(u16),
    /// mesh doesn't send the PROXY protocol over UDP.
    #[error("invalid label {MODE}=proxy: port {0}/udp can't be proxied: publish it by a service of mode tunnel or dsr", MODE = lb::MODE_LABEL)]
    ProxiedUdp(u16),
    /// A task of a global service has no slot number.
    #[error(
        "invalid label {WEIGHT_LABEL}.{0}: a global service has no slots: weigh nodes by their label {WEIGHT_LABEL}"
    )]
    SlotOfGlobal(u64),
    /// There are more ports than a transaction can claim.
    #[error("EndpointSpec: {count} ingress ports are too many: at most {INGRESS_PORTS_MAX} a service")]
    TooManyPorts {
        /// The number of ports.
        count: usize,
    },
    /// A limit or reservation is below what the engine can enforce.
    #[error("invalid cpu value {given}: Must be at least {least}")]
    CpuTooSmall {
        /// The requested CPUs.
        given: String,
        /// The smallest value.
        least: &'static str,
    },
    /// A limit or reservation is below what the engine can enforce.
    #[error("invalid memory value {0}: Must be at least 4MiB")]
    MemoryTooSmall(i64),
    /// A generic resource is malformed.
    #[error(
        "invalid generic resource {0}: ask for a kind and a number of at least 1, such as gpu=1, or for a kind and a name"
    )]
    Generic(String),
    /// The limit of processes is negative.
    #[error("invalid pids limit {0}: must not be negative")]
    PidsNegative(i64),
    /// A reservation exceeds its limit.
    #[error("{resource} reservation is larger than the limit: no task could use what it reserves")]
    ReservationAboveLimit {
        /// CPU or memory.
        resource: &'static str,
    },
    /// A duration in this field is below zero.
    #[error("TaskSpec: {0} cannot be negative")]
    NegativeDuration(&'static str),
    /// A ratio is not within 0 to 1.
    #[error("TaskSpec: {0} cannot be less than 0 or bigger than 1")]
    Ratio(&'static str),
    /// A reference to a secret or config is malformed.
    #[error(transparent)]
    Reference(#[from] references::MalformedReference),
    /// A template in the spec can't be expanded (Swarm's words).
    #[error("expanding {field} failed: {reason}")]
    Template {
        /// The field with the template.
        field: &'static str,
        /// What is wrong with the template, and where.
        reason: String,
    },
    /// A feature of Docker that mesh doesn't support yet.
    #[error("{feature} not supported by mesh yet: {instead}")]
    NotServed {
        /// The feature, with its verb: "secrets are".
        feature: &'static str,
        /// What the user can do instead.
        instead: &'static str,
    },
}

/// Checks a service's spec by itself.
///
/// # Errors
/// The first mistake.
pub(crate) fn service_spec(spec: &ServiceSpec) -> Result<(), SpecError> {
    service_name(&spec.name)?;
    mode(spec)?;
    balancing(spec)?;
    not_served::in_spec(spec)?;
    let container = spec.task_template.container_spec.as_ref().ok_or(SpecError::RuntimeMissing)?;
    container_spec(container)?;
    references::check(spec, container)?;
    templates::check(spec, container)?;
    policies::resources(spec.task_template.resources.as_ref())?;
    policies::placement(spec.task_template.placement.as_ref())?;
    policies::update("update", spec.update_config.as_ref())?;
    policies::update("rollback", spec.rollback_config.as_ref())?;
    spec.endpoint_spec.as_ref().map_or(Ok(()), endpoint)
}

/// Checks a service's name: a DNS label in either case, with underscores inside.
///
/// # Errors
/// The first mistake.
pub(crate) fn service_name(name: &str) -> Result<(), SpecError> {
    if name.is_empty() {
        return Err(SpecError::NameMissing);
    }
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let ends = [name.bytes().next(), name.bytes().next_back()];
    if !name.bytes().all(inner) || !ends.into_iter().flatten().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(SpecError::NameNotDns);
    }
    if name.len() > NAME_LENGTH_MAX { Err(SpecError::NameTooLong) } else { Ok(()) }
}

/// Checks a network's name, by the rules of a service's.
///
/// # Errors
/// The first mistake.
pub(crate) fn network_name(name: &str) -> Result<(), SpecError> {
    service_name(name)
}

/// Checks a node's spec by itself.
///
/// # Errors
/// The first mistake.
pub(crate) fn node_spec(spec: &NodeSpec) -> Result<(), SpecError> {
    lb::node_weight(&spec.labels)?;
    if spec.name.is_empty() { Ok(()) } else { service_name(&spec.name) }
}

/// Checks mesh's labels by themselves and against the service's ports and mode.
fn balancing(spec: &ServiceSpec) -> Result<(), SpecError> {
    let settings = LbSettings::from_labels(&spec.labels)?;
    let ports = spec.endpoint_spec.iter().flat_map(|endpoint| &endpoint.ports);
    let mut ingress = ports.filter(|port| port.publish_mode == PublishMode::Ingress);
    if settings.mode == Mode::Proxy
        && let Some(port) = ingress.find(|port| port.protocol == Protocol::Udp)
    {
        return Err(SpecError::ProxiedUdp(port.target_port));
    }
    if (spec.mode.global.is_some() || spec.mode.global_job.is_some())
        && let Some(slot) = settings.slot_weights.keys().next()
    {
        return Err(SpecError::SlotOfGlobal(*slot));
    }
    Ok(())
}

fn mode(spec: &ServiceSpec) -> Result<(), SpecError> {
    let mode = &spec.mode;
    let given = [mode.replicated.is_some(), mode.global.is_some(), mode.is_job()];
    let modes = given.iter().filter(|given| **given).count();
    if modes > 1 || (mode.replicated_job.is_some() && mode.global_job.is_some()) {
        return Err(SpecError::Modes);
    }
    if modes == 0 || !mode.extra.is_empty() {
        return Err(SpecError::Mode);
    }
    if mode.is_job() && spec.update_config.is_some() {
        return Err(SpecError::JobUpdate);
    }
    let completions = mode.replicated_job.as_ref().map(ReplicatedJobMode::total_completions);
    match mode.replicas().or(completions) {
        Some(replicas) if replicas > REPLICAS_MAX => Err(SpecError::TooManyReplicas(replicas)),
        _ => Ok(()),
    }
}

fn container_spec(container: &ContainerSpec) -> Result<(), SpecError> {
    if container.image.is_empty() {
        return Err(SpecError::ImageMissing);
    }
    if !is_image_reference(&container.image) {
        return Err(SpecError::ImageInvalid(container.image.clone()));
    }
    health::check(container.healthcheck.as_ref())?;
    let mounts = container.extra.get("Mounts").and_then(|mounts| mounts.as_array());
    let mut targets = BTreeSet::new();
    for mount in mounts.into_iter().flatten() {
        let target = mount.get("Target").and_then(|target| target.as_str()).unwrap_or_default();
        if !targets.insert(target) {
            return Err(SpecError::MountTwice(target.to_owned()));
        }
    }
    Ok(())
}

/// Whether the text has the form `[host[:port]/]path[:tag][@digest]`; whether the image exists is
/// for the node to find out.
fn is_image_reference(image: &str) -> bool {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let digest_ok = digest.is_none_or(|digest| {
        digest
            .split_once(':')
            .is_some_and(|(_, hex)| hex.len() >= 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    });
    let last_slash = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[last_slash..].split_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
        None => (name, None),
    };
    let tag_ok = tag.is_none_or(|tag| {
        (1..=128).contains(&tag.len())
            && !tag.starts_with(['.', '-'])
            && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    });
    let mut components = path.split('/').peekable();
    // The first component is a host only if it looks like one: `library/nginx` has none.
    let is_host = |first: &&str| path.contains('/') && (first.contains(['.', ':']) || *first == "localhost");
    let host = components.next_if(is_host);
    let host_ok = host.is_none_or(|host| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte))
    });
    digest_ok && tag_ok && host_ok && components.all(is_path_component)
}

fn is_path_component(component: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [component.bytes().next(), component.bytes().next_back()];
    !component.is_empty()
        && component.bytes().all(|byte| plain(byte) || b"._-".contains(&byte))
        && ends.into_iter().flatten().all(plain)
}

fn endpoint(endpoint: &EndpointSpec) -> Result<(), SpecError> {
    if !matches!(endpoint.mode.as_str(), "" | "vip" | "dnsrr") {
        return Err(SpecError::EndpointMode(endpoint.mode.clone()));
    }
    let ingress = endpoint.ports.iter().filter(|port| port.publish_mode == PublishMode::Ingress).count();
    if ingress > INGRESS_PORTS_MAX {
        return Err(SpecError::TooManyPorts { count: ingress });
    }
    let mut published = BTreeSet::new();
    for port in &endpoint.ports {
        if port.target_port == 0 {
            return Err(SpecError::TargetPortMissing);
        }
        if port.protocol == Protocol::Sctp {
            return Err(SpecError::Sctp(port.target_port));
        }
        if endpoint.mode == "dnsrr" && port.publish_mode == PublishMode::Ingress {
            return Err(SpecError::DnsrrWithIngress);
        }
        if port.published_port != 0 && !published.insert((port.protocol, port.published_port)) {
            return Err(SpecError::PortTwice);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

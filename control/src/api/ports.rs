//! Which published ports a service gets: asked for, kept from before, or chosen from 30000 on.
//!
//! Invariants: pure; two services never share an ingress port of one protocol; a port that was chosen for a service stays with it
//! while it asks for "any". What is decided here is committed under `Absent` compares, so that of two managers one wins.
//!
//! Left to others: host-mode ports (their node's scheduler and engine), and the claims' transaction (`services::write`).

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use mesh_state::spec::{PortConfig, Protocol, PublishMode};
use thiserror::Error;

use crate::snapshot::ClusterSnapshot;
use mesh_state::ids::ServiceId;

/// Published ports that mesh chooses itself come from here, as Swarm's.
const AUTOMATIC: RangeInclusive<u16> = 30_000..=32_767;

/// Why a port can't be published.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum PortConflict {
    /// Another service has it.
    #[error("port '{port}' is already in use by service '{service}' ({id}) as {role}")]
    InUse {
        /// The published port.
        port: u16,
        /// Name of the service that has it.
        service: String,
        /// Its id.
        id: ServiceId,
        /// How it uses the port.
        role: &'static str,
    },
    /// No automatic port is left.
    #[error(
        "no free {protocol} port between {first} and {last}: publish the service on a port of your choice",
        first = AUTOMATIC.start(),
        last = AUTOMATIC.end()
    )]
    Exhausted {
        /// The transport.
        protocol: Protocol,
    },
}

/// A claim in the store: transport and published port.
pub(crate) type Claim = (Protocol, u16);

/// The ports of a service with the automatic ones filled in.
///
/// `held` are the ports that the service has now; they are its own, and a chosen one is kept where the same target is still
/// published on "any" port.
///
/// # Errors
/// [`PortConflict`] when another service has a port, or none is free.
pub(crate) fn assign(
    snapshot: &ClusterSnapshot,
    service: &ServiceId,
    held: &[PortConfig],
    asked: &[PortConfig],
) -> Result<Vec<PortConfig>, PortConflict> {
    for port in asked.iter().filter(|port| port.published_port != 0) {
        refuse_if_used(snapshot, service, port)?;
    }
    let mut given: BTreeSet<Claim> = claims(asked);
    let mut assigned = Vec::with_capacity(asked.len());
    for port in asked {
        let mut port = port.clone();
        if port.published_port == 0 && port.publish_mode == PublishMode::Ingress {
            let kept = held.iter().find(|old| same_target(old, &port)).map(|old| old.published_port);
            let free = |number: &u16| !given.contains(&(port.protocol, *number));
            let number = kept
                .filter(free)
                .or_else(|| AUTOMATIC.filter(free).find(|number| !claimed(snapshot, port.protocol, *number)))
                .ok_or(PortConflict::Exhausted { protocol: port.protocol })?;
            given.insert((port.protocol, number));
            port.published_port = number;
        }
        assigned.push(port);
    }
    Ok(assigned)
}

/// The claims that ports stand for: the ingress ones that have a number.
pub(crate) fn claims(ports: &[PortConfig]) -> BTreeSet<Claim> {
    ports
        .iter()
        .filter(|port| port.publish_mode == PublishMode::Ingress && port.published_port != 0)
        .map(|port| (port.protocol, port.published_port))
        .collect()
}

fn claimed(snapshot: &ClusterSnapshot, protocol: Protocol, port: u16) -> bool {
    snapshot.ports.contains_key(&(protocol.as_str().to_owned(), port))
}

fn same_target(old: &PortConfig, new: &PortConfig) -> bool {
    old.published_port != 0
        && (old.protocol, old.target_port, old.publish_mode, &old.name)
            == (new.protocol, new.target_port, new.publish_mode, &new.name)
}

/// Refuses a port that another service publishes. Two host-mode ports don't clash here: they may be on different nodes.
fn refuse_if_used(
    snapshot: &ClusterSnapshot,
    service: &ServiceId,
    wanted: &PortConfig,
) -> Result<(), PortConflict> {
    for other in snapshot.services.values().filter(|other| &other.id != service) {
        let clash = other.ports.iter().find(|port| {
            (port.protocol, port.published_port) == (wanted.protocol, wanted.published_port)
                && (port.publish_mode, wanted.publish_mode) != (PublishMode::Host, PublishMode::Host)
        });
        if let Some(clash) = clash {
            return Err(PortConflict::InUse {
                port: wanted.published_port,
                service: other.spec.name.clone(),
                id: other.id.clone(),
                role: match clash.publish_mode {
                    PublishMode::Ingress => "an ingress port",
                    PublishMode::Host => "a host-published port",
                },
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixtures::{self, ingress_port};

    fn host_port(published: u16) -> PortConfig {
        PortConfig { publish_mode: PublishMode::Host, ..ingress_port(published, 80) }
    }

    fn published(ports: &[PortConfig]) -> Vec<u16> {
        ports.iter().map(|port| port.published_port).collect()
    }

    #[test]
    fn a_port_of_another_service_is_refused_in_swarms_words() {
        let snapshot = fixtures::snapshot_with(&[
            fixtures::service("id1", "myweb", vec![ingress_port(80, 80)]),
            fixtures::service("id2", "onhost", vec![host_port(90)]),
        ]);
        let refusal = |port: PortConfig| {
            assign(&snapshot, &"new".into(), &[], &[port]).err().map(|error| error.to_string())
        };
        let as_ingress = "port '80' is already in use by service 'myweb' (id1) as an ingress port";
        let as_host = "port '90' is already in use by service 'onhost' (id2) as a host-published port";
        assert_eq!(refusal(ingress_port(80, 8080)).as_deref(), Some(as_ingress));
        assert_eq!(refusal(host_port(80)).as_deref(), Some(as_ingress), "host mode clashes with ingress");
        assert_eq!(refusal(ingress_port(90, 8080)).as_deref(), Some(as_host));
        assert_eq!(refusal(host_port(90)), None, "two host-mode ports may be on different nodes");
        assert_eq!(refusal(PortConfig { protocol: Protocol::Udp, ..ingress_port(80, 80) }), None);
    }

    #[test]
    fn a_service_does_not_clash_with_itself() {
        let ports = vec![ingress_port(80, 80)];
        let snapshot = fixtures::snapshot_with(&[fixtures::service("id1", "myweb", ports.clone())]);
        assert_eq!(assign(&snapshot, &"id1".into(), &ports, &ports), Ok(ports.clone()));
    }

    #[test]
    fn any_port_means_the_first_free_one_from_30000() {
        let snapshot = fixtures::snapshot_with(&[fixtures::service(
            "id1",
            "first",
            vec![ingress_port(30_000, 80), ingress_port(30_002, 80)],
        )]);
        let asked = [ingress_port(0, 80), ingress_port(30_001, 81), ingress_port(0, 82)];
        let seen = assign(&snapshot, &"new".into(), &[], &asked).unwrap();
        assert_eq!(published(&seen), [30_003, 30_001, 30_004]);
    }

    #[test]
    fn a_chosen_port_stays_with_its_target() {
        let snapshot = ClusterSnapshot::default();
        let held = [ingress_port(30_007, 80)];
        let asked = [ingress_port(0, 81), ingress_port(0, 80)];
        let seen = assign(&snapshot, &"id1".into(), &held, &asked).unwrap();
        assert_eq!(published(&seen), [30_000, 30_007]);
    }

    #[test]
    fn a_host_port_is_neither_chosen_nor_claimed() {
        let seen = assign(&ClusterSnapshot::default(), &"new".into(), &[], &[host_port(0)]).unwrap();
        assert_eq!(published(&seen), [0]);
        assert!(claims(&[host_port(90)]).is_empty());
    }
}

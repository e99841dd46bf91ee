//! Published ports: chooses automatic ones, and finds clashes and words them as Swarm does.
//!
//! Invariants: an ingress port belongs to one service in the whole cluster; a host-mode port
//! clashes with an ingress port, because every node answers on that, and with nothing else; no
//! service gets a port that mesh itself needs; an automatic port stays the same for as long as the
//! service asks for it in the same words.
//!
//! Left to others: claiming the ports, in the transaction that writes the service (the key of the
//! claim decides a race).

use std::collections::{BTreeMap, BTreeSet};

use mesh_state::ids::ServiceId;
use mesh_state::spec::{PortConfig, Protocol, PublishMode};
use thiserror::Error;

use super::own_ports;
use crate::feed::snapshot::ClusterSnapshot;

/// The first automatic port.
pub const FIRST_AUTOMATIC: u16 = 30_000;

/// The last automatic port, as in Swarm.
pub const LAST_AUTOMATIC: u16 = 32_767;

/// Why ports can't be published.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PortError {
    /// Another service has the port.
    #[error("port '{port}' is already in use by service '{name}' ({id}) as {article} {mode} port")]
    InUse {
        /// The published port.
        port: u16,
        /// The other service's name.
        name: String,
        /// The other service's id.
        id: ServiceId,
        /// The article before the mode's name: `a` or `an`.
        article: &'static str,
        /// How the other service publishes it.
        mode: &'static str,
    },
    /// The service asks for one port twice.
    #[error("EndpointSpec: duplicate published ports provided: {port}/{protocol}")]
    Duplicate {
        /// The published port.
        port: u16,
        /// Transport protocol of the port.
        protocol: Protocol,
    },
    /// A component of mesh itself needs the port.
    #[error(
        "port '{port}/{protocol}' is needed by mesh itself, for {purpose}: publish another port, or set mesh to another one"
    )]
    Own {
        /// The published port.
        port: u16,
        /// Transport protocol of the port.
        protocol: Protocol,
        /// What mesh needs it for.
        purpose: String,
    },
    /// No automatic port is free.
    #[error(
        "no automatic {protocol} port is free: all of {FIRST_AUTOMATIC} to {LAST_AUTOMATIC} are published"
    )]
    NoneFree {
        /// Transport protocol of the port.
        protocol: Protocol,
    },
}

/// The ports that `service` (`None` while it is being created) publishes when its spec asks for
/// `wanted` and it has `current`: automatic ports are filled in, and keep their present numbers.
///
/// # Errors
/// A clash with another service, within `wanted` or with mesh itself, or no automatic port left.
pub fn resolve(
    snapshot: &ClusterSnapshot,
    service: Option<&ServiceId>,
    wanted: &[PortConfig],
    current: &[PortConfig],
) -> Result<Vec<PortConfig>, PortError> {
    let mut seen = BTreeSet::new();
    let own = own_ports::reserved(snapshot);
    for port in wanted.iter().filter(|port| port.published_port != 0) {
        if let Some(purpose) = own.get(&(port.protocol, port.published_port)) {
            let (port, protocol) = (port.published_port, port.protocol);
            return Err(PortError::Own { port, protocol, purpose: (*purpose).to_owned() });
        }
        if !seen.insert((port.protocol, port.published_port)) {
            return Err(PortError::Duplicate { port: port.published_port, protocol: port.protocol });
        }
        refuse_clash(snapshot, service, port)?;
    }
    let mut kept: BTreeMap<(Protocol, u16), Vec<u16>> = BTreeMap::new();
    for port in current.iter().rev().filter(|port| port.publish_mode == PublishMode::Ingress) {
        if (FIRST_AUTOMATIC..=LAST_AUTOMATIC).contains(&port.published_port) {
            kept.entry((port.protocol, port.target_port)).or_default().push(port.published_port);
        }
    }
    let is_taken = |seen: &BTreeSet<_>, port| seen.contains(&port) || own.contains_key(&port);
    let mut resolved = Vec::with_capacity(wanted.len());
    for port in wanted {
        let mut port = port.clone();
        if port.published_port == 0 && port.publish_mode == PublishMode::Ingress {
            let before = kept.get_mut(&(port.protocol, port.target_port)).and_then(Vec::pop);
            let published = before
                .filter(|number| !is_taken(&seen, (port.protocol, *number)))
                .or_else(|| lowest_free(snapshot, port.protocol, |number| is_taken(&seen, number)))
                .ok_or(PortError::NoneFree { protocol: port.protocol })?;
            seen.insert((port.protocol, published));
            port.published_port = published;
        }
        resolved.push(port);
    }
    Ok(resolved)
}

/// The ports that a service claims in the store: those that every node answers on.
pub fn claims(ports: &[PortConfig]) -> BTreeSet<(Protocol, u16)> {
    let ingress = ports.iter().filter(|port| port.publish_mode == PublishMode::Ingress);
    ingress.map(|port| (port.protocol, port.published_port)).collect()
}

fn lowest_free(
    snapshot: &ClusterSnapshot,
    protocol: Protocol,
    is_taken: impl Fn((Protocol, u16)) -> bool,
) -> Option<u16> {
    let name = protocol.as_str().to_owned();
    let range = (name.clone(), FIRST_AUTOMATIC)..=(name, LAST_AUTOMATIC);
    let claimed: BTreeSet<u16> = snapshot.ports.range(range).map(|((_, port), _)| *port).collect();
    (FIRST_AUTOMATIC..=LAST_AUTOMATIC).find(|port| !claimed.contains(port) && !is_taken((protocol, *port)))
}

fn refuse_clash(
    snapshot: &ClusterSnapshot,
    service: Option<&ServiceId>,
    port: &PortConfig,
) -> Result<(), PortError> {
    let claim = snapshot.ports.get(&(port.protocol.as_str().to_owned(), port.published_port));
    if let Some(owner) = claim.map(|stored| &stored.value).filter(|owner| Some(*owner) != service) {
        let name = snapshot.services.get(owner).map_or_else(String::new, |stored| stored.spec.name.clone());
        return Err(in_use(port, name, owner, PublishMode::Ingress));
    }
    if port.publish_mode == PublishMode::Host {
        return Ok(());
    }
    let others = snapshot.services.values().filter(|other| Some(&other.id) != service);
    for other in others {
        let clash = |theirs: &PortConfig| {
            theirs.publish_mode == PublishMode::Host
                && theirs.published_port == port.published_port
                && theirs.protocol == port.protocol
        };
        if other.ports.iter().any(clash) {
            return Err(in_use(port, other.spec.name.clone(), &other.id, PublishMode::Host));
        }
    }
    Ok(())
}

fn in_use(port: &PortConfig, name: String, id: &ServiceId, mode: PublishMode) -> PortError {
    let (article, mode) = match mode {
        PublishMode::Ingress => ("an", "ingress"),
        PublishMode::Host => ("a", "host-published"),
    };
    PortError::InUse { port: port.published_port, name, id: id.clone(), article, mode }
}

#[cfg(test)]
mod tests {
    use mesh_state::cluster::Manager;
    use mesh_state::keys;
    use mesh_state::node::OwnPort;

    use super::*;
    use crate::fixtures::{World, ingress, node, service};

    fn world() -> World {
        let mut world = World::new();
        let mut web = service("web-id", 1);
        web.spec.name = "myweb".to_owned();
        web.ports = vec![ingress(80, 80), ingress(30_000, 81)];
        let mut host = ingress(9000, 9000);
        host.publish_mode = PublishMode::Host;
        web.ports.push(host);
        world.put_service(&web);
        world
    }

    fn numbers(ports: &[PortConfig]) -> Vec<u16> {
        ports.iter().map(|port| port.published_port).collect()
    }

    #[test]
    fn clashes_are_worded_as_swarm_words_them() {
        let world = world();
        let refused = |port| resolve(&world.snapshot, None, &[port], &[]).unwrap_err().to_string();
        assert_eq!(
            refused(ingress(80, 8080)),
            "port '80' is already in use by service 'myweb' (web-id) as an ingress port"
        );
        let mut host = ingress(80, 80);
        host.publish_mode = PublishMode::Host;
        assert!(refused(host).ends_with("as an ingress port"), "a host port was put on an ingress port");
        assert!(refused(ingress(9000, 1)).ends_with("(web-id) as a host-published port"));
        let mut udp = ingress(80, 80);
        udp.protocol = Protocol::Udp;
        assert!(resolve(&world.snapshot, None, &[udp], &[]).is_ok(), "UDP 80 clashed with TCP 80");
        assert!(
            resolve(&world.snapshot, Some(&"web-id".into()), &[ingress(80, 1)], &[]).is_ok(),
            "own port clashed"
        );
        assert!(matches!(
            resolve(&world.snapshot, None, &[ingress(90, 1), ingress(90, 2)], &[]),
            Err(PortError::Duplicate { port: 90, .. })
        ));
    }

    #[test]
    fn ports_that_mesh_needs_are_refused_with_their_purpose_and_never_chosen() {
        let mut world = world();
        let mut agent = node("n");
        agent.description.own_ports = vec![
            OwnPort::new(Protocol::Udp, 4799, "the tunnel between nodes"),
            OwnPort::new(Protocol::Tcp, 30_001, "the relay between nodes"),
        ];
        world.add_node(&agent);
        let manager = Manager {
            name: "m".to_owned(),
            own_ports: vec![OwnPort::new(Protocol::Tcp, 2377, "agents' streams to managers")],
            ..Manager::default()
        };
        world.put(keys::manager("m"), &manager);
        let refused = |port, protocol, mode| {
            let wanted = PortConfig { protocol, publish_mode: mode, ..ingress(port, 80) };
            resolve(&world.snapshot, None, &[wanted], &[]).err().map(|error| error.to_string())
        };
        let expected = "port '2377/tcp' is needed by mesh itself, for agents' streams to managers: publish another port, \
                        or set mesh to another one";
        assert_eq!(refused(2377, Protocol::Tcp, PublishMode::Ingress).as_deref(), Some(expected));
        assert_eq!(
            refused(2377, Protocol::Tcp, PublishMode::Host).as_deref(),
            Some(expected),
            "in host mode"
        );
        assert!(
            refused(4799, Protocol::Udp, PublishMode::Ingress).is_some(),
            "a service may publish the tunnel's port"
        );
        assert_eq!(refused(4799, Protocol::Tcp, PublishMode::Ingress), None, "its number in TCP is free");

        let given = resolve(&world.snapshot, None, &[ingress(0, 1), ingress(0, 2)], &[]).unwrap();
        assert_eq!(numbers(&given), [30_002, 30_003], "30000 is a service's, 30001 the relay's");
        let had = [ingress(30_001, 81)];
        let moved = resolve(&world.snapshot, Some(&"web-id".into()), &[ingress(0, 81)], &had).unwrap();
        assert_eq!(numbers(&moved), [30_002], "an automatic port that mesh needs since is left");
    }

    #[test]
    fn automatic_ports_are_the_lowest_free_and_stay() {
        let world = world();
        let given =
            resolve(&world.snapshot, None, &[ingress(0, 1), ingress(30_001, 2), ingress(0, 3)], &[]).unwrap();
        assert_eq!(numbers(&given), [30_002, 30_001, 30_003]);
        let own = ServiceId::from("web-id");
        let current = &world.snapshot.services[&own].ports;
        let again = resolve(&world.snapshot, Some(&own), &[ingress(0, 81), ingress(0, 82)], current).unwrap();
        assert_eq!(numbers(&again), [30_000, 30_001], "expected the port it had for target 81 to stay");
    }
}

//! Derives events from changes of stored objects. Pure.
//!
//! Attributes are moby's (`daemon/events.go`): the object's name, and what an update changed as
//! `x.old` and `x.new`.

use std::collections::{BTreeMap, BTreeSet};

use mesh_state::Timestamp;
use mesh_state::cluster::Manager;
use mesh_state::codec;
use mesh_state::dependency::{Dependency, DependencyKind};
use mesh_state::ids::{DependencyId, NetworkId, NodeId, ServiceId};
use mesh_state::keys::{self, Key};
use mesh_state::node::{Availability, Node, NodeRole, NodeState};
use mesh_state::service::Service;
use mesh_state::store::Change;

use crate::feed::snapshot::{ClusterSnapshot, Stored};

/// The kind of object that an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Something happened to a service.
    Service,
    /// Something happened to a node.
    Node,
    /// A network of the cluster.
    Network,
    /// Something happened to a secret.
    Secret,
    /// Something happened to a config.
    Config,
}

impl EventKind {
    /// Docker's name of the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Node => "node",
            Self::Network => "network",
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The object was created.
    Create,
    /// The object was changed.
    Update,
    /// The object was removed.
    Remove,
}

impl Action {
    /// Docker's name of the action.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Remove => "remove",
        }
    }
}

/// An event of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmEvent {
    /// The kind of object.
    pub kind: EventKind,
    /// What happened.
    pub action: Action,
    /// The object's id.
    pub id: String,
    /// The object's name, and what changed.
    pub attributes: BTreeMap<String, String>,
    /// When it happened.
    pub at: Timestamp,
}

/// An object that events are about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Service(ServiceId),
    Node(NodeId),
    Network(NetworkId),
    Dependency(DependencyKind, DependencyId),
}

/// What events compare of a subject.
#[derive(Clone)]
enum Facts {
    Service(Stored<Service>),
    Node(NodeFacts),
    Network { name: String, created_at: Timestamp },
    Dependency(Stored<Dependency>),
}

/// A node as Docker's clients see it.
#[derive(Clone)]
struct NodeFacts {
    node: Stored<Node>,
    state: &'static str,
    changed_at: Timestamp,
    /// For a manager: whether it leads, and whether it is reachable.
    standing: Option<(bool, bool)>,
}

/// Applies `change` to `snapshot`; returns the event that it makes.
pub(crate) fn of_change(
    snapshot: &mut ClusterSnapshot,
    change: Change,
    now: Timestamp,
) -> Option<SwarmEvent> {
    let key = keys::parse(change.key());
    let subject = key.as_ref().and_then(|key| subject(snapshot, key, &change));
    let before = subject.as_ref().and_then(|subject| facts(snapshot, subject));
    snapshot.apply_seen(change, now);
    let subject = subject?;
    // A change of another record alone (a task, a status) is no event of the object.
    let own = matches!(key, Some(Key::Service(_) | Key::Node(_) | Key::Network(_) | Key::Dependency(..)));
    event(&subject, before, facts(snapshot, &subject), own, now)
}

/// The events between two snapshots, where the changes themselves were missed.
pub(crate) fn after_listing(old: &ClusterSnapshot, new: &ClusterSnapshot, now: Timestamp) -> Vec<SwarmEvent> {
    let of = |snapshot: &ClusterSnapshot| -> Vec<Subject> {
        let services = snapshot.services.keys().cloned().map(Subject::Service);
        let nodes = snapshot.nodes.keys().cloned().map(Subject::Node);
        let networks = snapshot.networks.keys().cloned().map(Subject::Network);
        let dependencies = snapshot.dependencies.keys();
        let dependencies = dependencies.map(|(kind, id)| Subject::Dependency(*kind, id.clone()));
        services.chain(nodes).chain(networks).chain(dependencies).collect()
    };
    let all: BTreeSet<Subject> = of(old).into_iter().chain(of(new)).collect();
    let events = all.iter().filter_map(|subject| {
        let (before, after) = (facts(old, subject), facts(new, subject));
        let rewritten = match (&before, &after) {
            (Some(Facts::Service(before)), Some(Facts::Service(after))) => {
                before.mod_revision != after.mod_revision
            }
            (Some(Facts::Node(before)), Some(Facts::Node(after))) => {
                before.node.mod_revision != after.node.mod_revision
            }
            (Some(Facts::Dependency(before)), Some(Facts::Dependency(after))) => {
                before.mod_revision != after.mod_revision
            }
            _ => false,
        };
        event(subject, before, after, rewritten, now)
    });
    events.collect()
}

fn subject(snapshot: &ClusterSnapshot, key: &Key, change: &Change) -> Option<Subject> {
    let node_of = |name: &str| Some(Subject::Node(snapshot.node_of_manager(name)?.clone()));
    match key {
        Key::Service(id) => Some(Subject::Service(id.clone())),
        Key::Node(id) | Key::Liveness(id) => Some(Subject::Node(id.clone())),
        Key::Network(id) => Some(Subject::Network(id.clone())),
        Key::Dependency(kind, id) => Some(Subject::Dependency(*kind, id.clone())),
        Key::Manager(name) => match change {
            Change::Put(item) => codec::decode::<Manager>(&item.value).ok()?.node.map(Subject::Node),
            Change::Deleted { .. } => node_of(name),
        },
        Key::Leader => match change {
            Change::Put(item) => node_of(&codec::decode::<Manager>(&item.value).ok()?.name),
            Change::Deleted { .. } => node_of(&snapshot.leader.as_ref()?.name),
        },
        _ => None,
    }
}

fn facts(snapshot: &ClusterSnapshot, subject: &Subject) -> Option<Facts> {
    match subject {
        Subject::Service(id) => snapshot.services.get(id).cloned().map(Facts::Service),
        Subject::Dependency(kind, id) => {
            snapshot.dependencies.get(&(*kind, id.clone())).cloned().map(Facts::Dependency)
        }
        Subject::Network(id) => snapshot
            .networks
            .get(id)
            .map(|network| Facts::Network { name: network.name.clone(), created_at: network.created_at }),
        Subject::Node(id) => {
            let node = snapshot.nodes.get(id)?.clone();
            let liveness = snapshot.liveness.get(id);
            let standing = (node.spec.role == NodeRole::Manager)
                .then(|| (snapshot.is_led_from(id), snapshot.manager_on(id).is_some()));
            // Docker's clients see a silent node as ready, and a node that was never heard as
            // unknown.
            let state = match liveness.map(|liveness| liveness.state) {
                None => "unknown",
                Some(NodeState::Down) => "down",
                Some(NodeState::Ready | NodeState::Silent) => "ready",
            };
            let changed_at = liveness.map_or(node.updated_at, |liveness| liveness.since.max(node.updated_at));
            Some(Facts::Node(NodeFacts { node, state, changed_at, standing }))
        }
    }
}

/// The event between two states of a subject. `own` is true if the object's own record was written.
fn event(
    subject: &Subject,
    before: Option<Facts>,
    after: Option<Facts>,
    own: bool,
    now: Timestamp,
) -> Option<SwarmEvent> {
    let (action, mut attributes, at) = match (before, after) {
        (None, None) => return None,
        (None, Some(after)) => (Action::Create, BTreeMap::from([named(&after)]), after.made_at()),
        (Some(before), None) => (Action::Remove, BTreeMap::from([named(&before)]), now),
        (Some(before), Some(after)) => {
            let (changes, rewritten) = changes(&before, &after);
            if changes.is_empty() && !(own && rewritten) {
                return None;
            }
            let attributes = changes.into_iter().chain([named(&after)]).collect();
            (Action::Update, attributes, after.changed_at().unwrap_or(now))
        }
    };
    attributes.retain(|_, value: &mut String| !value.is_empty());
    let (kind, id) = match subject {
        Subject::Service(id) => (EventKind::Service, id.to_string()),
        Subject::Node(id) => (EventKind::Node, id.to_string()),
        Subject::Network(id) => (EventKind::Network, id.to_string()),
        Subject::Dependency(DependencyKind::Secret, id) => (EventKind::Secret, id.to_string()),
        Subject::Dependency(DependencyKind::Config, id) => (EventKind::Config, id.to_string()),
    };
    Some(SwarmEvent { kind, action, id, attributes, at })
}

impl Facts {
    fn name(&self) -> &str {
        match self {
            Self::Service(service) => &service.spec.name,
            Self::Node(facts) if facts.node.spec.name.is_empty() => &facts.node.description.hostname,
            Self::Node(facts) => &facts.node.spec.name,
            Self::Network { name, .. } => name,
            Self::Dependency(dependency) => &dependency.name,
        }
    }

    fn made_at(&self) -> Timestamp {
        match self {
            Self::Service(service) => service.created_at,
            Self::Node(facts) => facts.node.created_at,
            Self::Network { created_at, .. } => *created_at,
            Self::Dependency(dependency) => dependency.created_at,
        }
    }

    /// When the object last changed, if its record says so.
    fn changed_at(&self) -> Option<Timestamp> {
        match self {
            // The updater's writes carry no moment.
            Self::Service(_) | Self::Network { .. } => None,
            Self::Node(facts) => Some(facts.changed_at),
            Self::Dependency(dependency) => Some(dependency.updated_at),
        }
    }
}

fn named(facts: &Facts) -> (String, String) {
    ("name".to_owned(), facts.name().to_owned())
}

/// The attributes of a change, and whether a client can see any difference.
fn changes(before: &Facts, after: &Facts) -> (BTreeMap<String, String>, bool) {
    match (before, after) {
        (Facts::Service(before), Facts::Service(after)) => {
            let rewritten = before.spec_version != after.spec_version || before.ports != after.ports;
            (service_changes(before, after), rewritten)
        }
        (Facts::Node(before), Facts::Node(after)) => {
            let (old, new) = (&before.node.value, &after.node.value);
            let rewritten =
                old.spec != new.spec || old.description != new.description || old.address != new.address;
            (node_changes(before, after), rewritten)
        }
        (Facts::Dependency(_), Facts::Dependency(_)) => (BTreeMap::new(), true),
        _ => (BTreeMap::new(), false),
    }
}

fn service_changes(before: &Service, after: &Service) -> BTreeMap<String, String> {
    let image = |service: &Service| {
        let container = service.spec.task_template.container_spec.as_ref();
        container.map(|container| container.image.clone()).unwrap_or_default()
    };
    let replicas = |service: &Service| {
        service.spec.mode.replicas().map(|replicas| replicas.to_string()).unwrap_or_default()
    };
    let state = |service: &Service| {
        let status = service.update_status.as_ref();
        status.map(|status| status.state.as_str().to_owned()).unwrap_or_default()
    };
    let mut changes = BTreeMap::new();
    note(&mut changes, "image", image(before), image(after));
    note(&mut changes, "replicas", replicas(before), replicas(after));
    if after.update_status.is_some() {
        note(&mut changes, "updatestate", state(before), state(after));
    }
    changes
}

fn node_changes(before: &NodeFacts, after: &NodeFacts) -> BTreeMap<String, String> {
    let availability = |facts: &NodeFacts| match facts.node.spec.availability {
        Availability::Active => "active".to_owned(),
        Availability::Pause => "pause".to_owned(),
        Availability::Drain => "drain".to_owned(),
    };
    let mut changes = BTreeMap::new();
    note(&mut changes, "availability", availability(before), availability(after));
    let role = |facts: &NodeFacts| facts.node.spec.role.as_str().to_owned();
    note(&mut changes, "role", role(before), role(after));
    note(&mut changes, "state", before.state.to_owned(), after.state.to_owned());
    if let (Some((led, was_there)), Some((leads, is_there))) = (before.standing, after.standing) {
        note(&mut changes, "leader", led.to_string(), leads.to_string());
        let reachability = |there| if there { "reachable" } else { "unreachable" }.to_owned();
        note(&mut changes, "reachability", reachability(was_there), reachability(is_there));
    }
    changes
}

fn note(changes: &mut BTreeMap<String, String>, what: &str, old: String, new: String) {
    if old != new {
        changes.insert(format!("{what}.old"), old);
        changes.insert(format!("{what}.new"), new);
    }
}

#[cfg(test)]
mod tests;

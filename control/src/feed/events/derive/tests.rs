//! The events of an object's life, change by change.

use mesh_state::service::{UpdateState, UpdateStatus};
use mesh_state::store::KeyValue;
use serde::Serialize;

use super::*;
use crate::fixtures::{node, service};

/// A store to write to, and the events derived from its changes.
#[derive(Default)]
struct Derived {
    snapshot: ClusterSnapshot,
    events: Vec<String>,
}

impl Derived {
    fn tell(&mut self, change: Change) {
        let event = of_change(&mut self.snapshot, change, Timestamp::default());
        self.events.extend(event.map(|event| line(&event)));
    }

    fn put(&mut self, key: String, value: &impl Serialize) {
        let mod_revision = self.snapshot.revision + 1;
        let value = codec::encode(value).unwrap();
        self.tell(Change::Put(KeyValue { key, value, create_revision: mod_revision, mod_revision }));
    }

    fn delete(&mut self, key: String) {
        let mod_revision = self.snapshot.revision + 1;
        self.tell(Change::Deleted { key, mod_revision });
    }
}

fn line(event: &SwarmEvent) -> String {
    let attributes: Vec<_> = event.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{} {} {}", event.kind.as_str(), event.action.as_str(), attributes.join(" "))
}

#[test]
fn a_services_life_makes_events() {
    let mut told = Derived::default();
    let key = keys::service(&"web".into());
    let mut web = service("web", 1);
    told.put(key.clone(), &web);
    web.spec.mode = service("web", 3).spec.mode;
    web.spec_version += 1;
    told.put(key.clone(), &web);
    let at = Timestamp::default();
    let (message, batch_at) = (String::new(), None);
    let mut status =
        UpdateStatus { state: UpdateState::Updating, started_at: at, completed_at: None, message, batch_at };
    web.update_status = Some(status.clone());
    told.put(key.clone(), &web);
    status.batch_at = Some(at);
    web.update_status = Some(status.clone());
    told.put(key.clone(), &web);
    status.state = UpdateState::Completed;
    web.update_status = Some(status);
    told.put(key.clone(), &web);
    told.delete(key);
    let name = "name=web";
    assert_eq!(
        told.events,
        [
            format!("service create {name}"),
            format!("service update {name} replicas.new=3 replicas.old=1"),
            format!("service update {name} updatestate.new=updating"),
            format!("service update {name} updatestate.new=completed updatestate.old=updating"),
            format!("service remove {name}"),
        ]
    );
}

#[test]
fn a_nodes_life_makes_the_events_that_dockers_clients_know() {
    let mut told = Derived::default();
    let id = NodeId::from("a");
    let mut a = node("a");
    told.put(keys::node(&id), &a);
    let heard = |state| mesh_state::node::Liveness {
        state,
        since: Timestamp::default(),
        message: String::new(),
        manager: "m".to_owned(),
    };
    for state in [NodeState::Ready, NodeState::Silent, NodeState::Ready, NodeState::Silent, NodeState::Down] {
        told.put(keys::liveness(&id), &heard(state));
    }
    a.spec.availability = Availability::Drain;
    told.put(keys::node(&id), &a);
    told.put(keys::node(&id), &a);
    told.put(keys::ack(&id), &7_u64);
    told.delete(keys::node(&id));
    let name = a.description.hostname;
    assert_eq!(
        told.events,
        [
            format!("node create name={name}"),
            format!("node update name={name} state.new=ready state.old=unknown"),
            format!("node update name={name} state.new=down state.old=ready"),
            format!("node update availability.new=drain availability.old=active name={name}"),
            format!("node remove name={name}"),
        ]
    );
}

#[test]
fn a_secrets_life_makes_events() {
    let mut told = Derived::default();
    let key = keys::dependency(DependencyKind::Secret, &"s1".into());
    let at = Timestamp::default();
    let secret = Dependency {
        id: "s1".into(),
        name: "password".to_owned(),
        labels: mesh_state::spec::Labels::new(),
        templating: None,
        extra: mesh_state::spec::Extra::default(),
        created_at: at,
        updated_at: at,
    };
    told.put(key.clone(), &secret);
    told.put(key.clone(), &secret);
    told.delete(key);
    let name = "name=password";
    assert_eq!(
        told.events,
        [format!("secret create {name}"), format!("secret update {name}"), format!("secret remove {name}"),]
    );
}

#[test]
fn a_new_leader_makes_events() {
    let mut told = Derived::default();
    let id = NodeId::from("a");
    let mut a = node("a");
    a.spec.role = NodeRole::Manager;
    told.put(keys::node(&id), &a);
    let name = a.description.hostname.clone();
    let mut namesake = node("b");
    namesake.description.hostname.clone_from(&name);
    namesake.spec.role = NodeRole::Manager;
    told.put(keys::node(&namesake.id), &namesake);
    let manager = Manager { name: name.clone(), node: Some(id), ..Manager::default() };
    told.put(keys::manager(&name), &manager);
    told.put(keys::manager(&name), &manager);
    told.put(keys::LEADER.to_owned(), &manager);
    told.delete(keys::LEADER.to_owned());
    assert_eq!(
        told.events[2..],
        [
            format!("node update name={name} reachability.new=reachable reachability.old=unreachable"),
            format!("node update leader.new=true leader.old=false name={name}"),
            format!("node update leader.new=false leader.old=true name={name}"),
        ]
    );
}

#[test]
fn a_new_listing_makes_the_events_that_were_missed() {
    let (mut before, mut after) = (Derived::default(), Derived::default());
    for id in ["gone", "kept"] {
        before.put(keys::service(&id.into()), &service(id, 1));
    }
    after.snapshot = before.snapshot.clone();
    after.delete(keys::service(&"gone".into()));
    after.put(keys::service(&"new".into()), &service("new", 1));
    after.put(keys::service(&"kept".into()), &service("kept", 2));
    let events = after_listing(&before.snapshot, &after.snapshot, Timestamp::default());
    let lines: Vec<_> = events.iter().map(line).collect();
    assert_eq!(
        lines,
        [
            "service remove name=gone",
            "service update name=kept replicas.new=2 replicas.old=1",
            "service create name=new",
        ]
    );
}

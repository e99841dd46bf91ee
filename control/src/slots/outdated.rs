//! Whether a task still matches its service's spec.
//!
//! Invariants: specs are compared by what they mean, never by how they are written (`docker_json`).
//! What doesn't change a task's container or its ports makes nothing dirty: labels, scale, update
//! settings. A change of constraints alone spares the tasks whose nodes meet the new ones.

use std::cell::RefCell;
use std::collections::BTreeMap;

use mesh_state::service::Service;
use mesh_state::spec::ServiceSpec;
use mesh_state::task::Task;
use serde_json::{Map, Value};

use super::eligible::Suits;
use crate::docker_json::meaning;
use crate::docker_json::shapes::{ENDPOINT_SPEC, NETWORK_ATTACHMENTS, TASK_SPEC};
use crate::feed::snapshot::ClusterSnapshot;

/// How an older version of a spec differs from the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    Nothing,
    Constraints,
    Template,
}

/// The tasks of a service that its current spec replaces. Each version of the spec is compared
/// once.
#[derive(Debug)]
pub struct OutdatedTasks<'a> {
    snapshot: &'a ClusterSnapshot,
    service: &'a Service,
    suits: Suits,
    versions: RefCell<BTreeMap<u64, Difference>>,
}

impl<'a> OutdatedTasks<'a> {
    /// The outdated tasks of `service`.
    pub fn new(snapshot: &'a ClusterSnapshot, service: &'a Service) -> Self {
        let suits = Suits::new(&service.spec.task_template);
        Self { snapshot, service, suits, versions: RefCell::default() }
    }

    /// Whether the task was created from an older spec that differs in its template or ports.
    pub fn contains(&self, task: &Task) -> bool {
        if task.spec_version == self.service.spec_version {
            return false;
        }
        if self.service.spec.mode.is_job() {
            return true;
        }
        let compare = || {
            let old = self.snapshot.spec_of(task);
            old.map_or(Difference::Template, |old| difference(old, &self.service.spec))
        };
        match *self.versions.borrow_mut().entry(task.spec_version).or_insert_with(compare) {
            Difference::Nothing => false,
            Difference::Template => true,
            Difference::Constraints => !self.node_meets(task),
        }
    }

    /// A task without a node can be placed anew for nothing.
    fn node_meets(&self, task: &Task) -> bool {
        let node = task.node_id.as_ref().and_then(|id| self.snapshot.nodes.get(id));
        node.is_some_and(|node| self.suits.constraints_hold(node))
    }
}

/// Whether tasks of the spec `old` are to be replaced under the spec `new`, wherever they are.
pub(crate) fn replaces_tasks(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    difference(old, new) != Difference::Nothing
}

fn difference(old: &ServiceSpec, new: &ServiceSpec) -> Difference {
    if old == new {
        return Difference::Nothing;
    }
    // What can't be compared is taken for different.
    let (Ok(mut old), Ok(mut new)) = (Meant::by(old), Meant::by(new)) else { return Difference::Template };
    if old == new {
        return Difference::Nothing;
    }
    old.forget_constraints();
    new.forget_constraints();
    if old == new { Difference::Constraints } else { Difference::Template }
}

/// What a spec means to its tasks.
#[derive(Debug, PartialEq)]
struct Meant {
    template: Map<String, Value>,
    endpoint: Option<Value>,
}

impl Meant {
    fn by(spec: &ServiceSpec) -> Result<Self, serde_json::Error> {
        let template = meaning::of(&spec.task_template, &TASK_SPEC)?;
        let mut template = match template {
            Some(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        // Older clients name a service's networks beside the template.
        if !template.contains_key("Networks")
            && let Some(networks) = meaning::of(&spec.extra.get("Networks"), &NETWORK_ATTACHMENTS)?
        {
            template.insert("Networks".to_owned(), networks);
        }
        Ok(Self { template, endpoint: meaning::of(&spec.endpoint_spec, &ENDPOINT_SPEC)? })
    }

    fn forget_constraints(&mut self) {
        if let Some(Value::Object(placement)) = self.template.get_mut("Placement") {
            placement.remove("Constraints");
            if placement.is_empty() {
                self.template.remove("Placement");
            }
        }
    }
}

/// Whether a task belongs to the present execution of its job; a task of another service always
/// does.
pub fn is_current(service: &Service, task: &Task) -> bool {
    !service.spec.mode.is_job() || task.job_iteration == service.job.as_ref().map(|job| job.iteration)
}

/// A version that no spec of the service has or had.
pub fn next_version(snapshot: &ClusterSnapshot, service: &Service) -> u64 {
    let range = (service.id.clone(), 0)..=(service.id.clone(), u64::MAX);
    let newest = snapshot.specs.range(range).next_back().map_or(0, |((_, version), _)| *version);
    newest.max(service.spec_version) + 1
}

#[cfg(test)]
mod tests {
    use mesh_state::spec::{EndpointSpec, Resources, UpdateConfig};
    use serde_json::json;

    use super::*;
    use crate::fixtures::{World, ingress, node, service, task};

    /// Whether a task of version 1 on node `a` (label zone=in) is dirty after `change`.
    fn dirty_after(change: impl FnOnce(&mut ServiceSpec)) -> bool {
        let mut world = World::new();
        let mut member = node("a");
        member.spec.labels.insert("zone".to_owned(), "in".to_owned());
        world.add_node(&member);
        world.put_service(&service("web", 1));
        let mut old = task("t", "web", 1);
        old.node_id = Some("a".into());
        world.put_task(&old);
        world.update_service("web", change);
        let stored = &world.snapshot.services[&"web".into()];
        OutdatedTasks::new(&world.snapshot, stored).contains(&old)
    }

    #[test]
    fn only_what_reaches_the_task_makes_it_dirty() {
        assert!(!dirty_after(|_| {}), "nothing changed");
        assert!(!dirty_after(|spec| drop(spec.labels.insert("a".into(), "b".into()))), "a label");
        assert!(!dirty_after(|spec| spec.mode.replicated = None), "the scale");
        assert!(!dirty_after(|spec| spec.update_config = Some(UpdateConfig::default())), "update settings");
        assert!(dirty_after(|spec| spec.task_template.force_update += 1), "--force");
        assert!(dirty_after(|spec| spec.task_template.container_spec = None), "the container");
        assert!(
            dirty_after(|spec| spec.endpoint_spec.get_or_insert_default().ports.push(ingress(80, 80))),
            "a port"
        );
    }

    #[test]
    fn another_way_of_writing_the_same_makes_nothing_dirty() {
        let container = |name: &'static str, value: Value| {
            move |spec: &mut ServiceSpec| {
                let container = spec.task_template.container_spec.get_or_insert_default();
                container.extra.insert(name.to_owned(), value);
            }
        };
        for (name, value) in [
            ("TTY", json!(false)),
            ("ReadOnly", json!(false)),
            ("OpenStdin", json!(false)),
            ("Mounts", Value::Null),
            ("DNSConfig", json!({})),
            ("Isolation", json!("default")),
            ("Extra", json!(1)),
        ] {
            assert!(!dirty_after(container(name, value.clone())), "{name} = {value}");
        }
        assert!(dirty_after(container("TTY", json!(true))));
        assert!(dirty_after(container("Init", json!(false))), "not the engine's choice any more");
        assert!(!dirty_after(|spec| spec.task_template.resources = Some(Resources::default())));
        assert!(!dirty_after(|spec| spec.endpoint_spec = Some(EndpointSpec::default())));
        assert!(!dirty_after(|spec| drop(spec.extra.insert("Networks".to_owned(), json!([])))));
        let beside = |spec: &mut ServiceSpec| {
            spec.extra.insert("Networks".to_owned(), json!([{"Target": "n"}]));
        };
        assert!(dirty_after(beside), "a network named beside the template");
    }

    #[test]
    fn constraints_that_still_hold_spare_the_task() {
        let constrained = |text: &'static str| {
            move |spec: &mut ServiceSpec| {
                spec.task_template.placement.get_or_insert_default().constraints.push(text.to_owned());
            }
        };
        assert!(!dirty_after(constrained("node.labels.zone==in")));
        assert!(dirty_after(constrained("node.labels.zone==out")));
        assert!(
            dirty_after(|spec| {
                constrained("node.labels.zone==in")(spec);
                spec.task_template.force_update += 1;
            }),
            "something else changed too"
        );
    }
}

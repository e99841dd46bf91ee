//! Whether a task still matches its service's spec.
//!
//! Invariants: specs are compared by meaning, never by spelling (`docker_json`). A change that
//! affects neither a task's container nor its ports makes no task outdated: labels, scale, update
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

/// The tasks of a service that were made from an older spec and have to be replaced. Each version
/// of the spec is compared once.
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

    /// True for a task without a node, too: it is placed again without being replaced.
    fn node_meets(&self, task: &Task) -> bool {
        let node = task.node_id.as_ref().and_then(|id| self.snapshot.nodes.get(id));
        node.is_some_and(|node| self.suits.constraints_hold(node))
    }
}

/// Whether tasks of the spec `old` are replaced under the spec `new`, wherever they are.
pub(crate) fn replaces_tasks(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    difference(old, new) != Difference::Nothing
}

fn difference(old: &ServiceSpec, new: &ServiceSpec) -> Difference {
    if old == new {
        return Difference::Nothing;
    }
    // Specs that can't be compared count as different.
    let (Ok(mut old), Ok(mut new)) = (Meant::by(old), Meant::by(new)) else { return Difference::Template };
    if old == new {
        return Difference::Nothing;
    }
    old.forget_constraints();
    new.forget_constraints();
    if old == new { Difference::Constraints } else { Difference::Template }
}

/// The parts of a spec that its tasks depend on, in one spelling.
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
        // Older clients put a service's networks beside the task template.
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

/// Whether a task belongs to the present execution of its job; true for every task of a service
/// that is no job.
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

    /// Whether a task of version 1 on node `a` (label zone=in) is outdated after `change`.
    fn outdated_after(change: impl FnOnce(&mut ServiceSpec)) -> bool {
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
    fn only_changes_that_reach_the_task_make_it_outdated() {
        assert!(!outdated_after(|_| {}), "nothing changed");
        assert!(!outdated_after(|spec| drop(spec.labels.insert("a".into(), "b".into()))), "a label");
        assert!(!outdated_after(|spec| spec.mode.replicated = None), "the scale");
        assert!(
            !outdated_after(|spec| spec.update_config = Some(UpdateConfig::default())),
            "update settings"
        );
        assert!(outdated_after(|spec| spec.task_template.force_update += 1), "--force");
        assert!(outdated_after(|spec| spec.task_template.container_spec = None), "the container");
        assert!(
            outdated_after(|spec| spec.endpoint_spec.get_or_insert_default().ports.push(ingress(80, 80))),
            "a port"
        );
    }

    #[test]
    fn another_spelling_of_the_same_spec_makes_no_task_outdated() {
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
            assert!(!outdated_after(container(name, value.clone())), "{name} = {value}");
        }
        assert!(outdated_after(container("TTY", json!(true))));
        assert!(
            outdated_after(container("Init", json!(false))),
            "an explicit value instead of the engine's default"
        );
        assert!(!outdated_after(|spec| spec.task_template.resources = Some(Resources::default())));
        assert!(!outdated_after(|spec| spec.endpoint_spec = Some(EndpointSpec::default())));
        assert!(!outdated_after(|spec| drop(spec.extra.insert("Networks".to_owned(), json!([])))));
        let beside = |spec: &mut ServiceSpec| {
            spec.extra.insert("Networks".to_owned(), json!([{"Target": "n"}]));
        };
        assert!(outdated_after(beside), "a network named beside the template");
        let within = |value: Value| {
            move |spec: &mut ServiceSpec| {
                spec.task_template.extra.insert("Networks".to_owned(), value);
            }
        };
        assert!(outdated_after(within(json!([{"Target": "n", "Aliases": ["a"]}]))), "a network");
        assert!(!outdated_after(within(json!([]))), "no network, written out");
        let mode = |mode: &'static str| {
            move |spec: &mut ServiceSpec| {
                spec.endpoint_spec.get_or_insert_default().mode = mode.to_owned();
            }
        };
        assert!(outdated_after(mode("dnsrr")), "its tasks are behind no virtual IP any more");
        assert!(!outdated_after(mode("vip")), "the default, written out");
    }

    #[test]
    fn constraints_that_still_hold_spare_the_task() {
        let constrained = |text: &'static str| {
            move |spec: &mut ServiceSpec| {
                spec.task_template.placement.get_or_insert_default().constraints.push(text.to_owned());
            }
        };
        assert!(!outdated_after(constrained("node.labels.zone==in")));
        assert!(outdated_after(constrained("node.labels.zone==out")));
        assert!(
            outdated_after(|spec| {
                constrained("node.labels.zone==in")(spec);
                spec.task_template.force_update += 1;
            }),
            "something else changed too"
        );
    }
}

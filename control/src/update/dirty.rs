//! Whether a task still matches its service's spec.
//!
//! Invariants: what doesn't change a task's container or its ports makes nothing dirty: labels, scale, update settings. A change of
//! constraints alone spares the tasks whose nodes meet the new ones.

use std::cell::RefCell;
use std::collections::BTreeMap;

use mesh_state::service::Service;
use mesh_state::spec::{ServiceSpec, TaskSpec};
use mesh_state::task::Task;

use crate::scheduler::suits::Suits;
use crate::snapshot::ClusterSnapshot;

/// How an older version of a spec differs from the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    Nothing,
    Constraints,
    Template,
}

/// Judges the tasks of one service; each version of its spec is compared once.
#[derive(Debug)]
pub struct Dirt<'a> {
    snapshot: &'a ClusterSnapshot,
    service: &'a Service,
    suits: Suits,
    versions: RefCell<BTreeMap<u64, Difference>>,
}

impl<'a> Dirt<'a> {
    /// A judge of the tasks of `service`.
    pub fn new(snapshot: &'a ClusterSnapshot, service: &'a Service) -> Self {
        let suits = Suits::new(&service.spec.task_template);
        Self { snapshot, service, suits, versions: RefCell::default() }
    }

    /// Whether `task` is to be replaced by one made from the current spec.
    pub fn is_on(&self, task: &Task) -> bool {
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

fn difference(old: &ServiceSpec, new: &ServiceSpec) -> Difference {
    if old.endpoint_spec != new.endpoint_spec {
        Difference::Template
    } else if old.task_template == new.task_template {
        Difference::Nothing
    } else if without_constraints(&old.task_template) == without_constraints(&new.task_template) {
        Difference::Constraints
    } else {
        Difference::Template
    }
}

fn without_constraints(template: &TaskSpec) -> TaskSpec {
    let mut bare = template.clone();
    bare.placement.get_or_insert_default().constraints.clear();
    bare
}

#[cfg(test)]
mod tests {
    use mesh_state::spec::UpdateConfig;

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
        Dirt::new(&world.snapshot, stored).is_on(&old)
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

//! Places equal tasks one after the other, each on the best node left.
//!
//! Invariants: every chosen node passes the filters at that moment; spread preferences make a tree
//! whose branches fill evenly, and the nodes within a branch by [`Score`]. A pass costs one
//! filtering of all nodes and a logarithm per task.

use std::collections::{BTreeMap, BTreeSet};

use mesh_state::ids::NodeId;
use mesh_state::spec::{GenericResource, ServiceSpec};

use super::filter;
use super::needs::Needs;
use super::score::Score;
use super::usage::{NodeUsage, NodeUsages};
use crate::slots::constraint::label_value;

/// The nodes that fit, as a tree of spread preferences, the best node first.
#[derive(Debug)]
pub struct Placement<'n, 'l, 'a> {
    needs: &'n Needs<'a>,
    spec_version: u64,
    levels: Vec<String>,
    usages: &'l mut NodeUsages<'a>,
    tree: Branch,
}

/// A level of the tree of preferences, or the nodes below the last level.
#[derive(Debug, Default)]
struct Branch {
    /// The service's tasks on all nodes below, whether those nodes fit or not.
    tasks: u32,
    children: BTreeMap<String, Branch>,
    nodes: BTreeSet<(Score, NodeId)>,
}

impl<'n, 'l, 'a> Placement<'n, 'l, 'a> {
    /// The placement of tasks made from `spec` on the nodes in `usages`.
    pub fn new(
        needs: &'n Needs<'a>,
        spec_version: u64,
        spec: &ServiceSpec,
        usages: &'l mut NodeUsages<'a>,
    ) -> Self {
        let levels = levels(spec);
        let mut tree = Branch::default();
        for usage in usages.iter() {
            let fits = filter::refusal(needs, usage).is_none();
            let score = Score::new(usage, needs.service, spec_version);
            tree.add(
                &path(&levels, usage),
                usage.tasks_of(needs.service),
                fits.then(|| (score, usage.node.id.clone())),
            );
        }
        Self { needs, spec_version, levels, usages, tree }
    }

    /// The node for the next task, and the generic resources that the task gets there; `None` if no
    /// node can take one more.
    pub fn place(&mut self) -> Option<(&'a NodeId, Vec<GenericResource>)> {
        loop {
            let (score, id) = self.tree.best()?;
            let usage = self.usages.of(&id)?;
            let path = path(&self.levels, usage);
            self.tree.remove(&path, &(score, id.clone()));
            // Tasks placed earlier in this pass may have used the node up.
            if filter::refusal(self.needs, usage).is_some() {
                continue;
            }
            let generic = usage.take(self.needs);
            let score = Score::new(usage, self.needs.service, self.spec_version);
            let node = &usage.node.id;
            self.tree.add(&path, 1, Some((score, id)));
            return Some((node, generic));
        }
    }
}

impl Branch {
    /// Adds a node's tasks along its path, and the node at its end if it fits.
    fn add(&mut self, path: &[String], tasks: u32, node: Option<(Score, NodeId)>) {
        self.tasks += tasks;
        match path.split_first() {
            Some((first, rest)) => self.children.entry(first.clone()).or_default().add(rest, tasks, node),
            None => self.nodes.extend(node),
        }
    }

    fn remove(&mut self, path: &[String], node: &(Score, NodeId)) {
        match path.split_first() {
            Some((first, rest)) => {
                if let Some(child) = self.children.get_mut(first) {
                    child.remove(rest, node);
                }
            }
            None => drop(self.nodes.remove(node)),
        }
    }

    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.children.values().all(Self::is_empty)
    }

    /// The best node of the branch with the fewest tasks. Of branches with equal counts, the one
    /// with the better node wins.
    fn best(&self) -> Option<(Score, NodeId)> {
        if self.children.is_empty() {
            return self.nodes.first().cloned();
        }
        let open = self.children.values().filter(|child| !child.is_empty());
        let fewest = open.clone().map(|child| child.tasks).min()?;
        open.filter(|child| child.tasks == fewest).filter_map(Self::best).min()
    }
}

/// The labels to spread over, outermost first.
fn levels(spec: &ServiceSpec) -> Vec<String> {
    let placement = spec.task_template.placement.as_ref();
    let preferences = placement.into_iter().flat_map(|placement| &placement.preferences);
    preferences
        .filter_map(|preference| preference.spread.as_ref())
        .map(|over| over.spread_descriptor.clone())
        .collect()
}

/// A node's values of the labels; nodes without a label, or a key that is no label, share one
/// branch.
fn path(levels: &[String], usage: &NodeUsage<'_>) -> Vec<String> {
    levels.iter().map(|key| label_value(key, usage.node).unwrap_or_default().to_owned()).collect()
}

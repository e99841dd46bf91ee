//! Whether a node may run a task at all, by properties of the node that can't be used up.
//!
//! Left to others: those that can (resources, ports, places), which the scheduler checks.

use mesh_state::node::{Availability, Node, NodeState};
use mesh_state::spec::TaskSpec;
use serde_json::Value;

use super::constraint::{self, Constraint};
use crate::feed::snapshot::ClusterSnapshot;

/// A task's constraints and platforms, parsed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suits {
    /// `None` when they can't be parsed: then no node meets them.
    constraints: Option<Vec<Constraint>>,
    platforms: Vec<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Platform {
    architecture: String,
    os: String,
}

impl Suits {
    /// The requirements in `spec`.
    pub fn new(spec: &TaskSpec) -> Self {
        let Some(placement) = &spec.placement else {
            return Self { constraints: Some(Vec::new()), platforms: Vec::new() };
        };
        let platforms = placement.extra.get("Platforms").and_then(Value::as_array);
        Self {
            constraints: constraint::parse_all(&placement.constraints).ok(),
            platforms: platforms.into_iter().flatten().map(Platform::read).collect(),
        }
    }

    /// Whether `node` meets all requirements.
    pub fn node(&self, node: &Node) -> bool {
        self.constraints_hold(node) && self.platform_fits(node)
    }

    /// Whether all constraints hold.
    pub fn constraints_hold(&self, node: &Node) -> bool {
        self.constraints.as_ref().is_some_and(|constraints| constraints.iter().all(|one| one.holds(node)))
    }

    /// Whether the image has a build for the node; an image that lists no platforms fits
    /// everywhere.
    pub fn platform_fits(&self, node: &Node) -> bool {
        let architecture = architecture(&node.description.architecture);
        self.platforms.is_empty()
            || self.platforms.iter().any(|platform| {
                (platform.architecture.is_empty() || platform.architecture == architecture)
                    && (platform.os.is_empty() || platform.os.eq_ignore_ascii_case(&node.description.os))
            })
    }
}

impl Platform {
    fn read(value: &Value) -> Self {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        Self { architecture: architecture(text("Architecture")), os: text("OS").to_owned() }
    }
}

/// One name for each architecture: images say `amd64` where kernels say `x86_64`.
fn architecture(name: &str) -> String {
    match name {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_ascii_lowercase(),
    }
}

/// Whether a node has kernel programs, which carry the packets of overlay networks.
pub fn has_programs(node: &Node) -> bool {
    node.description.datapath != "userspace"
}

/// Whether a node may get a new task of a global service.
pub fn takes_new(snapshot: &ClusterSnapshot, node: &Node, suits: &Suits) -> bool {
    node.spec.availability == Availability::Active
        && snapshot.node_state(&node.id) == NodeState::Ready
        && suits.node(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::node;

    #[test]
    fn platforms_are_compared_across_spellings() {
        let mut seen = node("n");
        seen.description.architecture = "x86_64".to_owned();
        seen.description.os = "linux".to_owned();
        let fits = |platforms: &str| {
            let text = format!(r#"{{"Placement":{{"Platforms":{platforms}}}}}"#);
            Suits::new(&serde_json::from_str(&text).unwrap()).node(&seen)
        };
        assert!(fits("[]"));
        assert!(fits(r#"[{"Architecture":"amd64","OS":"linux"}]"#));
        assert!(fits(r#"[{"Architecture":"arm64","OS":"linux"},{"OS":"linux"}]"#));
        assert!(!fits(r#"[{"Architecture":"arm64","OS":"linux"}]"#));
        assert!(!fits(r#"[{"OS":"windows"}]"#));
    }

    #[test]
    fn unreadable_constraints_hold_nowhere() {
        let spec = serde_json::from_str(r#"{"Placement":{"Constraints":["nonsense"]}}"#).unwrap();
        assert!(!Suits::new(&spec).node(&node("n")));
    }
}

//! Docker's placement constraints: `key==value` and `key!=value`.
//!
//! Invariants: a constraint that was accepted can be evaluated for every node; a key that mesh
//! doesn't know holds on no node, as in Swarm.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_state::node::Node;
use thiserror::Error;

/// Why a constraint can't be parsed; the texts are Swarm's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConstraintError {
    /// It has no operator.
    #[error("constraint expected one operator from ==, !=")]
    Operator,
    /// The key is too short or has a character that keys can't have.
    #[error("key '{0}' is invalid")]
    Key(String),
    /// The value is empty or has a character that values can't have.
    #[error("value '{0}' is invalid")]
    Value(String),
}

/// One constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    key: String,
    /// True for `==`, false for `!=`.
    equal: bool,
    value: String,
}

/// Parses a service's constraints, all of which must hold.
///
/// # Errors
/// The first one that can't be parsed.
pub fn parse_all(texts: &[String]) -> Result<Vec<Constraint>, ConstraintError> {
    texts.iter().map(|text| text.parse()).collect()
}

impl std::str::FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (equal, split) = match text.split_once("==") {
            Some(split) => (true, Some(split)),
            None => (false, text.split_once("!=")),
        };
        let (key, value) = split.ok_or(ConstraintError::Operator)?;
        let (key, value) = (key.trim(), value.trim());
        if !is_key(key) {
            return Err(ConstraintError::Key(key.to_owned()));
        }
        if value.is_empty() || !value.chars().all(is_value_character) {
            return Err(ConstraintError::Value(value.to_owned()));
        }
        Ok(Self { key: key.to_owned(), equal, value: value.to_owned() })
    }
}

impl Constraint {
    /// Whether the constraint holds on a node.
    pub fn holds(&self, node: &Node) -> bool {
        let key = self.key.to_ascii_lowercase();
        match key.as_str() {
            "node.id" => self.compare(node.id.as_str()),
            "node.hostname" => self.compare(&node.description.hostname),
            "node.ip" => self.compare_address(node.address),
            "node.role" => self.compare(node.spec.role.as_str()),
            "node.platform.os" => self.compare(&node.description.os),
            "node.platform.arch" => self.compare(&node.description.architecture),
            _ => match label_value(&self.key, node) {
                Some(value) => self.compare(value),
                None => false,
            },
        }
    }

    fn compare(&self, seen: &str) -> bool {
        seen.eq_ignore_ascii_case(&self.value) == self.equal
    }

    fn compare_address(&self, seen: Option<IpAddr>) -> bool {
        let within = if let Ok(address) = self.value.parse::<IpAddr>() {
            seen == Some(address)
        } else if let Ok(network) = self.value.parse::<IpNet>() {
            seen.is_some_and(|address| network.contains(&address))
        } else {
            return false;
        };
        within == self.equal
    }
}

/// A node's value for a label's full key (`node.labels.zone`), empty if the node doesn't have the
/// label; `None` for any other key.
pub fn label_value<'a>(key: &str, node: &'a Node) -> Option<&'a str> {
    let in_labels = |prefix: &str, labels: &'a mesh_state::spec::Labels| {
        let named = key.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        named.then(|| key.get(prefix.len()..).and_then(|label| labels.get(label)).map_or("", String::as_str))
    };
    in_labels("node.labels.", &node.spec.labels)
        .or_else(|| in_labels("engine.labels.", &node.description.engine_labels))
}

fn is_key(key: &str) -> bool {
    let mut characters = key.chars();
    let first = characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_');
    let rest = characters.as_str();
    first
        && !rest.is_empty()
        && rest.chars().all(|other| other.is_ascii_alphanumeric() || "-_.".contains(other))
}

fn is_value_character(character: char) -> bool {
    character.is_ascii_alphanumeric()
        || character.is_ascii_whitespace()
        || r":-_.*()?+[]\^$|/".contains(character)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::node;

    #[test]
    fn constraints_are_parsed_or_refused_in_swarms_words() {
        let refused = |text: &str| text.parse::<Constraint>().unwrap_err().to_string();
        assert_eq!(refused("node.role=worker"), "constraint expected one operator from ==, !=");
        assert_eq!(refused("1key==x"), "key '1key' is invalid");
        assert_eq!(refused("k==x"), "key 'k' is invalid");
        assert_eq!(refused("node.role=="), "value '' is invalid");
        assert_eq!(refused("node.role==a,b"), "value 'a,b' is invalid");
        assert!(parse_all(&["node.role == worker".to_owned(), "node.labels.a!=b".to_owned()]).is_ok());
    }

    #[test]
    fn constraints_hold_as_in_swarm() {
        let mut seen = node("n1");
        seen.description.hostname = "Alpha".to_owned();
        seen.description.os = "linux".to_owned();
        seen.description.architecture = "x86_64".to_owned();
        seen.address = Some("10.77.0.11".parse().unwrap());
        seen.spec.labels.insert("zone".to_owned(), "East".to_owned());
        seen.description.engine_labels.insert("disk".to_owned(), "ssd".to_owned());
        let table = [
            ("node.id==n1", true),
            ("node.id!=n1", false),
            ("node.hostname==alpha", true),
            ("node.role==worker", true),
            ("node.role==manager", false),
            ("NODE.ROLE!=manager", true),
            ("node.ip==10.77.0.11", true),
            ("node.ip==10.77.0.0/24", true),
            ("node.ip!=10.77.0.0/24", false),
            ("node.ip!=10.78.0.0/24", true),
            ("node.ip==somewhere", false),
            ("node.ip!=somewhere", false),
            ("node.platform.os==linux", true),
            ("node.platform.arch==X86_64", true),
            ("node.labels.zone==east", true),
            ("node.labels.Zone==east", false),
            ("node.labels.rack==east", false),
            ("node.labels.rack!=east", true),
            ("engine.labels.disk==ssd", true),
            ("engine.labels.disk!=ssd", false),
            ("node.novel==x", false),
            ("node.novel!=x", false),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Constraint>().unwrap().holds(&seen), expected, "{text}");
        }
    }
}

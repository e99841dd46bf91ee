//! Describes the node to managers, from what its engine reports. Pure.

use mesh_state::node::NodeDescription;
use mesh_state::spec::{GenericResource, Labels};

/// What the engine reports of itself and its machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineFacts {
    /// The version that the engine says it has.
    pub version: String,
    /// The machine's architecture as the kernel calls it (`x86_64`).
    pub architecture: String,
    /// The operating system: `linux`.
    pub os: String,
    /// The kernel's release.
    pub kernel: String,
    /// The number of CPUs.
    pub cpus: i64,
    /// The machine's memory in bytes.
    pub memory_bytes: i64,
    /// Labels, each `key=value` or `key`.
    pub labels: Vec<String>,
    /// Plugins as (type, name).
    pub plugins: Vec<(String, String)>,
    /// The generic resources that the engine's operator configured.
    pub generic_resources: Vec<GenericResource>,
}

/// The node's description. The fields that the engine doesn't know (data path, the manager's
/// address) are left empty for the caller.
pub fn describe(hostname: &str, engine: &EngineFacts) -> NodeDescription {
    let mut plugins = engine.plugins.clone();
    plugins.sort();
    NodeDescription {
        hostname: hostname.to_owned(),
        architecture: engine.architecture.clone(),
        os: engine.os.clone(),
        nano_cpus: engine.cpus.saturating_mul(1_000_000_000),
        memory_bytes: engine.memory_bytes,
        generic_resources: engine.generic_resources.clone(),
        engine_version: engine.version.clone(),
        engine_labels: labels(&engine.labels),
        plugins,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: engine.kernel.clone(),
        ..NodeDescription::default()
    }
}

fn labels(given: &[String]) -> Labels {
    given
        .iter()
        .map(|label| label.split_once('=').unwrap_or((label, "")))
        .map(|(k, v)| (k.into(), v.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_facts_become_swarms_description() {
        let engine = EngineFacts {
            version: "20.10.24".to_owned(),
            architecture: "x86_64".to_owned(),
            os: "linux".to_owned(),
            cpus: 2,
            labels: vec!["zone=a=b".to_owned(), "ssd".to_owned()],
            plugins: vec![("Volume".to_owned(), "local".to_owned()), ("Log".to_owned(), "syslog".to_owned())],
            ..EngineFacts::default()
        };
        let description = describe("node-1", &engine);
        assert_eq!(description.hostname, "node-1");
        assert_eq!(description.nano_cpus, 2_000_000_000);
        let labels = [("ssd", ""), ("zone", "a=b")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(description.engine_labels, Labels::from(labels));
        assert_eq!(description.plugins[0].0, "Log", "plugins are sorted");
    }
}

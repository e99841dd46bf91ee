//! Which package may depend on which: `mesh-ebpf ← mesh-agent → mesh-state ← mesh-control`.

use serde::Deserialize;

use super::Finding;

/// A package of the workspace with the dependencies in its manifest.
#[derive(Debug, Deserialize)]
pub(super) struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// A package, a dependency that it must not have, and the reason.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("mesh-control", "mesh-ebpf", "the control plane knows backends, not maps"),
    ("mesh-control", "mesh-agent", "they share mesh-state only"),
    ("mesh-agent", "mesh-control", "they share mesh-state only"),
    ("mesh-agent", "etcd-client", "agents never speak to etcd"),
    ("mesh-control", "bollard", "only agents speak to an engine"),
    ("mesh-state", "mesh-control", "the state is below both of its users"),
    ("mesh-state", "mesh-agent", "the state is below both of its users"),
    ("mesh-state", "mesh-ebpf", "the state knows nothing of packets"),
    ("mesh-admission", "mesh-state", "admission knows listeners and figures, not what is asked"),
    ("mesh-admission", "mesh-control", "admission is below both daemons"),
    ("mesh-admission", "mesh-agent", "admission is below both daemons"),
    ("mesh-runtime", "mesh-state", "how a daemon ends is no matter of what it does"),
    ("mesh-state", "mesh-runtime", "nouns don't run"),
    ("mesh-ebpf", "mesh-state", "kernel programs stand alone"),
    ("xtask", "mesh-lab", "it builds and starts the lab when asked, so that tidy waits for little"),
    ("xtask", "mesh-swarm-diff", "it builds and starts the suite when asked, so that tidy waits for little"),
    ("xtask", "mesh-bench", "it builds and starts measurements when asked, so that tidy waits for little"),
    ("xtask", "mesh-ebpf", "tidy must not compile kernel programs"),
    ("xtask", "aya", "tidy must not compile kernel programs"),
    ("mesh-checkout", "mesh-lab", "the checkout is below the lab"),
    ("mesh-lab", "mesh-ebpf", "a lab runs binaries, and knows no maps"),
    ("mesh-lab", "aya", "a lab runs binaries, and knows no maps"),
    ("mesh-lab", "mesh-bench", "the lab is below what measures it"),
    ("mesh-lab", "mesh-swarm-diff", "the lab is below what compares it"),
    ("mesh-tests", "xtask", "tests know the lab, not its commands"),
];

/// Parses the output of `cargo metadata --no-deps`.
pub(super) fn parse(metadata: &str) -> serde_json::Result<Vec<Package>> {
    Ok(serde_json::from_str::<Metadata>(metadata)?.packages)
}

/// Dependencies that the rules forbid.
pub(super) fn findings(packages: &[Package]) -> Vec<Finding> {
    let broken = |(name, dependency, why): &(&str, &str, &str)| {
        let package = packages.iter().find(|p| p.name == *name)?;
        package.dependencies.iter().find(|d| d.name == *dependency)?;
        Some(Finding {
            place: format!("{name}/Cargo.toml"),
            message: format!("{name} must not depend on {dependency}: {why}"),
        })
    };
    FORBIDDEN.iter().filter_map(broken).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(name: &str, dependency: &str) -> Vec<Package> {
        let text =
            format!(r#"{{"packages":[{{"name":"{name}","dependencies":[{{"name":"{dependency}"}}]}}]}}"#);
        parse(&text).unwrap()
    }

    #[test]
    fn control_may_not_know_the_kernel_programs() {
        let found = findings(&packages("mesh-control", "mesh-ebpf"));
        assert_eq!(found.len(), 1, "expected one finding, saw {found:?}");
        let found = findings(&packages("mesh-control", "mesh-state"));
        assert!(found.is_empty(), "expected control to be allowed the state, saw {found:?}");
    }
}

//! The local Docker engine.

use crate::facts::{Engine, Expected, HostFacts};
use crate::finding::Finding;

/// The oldest API that the agent speaks, of Docker 20.10.
const API_OLDEST: (u32, u32) = (1, 41);

/// Whether the engine answers, is new enough, and is free of another Swarm.
pub(super) fn engine(facts: &HostFacts, expected: &Expected) -> Vec<Finding> {
    let socket = expected.engine.display();
    match &facts.engine {
        None => Vec::new(),
        Some(Err(error)) => vec![Finding::error(
            "engine.reachable",
            format!("no Docker engine answers at unix://{socket}: {error}"),
            "apt install docker.io, or systemctl start docker; another socket is named by engine in /etc/mesh/agent.toml",
        )],
        Some(Ok(engine)) => vec![version(engine), swarm(engine, &expected.engine.display().to_string())],
    }
}

fn version(engine: &Engine) -> Finding {
    let check = "engine.version";
    let (version, api) = (&engine.version, &engine.api);
    match parse_api(api) {
        Some(api) if api < API_OLDEST => Finding::error(
            check,
            format!("Docker {version} has API {api:?}, which is older than 1.41"),
            "apt install docker.io, or docker-ce: Docker 20.10 or later",
        ),
        Some(_) => Finding::ok(check, format!("Docker {version} answers, with API {api}")),
        None => Finding::skipped(check, format!("can't tell the version of the engine's API: {api:?}")),
    }
}

fn parse_api(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn swarm(engine: &Engine, socket: &str) -> Finding {
    let check = "engine.swarm";
    match engine.swarm.as_str() {
        "inactive" | "" => Finding::ok(check, "the engine is in no Swarm of its own"),
        state => Finding::error(
            check,
            format!("the engine is in a Swarm of its own ({state}), which publishes ports as mesh does"),
            format!(
                "move its services away, then: docker -H unix://{socket} swarm leave (with --force on its last manager)"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;
    use crate::rules::network::tests::expected;

    fn judged(version: &str, api: &str, swarm: &str) -> Vec<Severity> {
        let engine = Engine { version: version.to_owned(), api: api.to_owned(), swarm: swarm.to_owned() };
        let facts = HostFacts { engine: Some(Ok(engine)), ..HostFacts::default() };
        super::engine(&facts, &expected()).iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn engines_are_judged() {
        assert_eq!(judged("20.10.24", "1.41", "inactive"), [Severity::Ok, Severity::Ok]);
        assert_eq!(judged("19.3.1", "1.40", "inactive"), [Severity::Error, Severity::Ok]);
        assert_eq!(judged("29.0.0", "1.52", "active"), [Severity::Ok, Severity::Error]);
        assert_eq!(judged("29.0.0", "", "locked"), [Severity::Skipped, Severity::Error]);
        let away = HostFacts { engine: Some(Err("no such file".to_owned())), ..HostFacts::default() };
        let seen = engine(&away, &expected());
        assert_eq!(seen[0].severity, Severity::Error);
        assert!(seen[0].seen.contains("/var/run/docker.sock") && seen[0].cure.contains("docker"), "{seen:?}");
    }
}

//! The layers ("floors") of `control/src`: a module ("room") imports modules of lower floors only,
//! and modules that decide stay pure.
//!
//! Invariants: a new module of `control/src` needs a row here, so its author must choose its floor;
//! tests may import and call anything.
//!
//! Left to others: which crate may be used where ([`super::source`]), and dependencies between
//! crates ([`super::dependencies`]).

use super::Finding;
use super::imports;
use super::source::SourceFile;

/// The directory of the rooms.
const HOUSE: &str = "control/src/";

/// The rooms from the lowest floor up. A room may import from all floors below its own.
const FLOORS: &[&[&str]] = &[
    &[
        "ca",
        "cli",
        "docker_json",
        "doors",
        "founding",
        "orders",
        "own_store",
        "plan",
        "pool",
        "raised_store",
        "refill",
        "seal",
    ],
    &["managed_etcd"],
    &["config", "dump", "feed", "handover", "own_node", "vault", "waiting"],
    &["logs", "slots"],
    &["context", "planners"],
    &["diagnosis"],
    &["at_rest", "trust"],
    &["bootstrap", "leader", "node_service", "remote_api"],
    &["backup_schedule", "metrics"],
    &["api"],
    &["app"],
];

/// Files without a floor: they declare the modules, start the process, or build fixtures for tests.
const OUTSIDE: [&str; 3] = ["lib", "main", "fixtures"];

/// Rooms that may import only these rooms, whatever else is below them.
const ONLY: &[(&str, &[&str])] =
    &[("planners", &["slots", "feed", "plan", "docker_json"]), ("slots", &["feed", "plan", "docker_json"])];

/// Rooms whose functions decide from their arguments alone.
const PURE: [&str; 4] = ["diagnosis", "planners", "slots", "plan"];

/// Names that a pure room must not use, and what to use instead.
const IMPURE: &[(&str, &str)] = &[
    ("Utc::now", "a decision takes the moment as an argument"),
    ("SystemTime::now", "a decision takes the moment as an argument"),
    ("Instant::now", "a decision takes the moment as an argument"),
    ("thread_rng", "a decision takes its randomness as an argument"),
    ("rand::rng", "a decision takes its randomness as an argument"),
    ("tokio::", "a decision waits for nothing"),
    ("etcd_client::", "a decision is made on a snapshot"),
    ("std::fs", "a decision is made on a snapshot"),
    ("std::process", "a decision is made on a snapshot"),
    ("std::env", "a decision is made on a snapshot"),
    ("TcpStream", "a decision is made on a snapshot"),
    ("TcpListener", "a decision is made on a snapshot"),
    ("UdpSocket", "a decision is made on a snapshot"),
    ("UnixStream", "a decision is made on a snapshot"),
    ("ToSocketAddrs", "a decision is made on a snapshot"),
    ("tracing::", "a plan says its reasons, and the driver logs them"),
];

/// Violations of the floors' order, or of purity, in one file.
pub(super) fn findings(file: &SourceFile<'_>) -> Vec<Finding> {
    let Some(module) = file.path.strip_prefix(HOUSE).and_then(module_of) else { return Vec::new() };
    let Some(room) = module.first().copied().filter(|room| !OUTSIDE.contains(room)) else {
        return Vec::new();
    };
    let Some(floor) = floor_of(room) else {
        let message = format!("the room `{room}` has no floor; give it one in xtask/src/tidy/floors.rs");
        return vec![Finding { place: file.path.to_owned(), message }];
    };
    let product = imports::before_tests(file.text);
    let mut found = Vec::new();
    for import in imports::of(product, &module) {
        if let Some(message) = wrong_import(&module, room, floor, &import.path) {
            found.push(Finding { place: format!("{}:{}", file.path, import.line), message });
        }
    }
    if PURE.contains(&room) {
        found.extend(impurities(file.path, product));
    }
    found
}

/// The path of a file's module, without the crate; `None` for test code and for the binaries, which
/// are crates of their own.
fn module_of(path: &str) -> Option<Vec<&str>> {
    let mut module: Vec<&str> = path.strip_suffix(".rs")?.split('/').collect();
    let is_test = |part: &&str| *part == "tests" || part.ends_with("_tests");
    if module.first() == Some(&"bin") || module.iter().any(is_test) {
        return None;
    }
    if module.last() == Some(&"mod") {
        module.pop();
    }
    Some(module)
}

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&room))
}

fn wrong_import(module: &[&str], room: &str, floor: usize, path: &[String]) -> Option<String> {
    let target = path.first()?.as_str();
    if target == room {
        return other_planner(module, path);
    }
    // An item of the crate's root, such as a macro, belongs to no room.
    let below = floor_of(target)?;
    if let Some((_, allowed)) = ONLY.iter().find(|(name, _)| *name == room)
        && !allowed.contains(&target)
    {
        return Some(format!("{room} may import {} only, not {target}", allowed.join(", ")));
    }
    (below >= floor).then(|| format!("{target} is not below {room}; move what both need to a lower floor"))
}

/// Planners don't import one another: what two of them need is in `slots`.
fn other_planner(module: &[&str], path: &[String]) -> Option<String> {
    let [room, planner, ..] = module else { return None };
    let other = path.get(1).filter(|other| other.as_str() != *planner)?;
    let is_module = other.chars().all(|c| c.is_lowercase() || c == '_');
    (*room == "planners" && is_module)
        .then(|| format!("the planner {planner} imports the planner {other}; move what both need to slots"))
}

fn impurities(path: &str, product: &str) -> Vec<Finding> {
    let code = product.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.flat_map(|(index, line)| {
        IMPURE.iter().filter(|(name, _)| line.contains(name)).map(move |(name, why)| Finding {
            place: format!("{path}:{}", index + 1),
            message: format!("{} in a room of pure functions: {why}", name.trim_end_matches(':')),
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, text: &str, expected: &str) {
        let found = findings(&SourceFile { path, text });
        let seen: Vec<String> = found.into_iter().map(|f| format!("{}: {}", f.place, f.message)).collect();
        if expected.is_empty() {
            assert!(seen.is_empty(), "expected no finding in {path}, saw {seen:?}");
        } else {
            assert!(
                seen.iter().any(|m| m.contains(expected)),
                "expected `{expected}` of {path}, saw {seen:?}"
            );
        }
    }

    #[test]
    fn planners_import_slots_feed_and_plan_only() {
        let planner = "control/src/planners/global.rs";
        check(
            planner,
            "//! A.\nuse crate::slots::{self, Filling};\nuse crate::feed::snapshot::Stored;\n",
            "",
        );
        check(planner, "//! A.\nuse crate::plan::Plan;\n", "");
        let expected = "global.rs:2: planners may import slots, feed, plan, docker_json only, not ca";
        check(planner, "//! A.\nuse crate::ca::Authority;\n", expected);
        check("control/src/planners/updater/mod.rs", "//! A.\nuse crate::leader::commit;\n", "not leader");
        check(planner, "//! A.\nlet a = crate::api::names::check();\n", "not api");
    }

    #[test]
    fn slots_do_not_import_planners() {
        check("control/src/slots/create.rs", "//! A.\nuse crate::planners::global;\n", "not planners");
        check("control/src/slots/mod.rs", "//! A.\nuse crate::planners::global;\n", "not planners");
        check("control/src/slots/mod.rs", "//! A.\nuse super::config::Config;\n", "not config");
        check("control/src/slots/create.rs", "//! A.\nuse super::backend_ids::BackendIds;\n", "");
        check("control/src/slots/create.rs", "//! A.\nuse super::super::config::Config;\n", "not config");
        check("control/src/slots/outdated.rs", "//! A.\nuse crate::docker_json::meaning;\n", "");
    }

    #[test]
    fn a_planner_does_not_import_another() {
        let restart = "control/src/planners/restart.rs";
        check(restart, "//! A.\nuse super::global;\n", "the planner restart imports the planner global");
        check(
            restart,
            "//! A.\nuse crate::planners::{global::takes_new, Planner};\n",
            "imports the planner global",
        );
        check("control/src/planners/updater/progress.rs", "//! A.\nuse super::settings::Settings;\n", "");
        check(
            "control/src/planners/updater/progress.rs",
            "//! A.\nuse super::super::jobs;\n",
            "the planner jobs",
        );
        check(
            "control/src/planners/mod.rs",
            "//! A.\nuse self::global::plan;\nuse crate::planners::jobs;\n",
            "",
        );
    }

    #[test]
    fn no_room_imports_from_a_floor_above() {
        check("control/src/feed/watch.rs", "//! A.\nuse crate::api::Filters;\n", "api is not below feed");
        check("control/src/feed/watch.rs", "//! A.\nuse crate::plan::Plan;\n", "");
        check(
            "control/src/node_service/end.rs",
            "//! A.\nuse crate::leader::Leadership;\n",
            "leader is not below",
        );
        let group = "//! A.\nuse crate::{\n    pool,\n    app::{self, Parts},\n};\n";
        check("control/src/api/mod.rs", group, "api/mod.rs:2: app is not below api");
        check("control/src/app.rs", "//! A.\nuse crate::{api, planners, slots};\n", "");
        check("control/src/bin/mesh/main.rs", "//! A.\nuse crate::app;\n", "");
        check("mesh-agent/src/feed/watch.rs", "//! A.\nuse crate::api::Filters;\n", "");
    }

    #[test]
    fn a_new_room_must_have_a_floor() {
        check("control/src/cellar/mod.rs", "//! A.\n", "the room `cellar` has no floor");
        check("control/src/lib.rs", "//! A.\npub mod cellar;\n", "");
    }

    #[test]
    fn rooms_that_decide_use_no_clock_and_no_io() {
        let uses = [
            "let now = Utc::now();",
            "let now = std::time::SystemTime::now();",
            "let began = Instant::now();",
            "use tokio::sync::watch;",
            "use etcd_client::Client;",
            "let text = std::fs::read(path);",
            "use std::net::TcpStream;",
            "let ids = rand::rng();",
            "tracing::info!(\"planned\");",
        ];
        for used in uses {
            for path in ["control/src/planners/jobs.rs", "control/src/slots/mod.rs", "control/src/plan.rs"] {
                check(path, &format!("//! A.\n{used}\n"), ":2: ");
            }
            check("control/src/leader/driver.rs", &format!("//! A.\n{used}\n"), "");
        }
        let addresses = "//! A.\nuse std::net::{IpAddr, Ipv4Addr};\n";
        check("control/src/planners/subnets.rs", addresses, "");
        check("control/src/planners/subnets.rs", "//! A.\n/// Never `Utc::now`.\n", "");
    }

    #[test]
    fn tests_may_import_and_call_what_they_like() {
        let tests = "#[cfg(test)]\nmod tests {\n    use crate::app::run;\n    let now = Utc::now();\n}\n";
        check("control/src/planners/jobs.rs", &format!("//! A.\n{tests}"), "");
        check("control/src/planners/tests/scale.rs", "//! A.\nlet now = Instant::now();\n", "");
        check("control/src/planners/scheduler/tests.rs", "//! A.\nuse crate::planners::global;\n", "");
        let declared = "//! A.\n#[cfg(test)]\nmod tests;\nuse crate::app::run;\n";
        check("control/src/planners/jobs.rs", declared, "not app");
    }
}

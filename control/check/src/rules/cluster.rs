//! A cluster as its managers and metrics show it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::facts::{ClusterFacts, Scrape};
use crate::finding::Finding;
use crate::metrics::{label, samples};

use super::daemons::{certificates, etcd, fallback, ready};

/// A clock that differs from its manager's by more than this gets a warning.
const CLOCK_WARNED_BEYOND_MS: u64 = 5_000;

/// Judges a cluster.
pub(super) fn cluster(facts: &ClusterFacts) -> Vec<Finding> {
    let swarm = &facts.info["Swarm"];
    let state = swarm["LocalNodeState"].as_str().unwrap_or_default();
    if state != "active" {
        return vec![membership(state, swarm["Error"].as_str().unwrap_or_default())];
    }
    if swarm["ControlAvailable"] != true {
        return vec![Finding::skipped(
            "cluster.managers",
            "this node is a worker of its cluster: run `mesh check --cluster` on a manager",
        )];
    }
    let mut findings = managers(facts);
    findings.extend(nodes(&facts.nodes));
    findings.extend(ready(&facts.scrapes));
    findings.extend(facts.scrapes.iter().flat_map(fallback));
    findings.push(clocks(&facts.nodes));
    findings.push(versions(&facts.nodes, &facts.scrapes));
    findings.extend(certificates(&facts.scrapes, &facts.swarm));
    findings.extend(etcd(&facts.scrapes));
    findings
}

fn membership(state: &str, error: &str) -> Finding {
    let check = "cluster.membership";
    match state {
        "locked" => Finding::error(check, "this node's manager is locked", "docker swarm unlock"),
        "error" => Finding::error(
            check,
            format!("this node can't tell its membership: {error}"),
            "journalctl -u mesh-agent -u mesh-control",
        ),
        "pending" => Finding::warning(check, "this node is joining a cluster", "wait, or docker swarm leave"),
        _ => Finding::warning(check, "this node is in no cluster", "docker swarm init, or docker swarm join"),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn name(node: &Value) -> &str {
    text(&node["Description"]["Hostname"])
}

fn managers(facts: &ClusterFacts) -> Vec<Finding> {
    let all: Vec<&Value> = facts.nodes.iter().filter(|node| node["ManagerStatus"].is_object()).collect();
    let away: Vec<&str> = all
        .iter()
        .filter(|node| node["ManagerStatus"]["Reachability"] != "reachable")
        .map(|node| name(node))
        .collect();
    let count = all.len();
    let list = away.join(", ");
    let mend = format!(
        "start mesh-control on {list}, or, if such a machine is gone for good: docker node demote it, then docker node rm it"
    );
    let mut findings = vec![match away.len() {
        0 => Finding::ok("cluster.managers", format!("managers that can be reached: {count} of {count}")),
        gone if (count - gone) * 2 <= count => Finding::error(
            "cluster.managers",
            format!(
                "{gone} of {count} managers can't be reached ({list}): there is no majority, so nothing can be changed"
            ),
            mend,
        ),
        gone => Finding::warning(
            "cluster.managers",
            format!("{gone} of {count} managers can't be reached ({list})"),
            mend,
        ),
    }];
    if count > 0 && count.is_multiple_of(2) {
        findings.push(Finding::warning(
            "cluster.quorum",
            format!("{count} managers bear the loss of no more than {} do", count - 1),
            "docker node promote a worker, or docker node demote a manager",
        ));
    }
    let leader = text(&facts.info["Swarm"]["Mesh"]["Leader"]);
    let shown = all.iter().find(|node| node["ManagerStatus"]["Leader"] == true).map(|node| name(node));
    findings.push(match (leader, shown) {
        ("", None) => Finding::error(
            "cluster.leader",
            "no manager leads, so nothing is placed or replaced",
            "start more managers; `journalctl -u mesh-control` on each says what they wait for",
        ),
        ("", Some(leader)) | (leader, _) => Finding::ok("cluster.leader", format!("{leader} leads")),
    });
    findings
}

fn nodes(nodes: &[Value]) -> Vec<Finding> {
    let check = "cluster.nodes";
    let mut findings = Vec::new();
    for node in nodes {
        let liveness = node["Mesh"]["Liveness"].as_str().unwrap_or_else(|| text(&node["Status"]["State"]));
        let (node_name, message) = (name(node), text(&node["Status"]["Message"]));
        let said = if message.is_empty() { String::new() } else { format!(": {message}") };
        if liveness != "ready" {
            findings.push(Finding::error(
                check,
                format!("{node_name} is {liveness}{said}"),
                format!("systemctl status mesh-agent on {node_name}; docker node rm {node_name} if it is gone for good"),
            ));
        } else if !message.is_empty() {
            findings.push(Finding::warning(
                check,
                format!("{node_name}{said}"),
                format!("run `mesh check --node` on {node_name}"),
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(check, format!("all {} nodes are ready", nodes.len())));
    }
    findings
}

fn clocks(nodes: &[Value]) -> Finding {
    let ahead = |node: &Value| node["Mesh"]["ClockAheadMs"].as_i64().unwrap_or(0);
    let off: Vec<String> = nodes
        .iter()
        .filter(|node| ahead(node).unsigned_abs() > CLOCK_WARNED_BEYOND_MS)
        .map(|node| {
            let (way, by) = (if ahead(node) > 0 { "ahead" } else { "behind" }, ahead(node).unsigned_abs());
            format!("{} ({} s {way})", name(node), by / 1000)
        })
        .collect();
    if off.is_empty() {
        return Finding::ok("time.skew", "the clocks of all nodes agree to 5 s");
    }
    Finding::warning(
        "time.skew",
        format!("clocks differ from their manager's: {}", off.join(", ")),
        "on those nodes: apt install systemd-timesyncd && timedatectl set-ntp true",
    )
}

fn versions(nodes: &[Value], scrapes: &[Scrape]) -> Finding {
    let check = "cluster.versions";
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in nodes {
        let version = text(&node["Mesh"]["AgentVersion"]);
        if !version.is_empty() {
            found.entry(version.to_owned()).or_default().push(format!("mesh-agent of {}", name(node)));
        }
    }
    for scrape in scrapes.iter().filter(|scrape| scrape.is_manager) {
        let Ok(metrics) = &scrape.metrics else { continue };
        let build = samples(metrics, "mesh_build_info").next();
        let Some(version) = build.and_then(|(labels, _)| label(labels, "version")) else { continue };
        found.entry(version.to_owned()).or_default().push(format!("mesh-control of {}", scrape.node));
    }
    let parts = |(version, parts): (&String, &Vec<String>)| format!("{version}: {}", parts.join(", "));
    match found.len() {
        0 => Finding::skipped(check, "no agent or manager tells its version: their metrics can't be reached"),
        1 => Finding::ok(
            check,
            format!("all that answer have version {}", found.keys().next().map_or("", String::as_str)),
        ),
        _ => Finding::warning(
            check,
            format!("versions differ: {}", found.iter().map(parts).collect::<Vec<_>>().join("; ")),
            "apt install the newest packages on all nodes, managers first",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::finding::Severity;

    fn node(name: &str, reachability: Option<&str>, liveness: &str) -> Value {
        let status = reachability.map(|said| json!({"Reachability": said, "Leader": name == "a"}));
        json!({"Description": {"Hostname": name}, "Status": {"State": "ready"}, "ManagerStatus": status,
               "Mesh": {"Liveness": liveness}})
    }

    fn facts(nodes: Vec<Value>) -> ClusterFacts {
        let info =
            json!({"Swarm": {"LocalNodeState": "active", "ControlAvailable": true, "Mesh": {"Leader": "a"}}});
        ClusterFacts { info, nodes, ..ClusterFacts::default() }
    }

    fn worst(facts: &ClusterFacts, check: &str) -> Option<Severity> {
        cluster(facts)
            .into_iter()
            .filter(|finding| finding.check == check)
            .map(|finding| finding.severity)
            .max()
    }

    #[test]
    fn a_quorum_is_counted() {
        let managers = |said: &[&str]| {
            let names = ["a", "b", "c", "d", "e"];
            facts(names.iter().zip(said).map(|(name, said)| node(name, Some(said), "ready")).collect())
        };
        let (up, down) = ("reachable", "unreachable");
        for (said, severity) in [
            (&[up][..], Severity::Ok),
            (&[up, up, up], Severity::Ok),
            (&[up, up, down], Severity::Warning),
            (&[up, down, down], Severity::Error),
            (&[up, down], Severity::Error),
        ] {
            assert_eq!(worst(&managers(said), "cluster.managers"), Some(severity), "{said:?}");
        }
        assert_eq!(worst(&managers(&[up, up]), "cluster.quorum"), Some(Severity::Warning));
        assert_eq!(worst(&managers(&[up, up, up]), "cluster.quorum"), None);
        let mut leaderless = managers(&[up]);
        leaderless.info["Swarm"]["Mesh"] = Value::Null;
        leaderless.nodes[0]["ManagerStatus"]["Leader"] = json!(false);
        assert_eq!(worst(&leaderless, "cluster.leader"), Some(Severity::Error));
    }

    #[test]
    fn silent_nodes_and_clocks_that_are_off_are_found() {
        let good = facts(vec![node("a", Some("reachable"), "ready"), node("w", None, "ready")]);
        assert_eq!(worst(&good, "cluster.nodes"), Some(Severity::Ok));
        assert_eq!(worst(&good, "time.skew"), Some(Severity::Ok));
        let silent = facts(vec![node("a", Some("reachable"), "ready"), node("w", None, "silent")]);
        assert_eq!(worst(&silent, "cluster.nodes"), Some(Severity::Error));
        let mut off = good;
        off.nodes[1]["Mesh"]["ClockAheadMs"] = json!(-7000);
        let seen = cluster(&off);
        assert!(seen.iter().any(|finding| finding.seen.contains("w (7 s behind)")), "{seen:?}");
    }

    fn scrape(node: &str, is_manager: bool, metrics: &str) -> Scrape {
        Scrape { node: node.to_owned(), is_manager, metrics: Ok(metrics.to_owned()), not_ready: None }
    }

    #[test]
    fn metrics_tell_of_versions_certificates_and_etcd() {
        let text = |version: &str, left: i64, connected: u8| {
            format!(
                "mesh_build_info{{version=\"{version}\",revision=\"x\"}} 1\n\
                 mesh_certificate_seconds_left{{certificate=\"node\"}} {left}\nmesh_store_connected {connected}\n"
            )
        };
        let day = 24 * 3600;
        let judged = |first: String, second: String| {
            let mut facts = facts(vec![node("a", Some("reachable"), "ready")]);
            facts.scrapes = vec![scrape("a", true, &first), scrape("b", true, &second)];
            ["cluster.versions", "certificates.expiry", "etcd.connected"].map(|check| worst(&facts, check))
        };
        let (ok, warning, error) = (Some(Severity::Ok), Some(Severity::Warning), Some(Severity::Error));
        assert_eq!(judged(text("1", 80 * day, 1), text("1", 80 * day, 1)), [ok, ok, ok]);
        assert_eq!(judged(text("1", 80 * day, 1), text("2", 2 * day, 1)), [warning, warning, ok]);
        assert_eq!(judged(text("1", -1, 0), text("1", 80 * day, 0)), [ok, error, error]);
        let mut alone = facts(vec![node("a", Some("reachable"), "ready")]);
        assert_eq!(worst(&alone, "cluster.versions"), Some(Severity::Skipped));
        alone.scrapes =
            vec![Scrape { not_ready: Some("the route is gone\n".to_owned()), ..scrape("a", false, "") }];
        assert_eq!(worst(&alone, "node.ready"), error);
    }

    #[test]
    fn a_node_that_fell_back_to_userspace_is_warned_of() {
        let said = |value: u8| {
            let metrics = format!("mesh_dataplane_fallback{{cause=\"load\"}} {value}\n");
            crate::rules::agent(&scrape("a", false, &metrics))
        };
        let seen = said(1);
        assert_eq!((seen.len(), seen[0].severity), (1, Severity::Warning));
        assert!(seen[0].seen.contains("(load)"), "{seen:?}");
        assert_eq!(said(0)[0].severity, Severity::Ok);
    }

    #[test]
    fn only_managers_know_the_cluster() {
        for (state, is_manager, severity) in [
            ("inactive", false, Severity::Warning),
            ("locked", false, Severity::Error),
            ("active", false, Severity::Skipped),
        ] {
            let info = json!({"Swarm": {"LocalNodeState": state, "ControlAvailable": is_manager}});
            let seen = cluster(&ClusterFacts { info, ..ClusterFacts::default() });
            assert_eq!((seen.len(), seen[0].severity), (1, severity), "{state}");
        }
    }
}

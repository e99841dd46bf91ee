//! What agents and managers tell of themselves by their metrics.

use std::time::Duration;

use serde_json::Value;

use crate::facts::Scrape;
use crate::finding::Finding;
use crate::metrics::{label, sample, samples};

/// The validity of a node's certificate where the cluster doesn't say it.
const USUAL_VALIDITY: Duration = Duration::from_hours(90 * 24);
/// Certificates are renewed at 80 % of their life at the latest; one with less than a tenth left
/// was not.
const LEFT_LEAST: f64 = 0.1;

/// Judges what one agent tells of itself.
pub(super) fn agent(scrape: &Scrape) -> Vec<Finding> {
    let mut findings = ready(std::slice::from_ref(scrape));
    findings.extend(fallback(scrape));
    match &scrape.metrics {
        Err(error) => {
            findings.push(Finding::skipped("node.ready", format!("can't read this node's metrics: {error}")));
        }
        Ok(_) if findings.is_empty() => {
            findings.push(Finding::ok("node.ready", "this node's agent is ready"));
        }
        Ok(_) => {}
    }
    findings
}

/// What agents say on `/readyz`.
pub(super) fn ready(scrapes: &[Scrape]) -> Vec<Finding> {
    let agents = scrapes.iter().filter(|scrape| !scrape.is_manager);
    let said = agents.filter_map(|scrape| Some((scrape, scrape.not_ready.as_deref()?)));
    said.map(|(scrape, reason)| {
        Finding::error(
            "node.ready",
            format!("the agent of {} isn't ready: {}", scrape.node, reason.trim()),
            format!("journalctl -u mesh-agent on {}", scrape.node),
        )
    })
    .collect()
}

/// Whether an agent carries traffic in userspace because its kernel takes no programs.
pub(super) fn fallback(scrape: &Scrape) -> Vec<Finding> {
    let Ok(metrics) = &scrape.metrics else { return Vec::new() };
    let fallen = samples(metrics, "mesh_dataplane_fallback").filter(|(_, value)| *value > 0.0);
    let node = &scrape.node;
    let finding = |(labels, _): (&str, f64)| {
        let cause = label(labels, "cause").unwrap_or("unknown");
        Finding::warning(
            "node.datapath",
            format!(
                "{node} carries traffic in userspace, as its kernel takes no programs ({cause}): it takes no tasks with networks"
            ),
            format!("docker info on {node} says the reason; then: systemctl restart mesh-agent"),
        )
    };
    fallen.map(finding).collect()
}

/// Whether certificates in use are renewed in time.
pub(super) fn certificates(scrapes: &[Scrape], swarm: &Value) -> Vec<Finding> {
    let check = "certificates.expiry";
    let validity =
        swarm["Spec"]["CAConfig"]["NodeCertExpiry"].as_u64().filter(|nanoseconds| *nanoseconds > 0);
    let validity = validity.map_or(USUAL_VALIDITY, Duration::from_nanos).as_secs_f64();
    let (mut findings, mut seen) = (Vec::new(), 0);
    for scrape in scrapes {
        let Ok(metrics) = &scrape.metrics else { continue };
        for (labels, left) in samples(metrics, "mesh_certificate_seconds_left") {
            seen += 1;
            let which = label(labels, "certificate").unwrap_or_default();
            let (node, hours) = (&scrape.node, left / 3600.0);
            let unit = if scrape.is_manager { "mesh-control" } else { "mesh-agent" };
            let cure = format!("journalctl -u {unit} on {node} says why it isn't renewed");
            if left <= 0.0 {
                findings.push(Finding::error(
                    check,
                    format!("the certificate {which} on {node} has expired"),
                    cure,
                ));
            } else if left < validity * LEFT_LEAST {
                let said = format!("the certificate {which} on {node} expires in {hours:.1} h");
                findings.push(Finding::warning(check, said, cure));
            }
        }
    }
    match (findings.is_empty(), seen) {
        (true, 0) => {
            findings
                .push(Finding::skipped(check, "no agent or manager tells how long its certificates last"));
        }
        (true, _) => findings.push(Finding::ok(check, format!("{seen} certificates are far from their end"))),
        (false, _) => {}
    }
    findings
}

/// Whether managers have etcd.
pub(super) fn etcd(scrapes: &[Scrape]) -> Vec<Finding> {
    let check = "etcd.connected";
    let managers: Vec<&Scrape> = scrapes.iter().filter(|scrape| scrape.is_manager).collect();
    let mut findings: Vec<Finding> = Vec::new();
    let mut connected = 0;
    for manager in managers {
        let node = &manager.node;
        match manager.metrics.as_ref().map(|metrics| sample(metrics, "mesh_store_connected", "")) {
            Ok(Some(1.0)) => connected += 1,
            Ok(Some(_)) => findings.push(Finding::error(
                check,
                format!("the manager of {node} has lost etcd"),
                format!("journalctl -u mesh-control on {node}"),
            )),
            Ok(None) => {}
            Err(error) => findings.push(Finding::skipped(
                check,
                format!("can't read the metrics of {node}'s manager: {error}"),
            )),
        }
    }
    if connected > 0 {
        findings.insert(0, Finding::ok(check, format!("{connected} managers have etcd")));
    }
    findings
}

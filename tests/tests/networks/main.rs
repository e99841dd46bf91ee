//! Networks and names, tested with a real stack: a shop of nginx, PHP-FPM, MariaDB and Redis whose
//! services find each other by name; and containers that are no tasks.
//!
//! The stack is deployed once; every check on it runs, and all failures are reported.
#![cfg(feature = "cluster")]

mod attach;
mod discovery;
mod dns;
mod encryption;
mod first_acts;
mod isolation;
mod names;
mod page;
mod shop;
mod six;
mod task;
mod virtual_ips;

use anyhow::{Result, bail, ensure};
use mesh_lab::cluster::{Cluster, TaskRow, eventually};
use mesh_tests::{PATIENCE, Service, cluster};

use crate::shop::Shop;

/// The checks in order; those that move tasks come last.
const CHECKS: [Check; 11] = [
    Check { name: "every node shows the page, which wrote and read by name", run: page::everywhere },
    Check { name: "names are those of Swarm", run: names::are_swarms },
    Check { name: "names of a network end with it", run: names::end_with_their_network },
    Check { name: "a task's own tools find the names", run: names::by_the_c_library },
    Check { name: "Prometheus discovers services, tasks and nodes", run: discovery::by_prometheus },
    Check { name: "strangers reach nothing", run: isolation::strangers_reach_nothing },
    Check { name: "a stranger's first packets reach nothing", run: first_acts::reach_no_stranger },
    Check { name: "a virtual IP spreads, to the asking task too", run: virtual_ips::spread },
    Check { name: "a virtual IP without a task refuses at once", run: virtual_ips::refuse_at_once },
    Check { name: "nginx follows a scale from 1 to 3 and back", run: page::follows_a_scale },
    Check { name: "the database moves, the page recovers", run: page::recovers_from_a_drain },
];

/// A check on the running shop.
struct Check {
    name: &'static str,
    run: fn(&Shop) -> Result<()>,
}

#[test]
fn a_shop_finds_its_parts_by_name() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        return userspace_refuses(&cluster);
    }
    let shop = Shop::open(&cluster)?;
    let mut failed = Vec::new();
    for check in CHECKS {
        let begun = std::time::Instant::now();
        let word = match (check.run)(&shop) {
            Ok(()) => "held",
            Err(error) => {
                failed.push(format!("{}: {error:#}", check.name));
                "FAILED"
            }
        };
        println!("{:<60} {word} after {:.1} s", check.name, begun.elapsed().as_secs_f64());
    }
    if !failed.is_empty() {
        bail!("{} of {} checks failed:\n{}", failed.len(), CHECKS.len(), failed.join("\n"));
    }
    Ok(())
}

#[test]
fn names_outlive_the_agent() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        return Ok(());
    }
    names::outlive_the_agent(&cluster)
}

/// The userspace datapath carries no networks: a task of a service on one waits, and shows why.
fn userspace_refuses(cluster: &Cluster) -> Result<()> {
    let docker = cluster.docker()?;
    let network = shop::Network::create(cluster, "unserved", &[])?;
    let arguments = ["--detach", "--network", network.name(), "whoami"];
    let service = Service::create(cluster, "unserved", &arguments)?;
    eventually("a task that says what its nodes lack", PATIENCE, || {
        let rows = docker.tasks(service.name())?;
        let says = rows.iter().any(|row| row.error.contains("no kernel programs for overlay networks"));
        ensure!(says && !rows.iter().any(TaskRow::is_running), "tasks: {rows:#?}");
        Ok(())
    })
}

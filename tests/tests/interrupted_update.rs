//! Tests that an update continues after mesh-control is killed or etcd goes away in its course: no
//! task is duplicated, none lost.
//!
//! `MESH_KILLS` sets how often mesh-control is killed; the default is a few times.
#![cfg(feature = "cluster")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::Part;
use mesh_lab::cluster::{Cluster, Docker, eventually};
use mesh_lab::component::Component;
use mesh_tests::{PATIENCE, Service, cluster, lab};

const REPLICAS: usize = 4;
const KILLS: u64 = 3;

#[test]
fn an_update_survives_the_death_of_its_managers() -> Result<()> {
    let cluster = cluster()?;
    let kills =
        std::env::var("MESH_KILLS").ok().map_or(Ok(KILLS), |text| text.parse()).context("read MESH_KILLS")?;
    let manager = cluster.record.nodes.iter().find(|node| node.manager).context("no manager")?.name.clone();
    let replicas = format!("--replicas={REPLICAS}");
    let service = Service::create(
        &cluster,
        "stubborn",
        &[&replicas, "--publish=8104:80", "--update-monitor=1s", "--env=GENERATION=0", "whoami"],
    )?;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for generation in 1..=kills {
        begin(&cluster, service.name(), generation)?;
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(generation);
        let moment = Duration::from_millis((seed >> 33) % 2500);
        std::thread::sleep(moment);
        // The last time, etcd is killed instead.
        let part = if generation == kills { Component::Etcd } else { Component::Control };
        lab::kill(&cluster, &manager, Part::One(part))?;
        std::thread::sleep(Duration::from_millis(300));
        lab::start(&cluster, &manager, Part::One(part))?;
        ends_well(&cluster, service.name(), generation)
            .with_context(|| format!("{part} killed after {moment:?}"))?;
        println!("{part} killed {moment:?} into update {generation}: it ended well");
    }
    Ok(())
}

fn begin(cluster: &Cluster, service: &str, generation: u64) -> Result<()> {
    let env = format!("--env-add=GENERATION={generation}");
    eventually("the API to take the update", PATIENCE, || {
        cluster.docker()?.run(&["service", "update", "--detach", &env, service]).map(drop)
    })
}

fn ends_well(cluster: &Cluster, service: &str, generation: u64) -> Result<()> {
    eventually("the update to be completed", PATIENCE * 2, || {
        let format = "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}";
        let state = cluster.docker()?.run(&["service", "inspect", "--format", format, service])?;
        ensure!(state.trim() == "completed", "the update is {state}");
        Ok(())
    })?;
    let rows = cluster.wait_running(service, REPLICAS, PATIENCE)?;
    let slots: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    ensure!(slots.len() == REPLICAS, "expected a task in each slot, saw {rows:#?}");
    // The running containers are the listed tasks, made from the newest spec; old containers may
    // still be stopping.
    eventually("a container for each task and no other", PATIENCE, || {
        let mut generations: BTreeMap<String, usize> = BTreeMap::new();
        for (node, containers) in cluster.containers(service)? {
            let engine = Docker::towards(&cluster.node(&node)?.mesh_host);
            for (id, _) in containers {
                let env =
                    engine.run(&["inspect", "--format", "{{range .Config.Env}}{{println .}}{{end}}", &id])?;
                let line =
                    env.lines().find(|line| line.starts_with("GENERATION=")).unwrap_or_default().to_owned();
                *generations.entry(line).or_default() += 1;
            }
        }
        let expected = BTreeMap::from([(format!("GENERATION={generation}"), REPLICAS)]);
        ensure!(generations == expected, "containers: {generations:?}");
        Ok(())
    })
}

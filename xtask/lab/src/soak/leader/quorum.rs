//! Two of three etcd are dead for a while: reads and traffic go on, writes are refused in Swarm's
//! words; when they run again, the cluster goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::{GAP_MAX, MANAGERS, POLL_PAUSE, SERVICE, start_traffic};
use crate::Lab;
use crate::cluster::{Cluster, eventually};
use crate::soak::managers::api::{Api, is_without_leader};
use crate::soak::managers::{self, etcd};
use crate::soak::measured::Measured;
use crate::soak::polling::Polling;

/// How long the quorum is lost.
const LOST: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_mins(2);
/// The services that are written without a quorum, and after it.
const REFUSED: &str = "refused";
const TAKEN: &str = "taken";

/// Loses the quorum under load, and gets it back.
///
/// # Errors
/// A step fails; bounds are in `measured`.
pub(super) fn lose(lab: &Lab, cluster: &Cluster, rate: u32, measured: &mut Measured) -> Result<()> {
    let api = Api::of(cluster, MANAGERS[0])?;
    let traffic = start_traffic(cluster, &MANAGERS, rate)?;
    let polling = Polling::start(managers::sockets(cluster, &MANAGERS)?, POLL_PAUSE);
    let stop = AtomicBool::new(false);
    let refused = thread::scope(|scope| {
        let death = scope.spawn(|| etcd::keep_dead(lab, &MANAGERS[1..], &stop));
        let refused = refuse_for_a_while(cluster);
        stop.store(true, Ordering::Relaxed);
        let killed = death.join().unwrap_or_else(|_| Err(anyhow!("the killer panicked")))?;
        measured.some("quorum: etcd processes killed", killed);
        refused
    });
    let back = Instant::now();
    let taken = refused.and_then(|count| {
        api.create_until_taken(TAKEN, PATIENCE)?;
        let taken = back.elapsed();
        eventually("the new service's task to run", PATIENCE, || {
            ensure!(api.runs(TAKEN)?, "no task runs");
            Ok(())
        })?;
        Ok((count, taken, back.elapsed()))
    });
    let (polled, outcome) = (polling.stop()?, traffic.stop()?);
    for one in polled {
        measured.none(&format!("quorum: reads that {} did not answer", one.manager), &one.failures);
        let figure = format!("quorum: the longest time without an answer of {}", one.manager);
        measured.below(&figure, one.gap, GAP_MAX);
    }
    measured.some("quorum: answers on new connections", outcome.answered[0]);
    measured.some("quorum: answers on connections that stay open", outcome.answered[1]);
    measured.none("quorum: requests failed", &outcome.failed());
    let (count, taken, runs) = taken?;
    measured.some("quorum: writes refused with 503 in Swarm's words", count);
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    measured.tell("quorum: a write was taken after etcd could start again", seconds(taken));
    measured.tell("quorum: what was written ran", seconds(runs));
    let docker = managers::docker(cluster, MANAGERS[0])?;
    managers::shows(&docker, &MANAGERS)?;
    etcd::follows(lab, MANAGERS[0], &MANAGERS)?;
    docker.run(&["service", "rm", TAKEN]).map(drop)
}

/// Writes by each manager in turn as long as the quorum is lost. The first writes may still be
/// taken, as the members have not died yet.
fn refuse_for_a_while(cluster: &Cluster) -> Result<u64> {
    let apis = MANAGERS.iter().map(|node| Api::of(cluster, node)).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    eventually("writes to be refused", PATIENCE, || {
        let answer = apis[0].create(REFUSED)?;
        if answer.status == 201 {
            apis[0].remove(REFUSED)?;
        }
        is_without_leader(&answer)
    })?;
    let mut count = 1;
    while begun.elapsed() < LOST {
        for (api, node) in apis.iter().zip(MANAGERS) {
            let answer = api.create(REFUSED)?;
            is_without_leader(&answer).with_context(|| format!("a write by {node} without a quorum"))?;
            count += 1;
        }
        let docker = managers::docker(cluster, MANAGERS[0])?;
        let listed = docker.run(&["service", "ls", "--format", "{{.Name}}"])?;
        ensure!(listed.lines().any(|name| name == SERVICE), "docker service ls showed: {listed}");
    }
    Ok(count)
}

//! The control plane over a store in memory, in simulated time: managers, leadership, planners and
//! the recorder are the real ones, nodes are simulated. Each seed is another sequence of faults;
//! invariants hold at every revision, and in the end the cluster is what its services ask for.

#![expect(clippy::unwrap_used, reason = "what can't be set up fails the test")]

mod clock;
mod cluster;
mod invariants;
mod node;

use std::time::Duration;

use cluster::Cluster;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// The faults in a run.
const MISHAPS: usize = 12;
/// Simulated time in which a cluster without further faults must converge: a node goes down,
/// restart delays, and a margin.
const REST: Duration = Duration::from_mins(2);

/// Runs one seed.
fn run(seed: u64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        clock::start();
        let mut rng = StdRng::seed_from_u64(seed);
        let mut cluster = Cluster::start(3, seed).await;
        cluster.put_service("web", 4).await;
        cluster.put_service("api", 3).await;
        cluster.rest(REST).await;
        cluster.check_converged(&format!("seed {seed}, before any mishap"));
        for number in 0..MISHAPS {
            let what = mishap(&mut cluster, &mut rng).await;
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..12_000))).await;
            cluster.note(format!("{number}: {what}"));
        }
        cluster.mend().await;
        cluster.rest(REST).await;
        cluster.check_converged(&format!("seed {seed}"));
        cluster.stop().await;
    });
}

/// Injects one fault into the cluster and returns its description.
async fn mishap(cluster: &mut Cluster, rng: &mut StdRng) -> String {
    let node = rng.random_range(0..cluster.nodes());
    match rng.random_range(0..7) {
        0 => cluster.kill_node(node),
        1 => cluster.revive_node(node).await,
        2 => cluster.lose_a_container(node),
        3 => cluster.crash_leader().await,
        4 => cluster.cut_store(Duration::from_millis(rng.random_range(500..9_000))).await,
        5 => cluster.scale("web", rng.random_range(0..8)).await,
        _ => cluster.scale("api", rng.random_range(1..6)).await,
    }
}

#[test]
fn clusters_survive_the_faults_of_seeds_1_to_8() {
    (1..=8).for_each(run);
}

#[test]
fn clusters_survive_the_faults_of_seeds_9_to_16() {
    (9..=16).for_each(run);
}

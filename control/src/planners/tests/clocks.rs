//! Tests of clocks that differ: plans, and their times, depend on the leader's clock alone.

use chrono::TimeDelta;
use mesh_state::spec::{FailureAction, RestartPolicy, UpdateConfig};
use proptest::prelude::*;

use super::simulator::Simulation;
use crate::fixtures::{World, global, ingress, service};

const NODES: [&str; 3] = ["a", "b", "c"];
const SECOND: u64 = 1_000_000_000;

/// How far clocks are ahead, in seconds.
#[derive(Debug, Clone, Copy, Default)]
struct Ahead {
    /// Each node's clock, against the first leader's.
    nodes: [i64; 3],
    /// The second leader's clock, against the first one's.
    leader: i64,
}

/// The planners' reasons, second by second, while tasks fail and are restarted within a window, an
/// update rolls, a node dies, the leader changes, and services are removed.
fn lived(seed: u64, ahead: Ahead) -> Vec<String> {
    let mut world = World::with_nodes(NODES);
    let mut web = service("web", 4);
    web.ports = vec![ingress(80, 80)];
    web.spec.endpoint_spec.get_or_insert_default().ports.clone_from(&web.ports);
    web.spec.task_template.restart_policy = Some(RestartPolicy {
        delay: Some(3_000_000_000),
        max_attempts: Some(2),
        window: Some(30 * SECOND),
        ..RestartPolicy::default()
    });
    web.spec.update_config = Some(UpdateConfig {
        parallelism: 1,
        delay: Some(4_000_000_000),
        monitor: Some(6_000_000_000),
        failure_action: Some(FailureAction::Rollback),
        max_failure_ratio: 0.5,
        ..UpdateConfig::default()
    });
    world.put_service(&web);
    world.put_service(&global("agent"));
    let mut simulation = Simulation::new(world, seed);
    for (node, ahead) in NODES.iter().zip(ahead.nodes) {
        simulation.behaviour.ahead.insert((*node).into(), TimeDelta::seconds(ahead));
    }
    simulation.behaviour.failures_per_mille = 40;
    simulation.seconds(40);
    let roll = |simulation: &mut Simulation, image: &str| {
        simulation.world.update_service("web", |spec| {
            spec.task_template.container_spec.get_or_insert_default().image = image.to_owned();
        });
    };
    roll(&mut simulation, "nginx:2");
    simulation.seconds(15);
    simulation.lead_by_a_clock_ahead(TimeDelta::seconds(ahead.leader));
    simulation.seconds(25);
    simulation.kill("c");
    simulation.seconds(30);
    roll(&mut simulation, "nginx:3");
    simulation.seconds(30);
    // Its task on the dead node gives up its port after the drain's limit.
    simulation.world.remove_service("web");
    simulation.seconds(50);
    // Only the reasons: the moments differ between leaders.
    simulation.log.iter().map(|line| line.splitn(4, ' ').last().unwrap_or_default().to_owned()).collect()
}

fn skew() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), -30..30_i64, -7200..7200_i64]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn the_clocks_of_nodes_and_former_leaders_change_nothing(
        seed in any::<u64>(),
        nodes in [skew(), skew(), skew()],
        leader in skew(),
    ) {
        let expected = lived(seed, Ahead::default());
        prop_assert!(expected.len() > 20, "too little happened: {expected:?}");
        prop_assert_eq!(lived(seed, Ahead { nodes, leader }), expected);
    }
}

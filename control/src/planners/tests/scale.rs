//! Tests at the size that mesh is made for: 10,000 tasks on 1,000 nodes.

use std::time::{Duration, Instant};

use mesh_state::task::TaskState;

use crate::fixtures::{World, global, ingress, node, service};
use crate::planners::ORDER;

/// Far above the time of a pass without optimisation (about 1 s for the slowest planner), far below
/// that of anything quadratic.
const PASS_MAX: Duration = Duration::from_secs(20);

/// Runs every planner once; returns the slowest planner's time.
fn pass(world: &mut World) -> (Duration, &'static str) {
    let mut slowest = (Duration::ZERO, "");
    for planner in ORDER {
        let began = Instant::now();
        let plan = (planner.plan)(world.now, &world.snapshot, &mut world.rng);
        slowest = slowest.max((began.elapsed(), planner.name));
        world.commit(&plan);
    }
    slowest
}

fn run_all(world: &mut World) {
    let tasks: Vec<_> = world.snapshot.tasks.keys().cloned().collect();
    for task in tasks {
        world.report(&task, TaskState::Running);
    }
}

#[test]
fn ten_thousand_tasks_on_a_thousand_nodes() {
    let mut world = World::new();
    for index in 0..1000_u32 {
        let mut member = node(&format!("n{index:04}"));
        let octets = (10 << 24 | 128 << 16) + (index << 8);
        member.subnet = Some(ipnet::Ipv4Net::new(octets.into(), 24).unwrap());
        member.description.nano_cpus = 64_000_000_000;
        world.add_node(&member);
    }
    for index in 0..90 {
        let mut web = service(&format!("web{index}"), 100);
        web.ports = vec![ingress(1000 + index, 80)];
        world.put_service(&web);
    }
    world.put_service(&global("agent"));
    let mut slowest = pass(&mut world);
    assert_eq!(world.snapshot.tasks.len(), 10_000);
    assert!(world.snapshot.tasks.values().all(|task| task.node_id.is_some()), "tasks wait");
    run_all(&mut world);
    slowest = slowest.max(pass(&mut world));
    for index in 0..90 {
        world.update_service(&format!("web{index}"), |spec| {
            spec.task_template.force_update += 1;
            spec.update_config = Some(mesh_state::spec::UpdateConfig::default());
        });
    }
    slowest = slowest.max(pass(&mut world));
    for index in 0..100 {
        world.set_liveness(&format!("n{index:04}").as_str().into(), mesh_state::node::NodeState::Down);
    }
    slowest = slowest.max(pass(&mut world));
    assert!(slowest.0 < PASS_MAX, "{} took {:?}", slowest.1, slowest.0);
}

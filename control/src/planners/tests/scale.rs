//! Tests at the size that mesh is made for: 10,000 tasks on 1,000 nodes, all on one network.

use std::time::{Duration, Instant};

use mesh_state::task::TaskState;

use crate::fixtures::{World, global, ingress, join, network, node, service};
use crate::node_service::mesh_table::Table;
use crate::planners::ORDER;

/// Far above the time of a pass without optimisation (about 1 s for the slowest planner), far below
/// that of anything quadratic.
const PASS_MAX: Duration = Duration::from_secs(20);
/// The same for a mesh table and the message of it.
const TABLE_MAX: Duration = Duration::from_secs(5);

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
    world.put_network(&network("app", "10.0.0.0/16", 1));
    for index in 0..90 {
        let mut web = service(&format!("web{index}"), 100);
        web.ports = vec![ingress(1000 + index, 80)];
        join(&mut web.spec, &["app"]);
        world.put_service(&web);
    }
    let mut agent = global("agent");
    join(&mut agent.spec, &["app"]);
    world.put_service(&agent);
    let mut slowest = pass(&mut world);
    assert_eq!(world.snapshot.tasks.len(), 10_000);
    assert!(world.snapshot.tasks.values().all(|task| task.node_id.is_some()), "tasks wait");
    assert_eq!(world.snapshot.networks[&"app".into()].node_addresses.len(), 1000);
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
    let began = Instant::now();
    let table = Table::of(&world.snapshot);
    let delta = table.since(&Table::default());
    let took = began.elapsed();
    assert_eq!(delta.members.len(), world.snapshot.tasks.len(), "every task is a member");
    assert!(took < TABLE_MAX, "the table took {took:?}");
    assert!(slowest.0 < PASS_MAX, "{} took {:?}", slowest.1, slowest.0);
}

//! Tests of rolling updates in simulated clusters.

use mesh_state::service::{UpdateState, UpdateStatus};
use mesh_state::spec::{FailureAction, RestartPolicy, ServiceSpec, UpdateConfig, UpdateOrder};
use mesh_state::task::TaskState;

use super::simulator::Simulation;
use crate::fixtures::{World, global, ingress, service};

fn image(name: &str) -> impl Fn(&mut ServiceSpec) {
    let name = name.to_owned();
    move |spec| spec.task_template.container_spec.get_or_insert_default().image.clone_from(&name)
}

fn seconds(count: i64) -> i64 {
    count * 1_000_000_000
}

/// Six replicas of `web` with a published port and these update settings, settled on three nodes.
fn settled(config: UpdateConfig) -> Simulation {
    let mut world = World::with_nodes(["a", "b", "c"]);
    let mut web = service("web", 6);
    web.spec.endpoint_spec.get_or_insert_default().ports = vec![ingress(80, 80)];
    web.ports = vec![ingress(80, 80)];
    web.spec.update_config = Some(config);
    web.spec.task_template.restart_policy =
        Some(RestartPolicy { delay: Some(1_000_000_000), ..RestartPolicy::default() });
    world.put_service(&web);
    let mut simulation = Simulation::new(world, 11);
    simulation.settle(60);
    simulation.fewest_running.clear();
    simulation
}

fn one_at_a_time() -> UpdateConfig {
    UpdateConfig { parallelism: 1, ..UpdateConfig::default() }
}

fn status(simulation: &Simulation) -> Option<UpdateStatus> {
    simulation.world.snapshot.services[&"web".into()].update_status.clone()
}

fn images(simulation: &Simulation) -> Vec<String> {
    let specs = simulation.running("web").into_iter().map(|task| {
        let spec = simulation.world.snapshot.spec_of(&task).unwrap();
        spec.task_template.container_spec.as_ref().unwrap().image.clone()
    });
    specs.collect()
}

/// How many tasks of `web` were made from the current spec so far.
fn made(simulation: &Simulation) -> usize {
    let version = simulation.world.snapshot.services[&"web".into()].spec_version;
    simulation.world.snapshot.tasks_of(&"web".into()).filter(|task| task.spec_version == version).count()
}

#[test]
fn one_slot_after_the_other_is_replaced() {
    let mut simulation = settled(one_at_a_time());
    simulation.world.update_service("web", image("nginx:2"));
    simulation.second();
    assert_eq!(status(&simulation).unwrap().message, "update in progress");
    simulation.settle(200);
    simulation.check_settled("web", 6);
    assert!(images(&simulation).iter().all(|image| image == "nginx:2"), "images: {:?}", images(&simulation));
    assert_eq!(
        simulation.fewest_running[&"web".into()],
        5,
        "expected one slot at a time to be without its task"
    );
    let status = status(&simulation).unwrap();
    assert_eq!((status.state, status.message.as_str()), (UpdateState::Completed, "update completed"));
    assert!(status.completed_at.unwrap() > status.started_at);
}

#[test]
fn an_update_before_the_first_tasks_ends_when_they_run() {
    for replicated in [true, false] {
        let mut world = World::with_nodes(["a", "b", "c"]);
        let mut web = if replicated { service("web", 3) } else { global("web") };
        // As the API writes it: there is no task yet that the updater could find outdated.
        web.update_status = Some(UpdateStatus::begun(world.now));
        world.put_service(&web);
        let mut simulation = Simulation::new(world, 5);
        simulation.second();
        assert_eq!(status(&simulation).unwrap().state, UpdateState::Updating, "replicated: {replicated}");
        simulation.settle(60);
        simulation.check_settled("web", 3);
        let ended = status(&simulation).unwrap();
        assert_eq!((ended.state, ended.message.as_str()), (UpdateState::Completed, "update completed"));
        let ran = simulation
            .running("web")
            .into_iter()
            .map(|task| simulation.world.snapshot.status_of(&task).running_at.unwrap());
        assert!(ran.max().unwrap() <= ended.completed_at.unwrap(), "completed before the tasks ran");
    }
}

#[test]
fn start_first_never_runs_fewer() {
    let mut simulation =
        settled(UpdateConfig { order: Some(UpdateOrder::StartFirst), parallelism: 2, ..one_at_a_time() });
    simulation.world.update_service("web", image("nginx:2"));
    simulation.settle(200);
    simulation.check_settled("web", 6);
    assert!(images(&simulation).iter().all(|image| image == "nginx:2"));
    assert!(simulation.fewest_running[&"web".into()] >= 6, "fewest: {:?}", simulation.fewest_running);
    assert_eq!(status(&simulation).unwrap().state, UpdateState::Completed);
}

#[test]
fn labels_scale_and_update_settings_restart_nothing() {
    let mut simulation = settled(one_at_a_time());
    let before: Vec<_> = simulation.running("web").into_iter().map(|task| task.id).collect();
    simulation.world.update_service("web", |spec| {
        spec.labels.insert("mesh.lb.policy".to_owned(), "least-connections".to_owned());
        spec.mode.replicated.get_or_insert_default().replicas = Some(8);
        spec.update_config = None;
    });
    simulation.settle(60);
    simulation.check_settled("web", 8);
    let after: Vec<_> = simulation.running("web").into_iter().map(|task| task.id).collect();
    assert!(before.iter().all(|id| after.contains(id)), "tasks were restarted");
    assert_eq!(status(&simulation), None, "no task was outdated");
}

#[test]
fn force_and_a_new_port_replace_every_task() {
    for change in
        [(|spec: &mut ServiceSpec| spec.task_template.force_update += 1) as fn(&mut ServiceSpec), |spec| {
            spec.endpoint_spec.get_or_insert_default().ports.push(ingress(81, 81));
        }]
    {
        let mut simulation = settled(UpdateConfig::default());
        simulation.world.update_service("web", change);
        simulation.settle(200);
        simulation.check_settled("web", 6);
        assert_eq!(made(&simulation), 6);
        let ports = simulation.world.snapshot.services[&"web".into()].ports.len();
        assert!(simulation.running("web").iter().all(|task| task.endpoints.len() == ports));
    }
}

#[test]
fn batches_are_a_delay_apart() {
    let mut simulation =
        settled(UpdateConfig { parallelism: 3, delay: Some(seconds(30)), ..one_at_a_time() });
    simulation.world.update_service("web", image("nginx:2"));
    simulation.seconds(25);
    assert_eq!(made(&simulation), 3, "the first batch:\n{}", simulation.describe());
    simulation.seconds(35);
    assert_eq!(made(&simulation), 6, "the second batch:\n{}", simulation.describe());
    simulation.settle(200);
    simulation.check_settled("web", 6);
}

#[test]
fn a_failure_pauses_the_update() {
    let mut simulation = settled(one_at_a_time());
    simulation.behaviour.broken_image = Some("broken".to_owned());
    simulation.world.update_service("web", image("broken"));
    simulation.seconds(12);
    let paused = status(&simulation).unwrap();
    assert_eq!(paused.state, UpdateState::Paused, "{}", simulation.describe());
    let name =
        paused.message.strip_prefix("update paused due to failure or early termination of task ").unwrap();
    assert!(simulation.world.snapshot.tasks.contains_key(&name.into()), "message: {}", paused.message);
    assert_eq!(images(&simulation), ["nginx"; 5], "expected all slots but one to be left alone");
    // An update to a good image continues from there.
    simulation.world.update_service("web", image("nginx:3"));
    simulation.settle(200);
    simulation.check_settled("web", 6);
    assert_eq!(images(&simulation), ["nginx:3"; 6]);
    assert_eq!(status(&simulation).unwrap().state, UpdateState::Completed);
}

#[test]
fn a_failed_start_first_update_leaves_every_old_task() {
    let mut simulation = settled(UpdateConfig { order: Some(UpdateOrder::StartFirst), ..one_at_a_time() });
    simulation.behaviour.broken_image = Some("broken".to_owned());
    simulation.world.update_service("web", image("broken"));
    simulation.seconds(60);
    assert_eq!(status(&simulation).unwrap().state, UpdateState::Paused, "{}", simulation.describe());
    assert_eq!(images(&simulation), ["nginx"; 6]);
}

#[test]
fn a_failure_rolls_back_with_the_ports() {
    let orders = [UpdateOrder::StopFirst, UpdateOrder::StartFirst];
    for (order, cuts_percent) in orders.into_iter().flat_map(|order| [(order, 0), (order, 40)]) {
        let config = UpdateConfig {
            failure_action: Some(FailureAction::Rollback),
            order: Some(order),
            parallelism: 2,
            ..UpdateConfig::default()
        };
        let mut simulation = settled(config);
        simulation.behaviour.broken_image = Some("broken".to_owned());
        simulation.behaviour.cuts_percent = cuts_percent;
        simulation.world.update_service("web", |spec| {
            image("broken")(spec);
            spec.endpoint_spec.get_or_insert_default().ports = vec![ingress(81, 80)];
        });
        simulation.settle(300);
        simulation.check_settled("web", 6);
        assert_eq!(images(&simulation), ["nginx"; 6]);
        let service = &simulation.world.snapshot.services[&"web".into()];
        let status = service.update_status.as_ref().unwrap();
        assert_eq!(
            (status.state, status.message.as_str()),
            (UpdateState::RollbackCompleted, "rollback completed")
        );
        assert_eq!(service.previous_spec, None, "an automatic rollback leaves nothing to return to");
        assert_eq!(service.ports, vec![ingress(80, 80)]);
        let claims: Vec<u16> = simulation.world.snapshot.ports.keys().map(|(_, port)| *port).collect();
        assert_eq!(claims, [80], "claimed ports");
        assert!(simulation.log.iter().any(|line| line.contains("update rolled back due to failure")));
    }
}

#[test]
fn a_rollback_is_not_rolled_back() {
    let config = UpdateConfig { failure_action: Some(FailureAction::Rollback), ..one_at_a_time() };
    let mut simulation = settled(config.clone());
    simulation.world.update_service("web", |spec| spec.rollback_config = Some(config));
    simulation.behaviour.broken_image = Some("nginx".to_owned());
    simulation.world.update_service("web", image("worse"));
    simulation.behaviour.failures_per_mille = 1000;
    simulation.seconds(120);
    let status = status(&simulation).unwrap();
    assert_eq!(status.state, UpdateState::RollbackPaused, "{}", simulation.describe());
    assert!(status.message.starts_with("rollback paused due to failure"), "message: {}", status.message);
}

#[test]
fn the_update_goes_on_after_a_tolerated_failure() {
    let mut simulation = settled(UpdateConfig { max_failure_ratio: 1.0, ..one_at_a_time() });
    simulation.behaviour.broken_image = Some("broken".to_owned());
    simulation.world.update_service("web", image("broken"));
    simulation.seconds(200);
    assert_eq!(status(&simulation).unwrap().state, UpdateState::Completed, "{}", simulation.describe());
}

#[test]
fn without_acknowledgements_the_update_waits_for_its_limit_and_goes_on() {
    let mut simulation = settled(one_at_a_time());
    simulation.acknowledges = false;
    simulation.world.update_service("web", image("nginx:2"));
    simulation.seconds(15);
    assert!(made(&simulation) <= 2, "went on without waiting:\n{}", simulation.describe());
    simulation.settle(300);
    simulation.check_settled("web", 6);
    assert_eq!(images(&simulation), ["nginx:2"; 6]);
}

#[test]
fn global_services_roll_too() {
    let mut world = World::with_nodes(["a", "b", "c"]);
    world.put_service(&global("web"));
    let mut simulation = Simulation::new(world, 5);
    simulation.settle(60);
    simulation.fewest_running.clear();
    simulation.world.update_service("web", image("nginx:2"));
    simulation.settle(200);
    simulation.check_settled("web", 3);
    assert_eq!(images(&simulation), ["nginx:2"; 3]);
    assert_eq!(simulation.fewest_running[&"web".into()], 2);
}

#[test]
fn a_slot_whose_task_ended_for_good_is_updated_too() {
    let mut simulation = settled(UpdateConfig::default());
    simulation.world.update_service("web", |spec| {
        spec.task_template.restart_policy.get_or_insert_default().condition =
            Some(mesh_state::spec::RestartCondition::None);
    });
    simulation.settle(200);
    let ended = simulation.running("web")[0].id.clone();
    simulation.world.report(&ended, TaskState::Complete);
    simulation.settle(60);
    simulation.check_settled("web", 5);
    simulation.world.update_service("web", image("nginx:2"));
    simulation.settle(200);
    simulation.check_settled("web", 6);
    assert_eq!(images(&simulation), ["nginx:2"; 6]);
}

//! Tests of updates that can't succeed: an image that doesn't exist, a task that exits at once, one
//! that becomes unhealthy.
#![cfg(feature = "cluster")]

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_lab::cluster::{Cluster, eventually};
use mesh_tests::{PATIENCE, Service, cluster};

/// Nothing listens there, so that a pull fails at once.
const NO_SUCH_IMAGE: &str = "127.0.0.1:1/nope:1";

fn create(cluster: &Cluster, name: &str) -> Result<Service> {
    let monitors = ["--update-monitor=500ms", "--rollback-monitor=500ms"];
    // A shell as process 1 without a handler ignores SIGTERM.
    let service = ["--replicas=2", "--stop-signal=SIGKILL", "--restart-delay=1s", "busybox", "sleep", "600"];
    Service::create(cluster, name, &[&monitors[..], &service].concat())
}

/// Waits for this state of the service's update, and returns its message.
fn ends(cluster: &Cluster, service: &str, state: &str) -> Result<String> {
    eventually(&format!("the update of {service} to be {state}"), PATIENCE, || {
        let format = "{{if .UpdateStatus}}{{.UpdateStatus.State}} {{.UpdateStatus.Message}}{{end}}";
        let said = cluster.docker()?.run(&["service", "inspect", "--format", format, service])?;
        let message = said.trim().strip_prefix(state).map(|message| message.trim().to_owned());
        message.ok_or_else(|| anyhow::anyhow!("the update's status: {said}"))
    })
}

fn spec_of(cluster: &Cluster, service: &str) -> Result<String> {
    cluster.docker()?.run(&[
        "service",
        "inspect",
        "--format",
        "{{json .Spec.TaskTemplate.ContainerSpec}}",
        service,
    ])
}

#[test]
fn an_image_that_does_not_exist_pauses_the_update() -> Result<()> {
    let cluster = cluster()?;
    let service = create(&cluster, "paused")?;
    let docker = cluster.docker()?;
    docker.run(&[
        "service",
        "update",
        "--detach",
        "--no-resolve-image",
        "--image",
        NO_SUCH_IMAGE,
        service.name(),
    ])?;
    let message = ends(&cluster, service.name(), "paused")?;
    ensure!(
        message.starts_with("update paused due to failure or early termination of task "),
        "message: {message}"
    );
    let rows = docker.tasks(service.name())?;
    let rejected = rows.iter().find(|row| row.current_state.starts_with("Rejected"));
    ensure!(
        rejected.is_some_and(|row| row.error.contains(&format!("No such image: {NO_SUCH_IMAGE}"))),
        "{rows:#?}"
    );
    let untouched = rows.iter().filter(|row| row.is_running()).count();
    ensure!(untouched == 1, "expected the other task to run on, saw {rows:#?}");

    docker.run(&["service", "update", "--detach", "--image=busybox", service.name()])?;
    cluster.wait_running(service.name(), 2, PATIENCE).map(drop)
}

#[test]
fn a_task_that_exits_at_once_rolls_the_update_back() -> Result<()> {
    let cluster = cluster()?;
    let service = create(&cluster, "back")?;
    let docker = cluster.docker()?;
    docker.run(&[
        "service",
        "update",
        "--quiet",
        "--detach",
        "--update-failure-action=rollback",
        service.name(),
    ])?;
    let before = spec_of(&cluster, service.name())?;
    docker.run(&["service", "update", "--detach", "--args", "sh -c 'exit 3'", service.name()])?;
    let message = ends(&cluster, service.name(), "rollback_completed")?;
    ensure!(message == "rollback completed", "message: {message}");
    ensure!(spec_of(&cluster, service.name())? == before, "expected the previous spec");
    let rows = cluster.wait_running(service.name(), 2, PATIENCE)?;
    let history = docker.tasks(service.name())?;
    ensure!(history.iter().any(|row| row.error.contains("task: non-zero exit (3)")), "tasks: {history:#?}");
    ensure!(rows.len() == 2, "tasks: {rows:#?}");
    let refusal = docker.refused(&["service", "update", "--detach", "--rollback", service.name()])?;
    ensure!(refusal.message.contains("does not have a previous spec"), "said: {}", refusal.message);
    Ok(())
}

#[test]
fn an_unhealthy_task_fails_and_continue_goes_on() -> Result<()> {
    let cluster = cluster()?;
    let service = create(&cluster, "onwards")?;
    let docker = cluster.docker()?;
    docker.run(&[
        "service",
        "update",
        "--detach",
        "--update-failure-action=continue",
        "--health-cmd=false",
        "--health-interval=300ms",
        "--health-retries=1",
        "--stop-grace-period=0s",
        service.name(),
    ])?;
    let message = ends(&cluster, service.name(), "completed")?;
    ensure!(message == "update completed", "message: {message}");
    let rows = docker.tasks(service.name())?;
    let unhealthy = rows.iter().filter(|row| row.error.contains("unhealthy container")).count();
    ensure!(unhealthy >= 2, "expected both slots to have failed as unhealthy, saw {rows:#?}");
    ensure!(
        !rows.iter().any(mesh_lab::cluster::TaskRow::is_running),
        "what is unhealthy never runs: {rows:#?}"
    );
    // A crash loop is slowed down: a new task no sooner than the restart delay, and a bounded
    // history.
    std::thread::sleep(Duration::from_secs(3));
    let rows = docker.tasks(service.name())?;
    ensure!(
        rows.len() <= 2 * 7,
        "expected at most five ended tasks a slot beside its present one, saw {rows:#?}"
    );
    Ok(())
}

//! Tests of jobs: tasks that run to completion, once per execution of the job.
#![cfg(feature = "cluster")]

use anyhow::{Result, ensure};
use mesh_lab::cluster::{Cluster, eventually};
use mesh_tests::{PATIENCE, Service, cluster};

/// Waits until `docker service ls` shows these replicas.
fn replicas(cluster: &Cluster, service: &str, expected: &str) -> Result<()> {
    eventually(&format!("{service} at {expected}"), PATIENCE, || {
        let filter = format!("name={service}");
        let seen = cluster.docker()?.run(&[
            "service",
            "ls",
            "--filter",
            &filter,
            "--format",
            "{{.Mode}} {{.Replicas}}",
        ])?;
        ensure!(seen.trim() == expected, "service ls: {seen}");
        Ok(())
    })
}

#[test]
fn a_replicated_job_completes_and_runs_again_when_it_is_forced() -> Result<()> {
    let cluster = cluster()?;
    let args =
        ["--mode=replicated-job", "--replicas=3", "--max-concurrent=1", "busybox", "sh", "-c", "sleep 0.5"];
    let service = Service::create_verified(&cluster, "batch", &args)?;
    replicas(&cluster, "batch", "replicated job 0/1 (3/3 completed)")?;
    let completed = |count: usize| -> Result<()> {
        let rows = cluster.docker()?.tasks(service.name())?;
        let done = rows.iter().filter(|row| row.current_state.starts_with("Complete")).count();
        ensure!(done == count, "expected {count} completed tasks, saw {rows:#?}");
        Ok(())
    };
    completed(3)?;
    let rows = cluster.docker()?.tasks(service.name())?;
    ensure!(rows.iter().all(|row| row.desired_state == "Complete"), "tasks: {rows:#?}");
    cluster.docker()?.run(&["service", "update", "--quiet", "--force", service.name()])?;
    replicas(&cluster, "batch", "replicated job 0/1 (3/3 completed)")?;
    completed(6)
}

#[test]
fn a_global_job_runs_once_on_every_node() -> Result<()> {
    let cluster = cluster()?;
    let _service = Service::create_verified(&cluster, "sweep", &["--mode=global-job", "busybox", "true"])?;
    let nodes = cluster.record.nodes.len();
    replicas(&cluster, "sweep", &format!("global job 0/0 ({nodes}/{nodes} completed)"))
}

#[test]
fn a_failing_job_is_given_up_by_its_policy() -> Result<()> {
    let cluster = cluster()?;
    let args = [
        "--detach",
        "--mode=replicated-job",
        "--restart-delay=100ms",
        "--restart-max-attempts=1",
        "busybox",
        "sh",
        "-c",
        "exit 3",
    ];
    let service = Service::create_verified(&cluster, "failing", &args)?;
    let failed = || -> Result<usize> {
        let rows = cluster.docker()?.tasks(service.name())?;
        Ok(rows.iter().filter(|row| row.error.contains("task: non-zero exit (3)")).count())
    };
    eventually("two attempts", PATIENCE, || {
        let seen = failed()?;
        ensure!(seen == 2, "saw {seen}");
        Ok(())
    })?;
    replicas(&cluster, "failing", "replicated job 0/1 (0/1 completed)")
}

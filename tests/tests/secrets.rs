//! Tests of secrets and configs on real engines: where they are, where they are not, and how they
//! are rotated.
#![cfg(feature = "cluster")]

use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::Part;
use mesh_lab::client::http;
use mesh_lab::cluster::{Cluster, Docker, eventually};
use mesh_lab::component::Component;
use mesh_tests::deposit::Deposit;
use mesh_tests::{PATIENCE, Service, cluster, lab};

/// A value that must be only in the tasks' files.
const VALUE: &str = "tr0ub4dor-and-3-horses";
/// The same in base64, as clients send it.
const VALUE_BASE64: &str = "dHIwdWI0ZG9yLWFuZC0zLWhvcnNlcw==";
/// A value in a service's environment, which proves that the search finds values.
const MARK: &str = "not-a-secret-at-all";

/// The length of the longest config, bytes.
const LONGEST: usize = 1_023_999;

/// The directory of tasks' files on a node.
const TASK_FILES: &str = "/run/mesh/tasks";

#[test]
fn a_secret_is_with_its_tasks_and_nowhere_else() -> Result<()> {
    let cluster = cluster()?;
    let secret = Deposit::secret(&cluster, "known", VALUE.as_bytes())?;
    let config = Deposit::config(&cluster, "settings", b"listen 80\n")?;
    // As long as Swarm allows, and without a newline at the end.
    let longest = Deposit::config(&cluster, "longest", &vec![b'x'; LONGEST])?;
    let arguments = [
        "--detach",
        "--mode=global",
        "--constraint=node.role==worker",
        "--stop-grace-period=0s",
        "--secret=known",
        "--secret=source=known,target=/etc/second,uid=33,gid=7,mode=0400",
        "--config=source=settings,target=/etc/app.conf",
        "--config=longest",
        &format!("--env=MARK={MARK}"),
        "busybox",
        "sleep",
        "10000",
    ];
    let service = Service::create(&cluster, "holder", &arguments)?;
    let workers = cluster.record.nodes.iter().filter(|node| !node.manager).count();
    cluster.wait_running(service.name(), workers, PATIENCE)?;
    let containers = cluster.containers(service.name())?;
    for (node, tasks) in &containers {
        for (id, _) in tasks {
            shows_its_files(&Docker::towards(&cluster.node(node)?.mesh_host), id)?;
        }
    }
    value_is_nowhere(&cluster, service.name())?;
    let manager = cluster.record.nodes.iter().find(|node| node.manager).context("no manager")?;
    let listed =
        lab::on_machine(&cluster, &manager.name, &["sh", "-c", &format!("ls {TASK_FILES} || true")])?;
    ensure!(listed.is_empty(), "{} runs no task, yet has files: {listed}", manager.name);

    let (node, tasks) = containers.iter().find(|(_, tasks)| !tasks.is_empty()).context("no container")?;
    outlives_the_agent(&cluster, node, &tasks[0].0)?;

    let used = cluster.docker()?.refused(&["secret", "rm", secret.name()])?;
    let message = "secret 'known' is in use by the following service: holder";
    ensure!(used.message.contains(message), "removing a secret in use said: {}", used.message);
    drop(service);
    for node in containers.keys() {
        eventually(&format!("no files on {node}"), PATIENCE, || {
            let listed = lab::on_machine(&cluster, node, &["sh", "-c", &format!("ls {TASK_FILES} || true")])?;
            ensure!(listed.is_empty(), "files: {listed}");
            Ok(())
        })?;
    }
    drop((secret, config, longest));
    let left = cluster.docker()?.run(&["secret", "ls", "--format", "{{.Name}}"])?;
    ensure!(!left.contains("known"), "secrets left: {left}");
    Ok(())
}

fn shows_its_files(docker: &Docker, container: &str) -> Result<()> {
    let inside = |words: &[&str]| docker.run(&[&["exec", container], words].concat());
    let contents = inside(&["cat", "/run/secrets/known", "/etc/second", "/etc/app.conf"])?;
    ensure!(contents == format!("{VALUE}{VALUE}listen 80\n"), "the files hold: {contents}");
    let modes = inside(&["stat", "-c", "%u:%g %a", "/run/secrets/known", "/etc/second", "/etc/app.conf"])?;
    ensure!(modes == "0:0 444\n33:7 400\n0:0 444\n", "owners and modes: {modes}");
    let length = inside(&["wc", "-c", "/longest"])?;
    ensure!(length.trim() == format!("{LONGEST} /longest"), "the longest config came as {length}");
    let written = docker.refused(&["exec", container, "sh", "-c", "echo x > /run/secrets/known"])?;
    ensure!(written.message.contains("Read-only file system"), "writing said: {}", written.message);
    let mounted = inside(&["grep", "-E", " /run/secrets/known | /etc/second ", "/proc/mounts"])?;
    ensure!(
        mounted.lines().count() == 2 && mounted.lines().all(|line| line.contains(" tmpfs ro")),
        "expected two read-only tmpfs mounts, saw: {mounted}"
    );
    Ok(())
}

/// Searches every place where the value must not be. The mark in the service's environment shows
/// that the search works.
fn value_is_nowhere(cluster: &Cluster, service: &str) -> Result<()> {
    let disks = cluster.layout.state_dir();
    let marked = files_with(&disks, &[MARK])?;
    for place in ["/etcd/", "/agent/tasks/", "/docker-data/containers/"] {
        ensure!(
            marked.iter().any(|file| file.contains(place)),
            "the mark isn't found in {place}: {marked:?}"
        );
    }
    let leaked = files_with(&disks, &[VALUE, VALUE_BASE64])?;
    ensure!(leaked.is_empty(), "the value is on a disk: {leaked:?}");

    let (mut marks, mut leaks) = (0, Vec::new());
    for process in fs::read_dir("/proc").context("list processes")? {
        let path = process?.path();
        // A process may end during the search.
        for text in ["environ", "cmdline"].iter().filter_map(|name| fs::read(path.join(name)).ok()) {
            let text = String::from_utf8_lossy(&text);
            marks += usize::from(text.contains(MARK));
            if text.contains(VALUE) || text.contains(VALUE_BASE64) {
                leaks.push(path.clone());
            }
        }
    }
    ensure!(marks > 0, "the mark is in no process's environment: the search doesn't work");
    ensure!(leaks.is_empty(), "the value is with processes {leaks:?}");

    let docker = cluster.docker()?;
    let mut answers = vec![
        docker.run(&["service", "inspect", service])?,
        docker.run(&["secret", "inspect", "known"])?,
        docker.run(&["secret", "ls"])?,
    ];
    for task in docker.tasks(service)? {
        answers.push(docker.run(&["inspect", "--type", "task", &task.id])?);
    }
    for (node, containers) in cluster.containers(service)? {
        let docker = Docker::towards(&cluster.node(&node)?.mesh_host);
        for (id, _) in containers {
            answers.push(docker.run(&["inspect", &id])?);
            answers.push(docker.run(&["logs", &id])?);
        }
    }
    ensure!(answers.iter().filter(|answer| answer.contains(MARK)).count() > 2, "answers: {answers:?}");
    let leak = answers.iter().find(|answer| answer.contains(VALUE) || answer.contains(VALUE_BASE64));
    ensure!(leak.is_none(), "an answer holds the value: {leak:?}");
    Ok(())
}

/// The files below `directory` that contain any of `words`.
fn files_with(directory: &Path, words: &[&str]) -> Result<Vec<String>> {
    let mut grep = Command::new("grep");
    grep.args(["--recursive", "--text", "--files-with-matches", "--fixed-strings", "--devices=skip"]);
    for word in words {
        grep.arg("--regexp").arg(word);
    }
    let output = grep.arg(directory).output().context("start grep")?;
    match output.status.code() {
        // 2: a file vanished during the search; the output is valid all the same.
        Some(0..=2) => Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()),
        other => bail!("grep ended with {other:?}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// A dying agent removes no file, and the next one needs no manager for it.
fn outlives_the_agent(cluster: &Cluster, node: &str, container: &str) -> Result<()> {
    let engine = Docker::towards(&cluster.node(node)?.docker_host);
    let manager = cluster.record.nodes.iter().find(|node| node.manager).context("no manager")?;
    let read = || engine.run(&["exec", container, "cat", "/run/secrets/known"]);
    lab::kill(cluster, &manager.name, Part::One(Component::Control))?;
    lab::kill(cluster, node, Part::One(Component::Agent))?;
    let without = read();
    let started = lab::start(cluster, node, Part::One(Component::Agent));
    let after = read();
    lab::start(cluster, &manager.name, Part::One(Component::Control))?;
    started?;
    for (when, seen) in [("without an agent", without), ("with a new agent and no manager", after)] {
        let seen = seen?;
        ensure!(seen == VALUE, "{when} the task read: {seen}");
    }
    cluster.wait_running("holder", cluster.containers("holder")?.values().map(Vec::len).sum(), PATIENCE)?;
    let seen = read()?;
    ensure!(seen == VALUE, "once all was back the task read: {seen}");
    Ok(())
}

#[test]
fn a_secret_is_rotated_under_load() -> Result<()> {
    let cluster = cluster()?;
    let old = Deposit::secret(&cluster, "page-1", b"first")?;
    let new = Deposit::secret(&cluster, "page-2", b"second")?;
    let target = "target=/usr/share/nginx/html/page";
    let arguments = [
        "--detach",
        "--replicas=2",
        "--publish=8103:80",
        "--update-order=start-first",
        "--update-monitor=500ms",
        &format!("--secret=source={},{target}", old.name()),
        "nginx",
    ];
    let service = Service::create(&cluster, "rotating", &arguments)?;
    cluster.wait_running(service.name(), 2, PATIENCE)?;
    let servers = cluster.everywhere(8103);
    for server in &servers {
        let page = eventually("the page", PATIENCE, || cluster.ask(*server, "/page"))?;
        ensure!(page == "first", "{server} showed {page}");
    }
    let (asked, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| ask_until(&cluster, &servers, &asked, &stop));
        let rotated = rotate(&cluster, service.name(), &old, &new, target);
        stop.store(true, Ordering::Relaxed);
        let asked_well = load.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the load panicked")));
        rotated.and(asked_well)
    })?;
    ensure!(asked.into_inner() > 100, "too few requests to detect a loss");
    for server in &servers {
        let page = cluster.ask(*server, "/page")?;
        ensure!(page == "second", "{server} showed {page} after the rotation");
    }
    old.remove()?;
    let gone = cluster.docker()?.refused(&["service", "rollback", "--detach", service.name()])?;
    ensure!(gone.message.contains("secret not found: page-1"), "a rollback said: {}", gone.message);
    Ok(())
}

fn rotate(cluster: &Cluster, service: &str, old: &Deposit, new: &Deposit, target: &str) -> Result<()> {
    let added = format!("source={},{target}", new.name());
    let update =
        ["service", "update", "--detach", "--secret-rm", old.name(), "--secret-add", &added, service];
    cluster.docker()?.run(&update)?;
    eventually("the update's end", PATIENCE, || {
        let format = "{{.UpdateStatus.State}}";
        let state = cluster.docker()?.run(&["service", "inspect", "--format", format, service])?;
        ensure!(state.trim() == "completed", "update: {state}");
        Ok(())
    })
}

/// Asks one node after the other, and every answer must be one of the two pages.
fn ask_until(
    cluster: &Cluster,
    servers: &[SocketAddrV4],
    asked: &AtomicUsize,
    stop: &AtomicBool,
) -> Result<()> {
    cluster.client().run(|| {
        for server in servers.iter().cycle() {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let response = http::get(*server, "/page", http::DEADLINE)?;
            let page = response.text();
            let known = response.status == 200 && ["first", "second"].contains(&page.as_str());
            ensure!(known, "{server} answered {} {page}", response.status);
            asked.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    })
}

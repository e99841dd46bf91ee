//! A backup that is restored onto its cluster, and into a new etcd after all of the control plane's
//! data is lost, under requests and downloads: none may fail, none may be cut.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use mesh_checkout::setup;

use crate::artifacts::{self, Binaries};
use crate::client::downloads::Downloads;
use crate::client::load::LoadGenerator;
use crate::cluster::{Cluster, Docker, eventually};
use crate::component::Component;
use crate::layout::{LabName, Layout};
use crate::{Datapath, Lab, Part, UpOptions};

/// The node whose mesh-control founds the cluster and is restored.
const MANAGER: &str = "node-1";
/// The port of the service that stays as it is.
const PORT: u16 = 8080;
/// How long each download is planned to take.
const LASTING: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_mins(2);

/// Arguments of `cargo xtask soak restore`.
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The lab's name
    #[arg(long, default_value = "soak-restore")]
    name: LabName,
    /// Requests per second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Downloads at a time
    #[arg(long, default_value_t = 6)]
    downloads: usize,
}

/// Makes a lab, restores a backup both ways under traffic, and removes the lab if every check held.
///
/// # Errors
/// The cluster is not as in the backup, or a connection failed; the lab is kept for inspection.
pub(super) fn run(args: &RestoreArgs) -> Result<()> {
    setup::ensure()?;
    let binaries = artifacts::build()?;
    let layout = Layout::new(args.name.clone());
    let mut lab = Lab::up(&layout, &UpOptions { empty: true, ..UpOptions::usual(Datapath::Tc) }, &binaries)?;
    let cluster = Cluster::open(layout.clone())?;
    hold(&mut lab, &cluster, args, &binaries).with_context(|| {
        format!("the lab is kept for inspection; then: cargo xtask lab --name {} down", args.name)
    })?;
    Lab::down(&layout)
}

fn hold(lab: &mut Lab, cluster: &Cluster, args: &RestoreArgs, binaries: &Binaries) -> Result<()> {
    let docker = Docker::towards(&cluster.node(MANAGER)?.mesh_host);
    form(cluster, &docker)?;
    let servers = cluster.everywhere(PORT);
    for server in &servers {
        eventually(&format!("{server} answers"), PATIENCE, || cluster.ask(*server, "/"))?;
    }
    let mesh = Backups::new(lab, cluster, binaries)?;
    let before = state(&docker)?;
    let load = LoadGenerator::start(&cluster.client(), &servers, "/", args.rate);
    let downloads = Downloads::start(&cluster.client(), &servers, args.downloads, LASTING);
    let restored = both_ways(lab, cluster, binaries, &docker, &mesh, &before);
    let (report, seen) = (load.stop()?, downloads.finish()?);
    println!(
        "{} requests answered, {} failed; {} downloads whole, {} cut",
        report.answered(),
        report.failures.len(),
        seen.whole,
        seen.cut.len()
    );
    restored?;
    ensure!(report.answered() > 0 && seen.whole > 0, "no traffic");
    ensure!(report.failures.is_empty(), "requests failed: {:?}", report.failures.first());
    ensure!(seen.cut.is_empty(), "downloads were cut: {:?}", seen.cut);
    Ok(())
}

/// Makes a cluster with a service, a secret, a config and a network, and more that is to change.
fn form(cluster: &Cluster, docker: &Docker) -> Result<()> {
    let said = docker.run(&["swarm", "init"])?;
    let join = said.lines().map(str::trim).find(|line| line.starts_with("docker swarm join "));
    let words: Vec<&str> = join.context("no command to join")?.split_whitespace().skip(1).collect();
    for node in cluster.record.nodes.iter().filter(|node| node.name != MANAGER) {
        Docker::towards(&node.mesh_host).run(&words)?;
    }
    docker.run(&["network", "create", "--driver", "overlay", "back"])?;
    let file = cluster.layout.record_file();
    let file = file.to_str().context("a path")?;
    docker.run(&["secret", "create", "password", file])?;
    docker.run(&["config", "create", "settings", file])?;
    let create = ["service", "create", "--detach", "--no-resolve-image", "--network", "back"];
    let publish = format!("{PORT}:80");
    docker.run(&[&create[..], &["--name", "web", "--replicas", "6", "-p", &publish, "whoami"]].concat())?;
    let uses = ["--secret", "password", "--config", "settings", "--replicas", "2"];
    docker.run(&[&create[..], &["--name", "gone"], &uses, &["whoami"]].concat())?;
    docker.run(&[&create[..], &["--name", "scaled", "--replicas", "2", "whoami"]].concat())?;
    cluster.wait_running("web", 6, PATIENCE)?;
    eventually("all services to run", PATIENCE, || {
        let rows = docker.run(&["service", "ls", "--format", "{{.Name}} {{.Replicas}}"])?;
        ensure!(rows.contains("gone 2/2") && rows.contains("scaled 2/2"), "services: {rows}");
        Ok(())
    })
}

/// Restores onto the cluster, then into a new etcd.
fn both_ways(
    lab: &mut Lab,
    cluster: &Cluster,
    binaries: &Binaries,
    docker: &Docker,
    mesh: &Backups,
    before: &str,
) -> Result<()> {
    let tasks = mesh_tasks(docker)?;
    mesh.run(&["save", &mesh.file()])?;
    change(docker)?;
    ensure!(state(docker)? != before, "nothing changed");
    let begun = Instant::now();
    println!("{}", mesh.run(&["restore", &mesh.file()])?);
    eventually("the state of the backup", PATIENCE, || is_as(docker, before))?;
    println!("restored onto the cluster in {:.1} s", begun.elapsed().as_secs_f64());
    ensure!(mesh_tasks(docker)? == tasks, "tasks of the service that did not change were replaced");

    lab.kill(MANAGER, Part::One(Component::Control))?;
    let data = lab.node(MANAGER)?.control_dir();
    eventually("an end of etcd", PATIENCE, || {
        fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))
    })?;
    lab.start(MANAGER, Part::One(Component::Control), binaries)?;
    let begun = Instant::now();
    println!("{}", mesh.run(&["restore", &mesh.file()])?);
    eventually("every node to be back", PATIENCE, || {
        let rows = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        let ready = rows.lines().filter(|row| row.ends_with(" Ready")).count();
        ensure!(ready == cluster.record.nodes.len(), "nodes: {rows}");
        is_as(docker, before)
    })?;
    println!("restored into a new etcd in {:.1} s", begun.elapsed().as_secs_f64());
    ensure!(mesh_tasks(docker)? == tasks, "tasks of nodes that came back were replaced");
    docker.run(&["service", "scale", "--detach", "scaled=3"])?;
    cluster.wait_running("scaled", 3, PATIENCE).map(drop)
}

/// What happens after the backup.
fn change(docker: &Docker) -> Result<()> {
    docker.run(&["service", "rm", "gone"])?;
    docker.run(&["secret", "rm", "password"])?;
    docker.run(&["service", "scale", "--detach", "scaled=4"])?;
    docker.run(&["service", "create", "--detach", "--no-resolve-image", "--name", "later", "whoami"])?;
    docker.run(&["swarm", "join-token", "--rotate", "worker"])?;
    Ok(())
}

/// What the operator asked for, and the tokens.
fn state(docker: &Docker) -> Result<String> {
    let lists = [
        &["service", "ls", "--format", "{{.Name}} {{.Replicas}}"][..],
        &["secret", "ls", "--format", "{{.ID}} {{.Name}}"],
        &["config", "ls", "--format", "{{.ID}} {{.Name}}"],
        &["network", "ls", "--filter", "driver=overlay", "--format", "{{.ID}} {{.Name}}"],
        &["swarm", "join-token", "-q", "worker"],
        &["swarm", "join-token", "-q", "manager"],
    ];
    let mut all = Vec::new();
    for list in lists {
        let said = docker.run(list)?;
        let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        all.push(lines.join("\n"));
    }
    Ok(all.join("\n"))
}

fn is_as(docker: &Docker, expected: &str) -> Result<()> {
    let now = state(docker)?;
    ensure!(now == expected, "expected:\n{expected}\nsaw:\n{now}");
    Ok(())
}

/// The ids of the running tasks of the service that stays.
fn mesh_tasks(docker: &Docker) -> Result<Vec<String>> {
    let rows =
        docker.run(&["service", "ps", "-q", "--no-trunc", "--filter", "desired-state=running", "web"])?;
    let mut ids: Vec<String> = rows.lines().map(str::to_owned).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// `mesh backup` on the manager.
struct Backups {
    program: PathBuf,
    host: String,
    socket: PathBuf,
    directory: PathBuf,
}

impl Backups {
    fn new(lab: &Lab, cluster: &Cluster, binaries: &Binaries) -> Result<Self> {
        let node = lab.node(MANAGER)?;
        let directory = cluster.layout.record_file();
        let directory = directory.parent().context("the lab's directory")?.join("backups");
        fs::create_dir_all(&directory)?;
        let new = Self {
            program: binaries.mesh(),
            host: cluster.node(MANAGER)?.mesh_host.clone(),
            socket: node.control_socket(),
            directory,
        };
        fs::write(new.passphrase(), "correct horse battery\n")?;
        fs::set_permissions(new.passphrase(), fs::Permissions::from_mode(0o600))?;
        if Path::new(&new.file()).exists() {
            fs::remove_file(new.file())?;
        }
        Ok(new)
    }

    fn passphrase(&self) -> PathBuf {
        self.directory.join("passphrase")
    }

    fn file(&self) -> String {
        self.directory.join("one.mesh-backup").display().to_string()
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(["--host", &self.host, "backup"])
            .args(words)
            .arg("--passphrase-file")
            .arg(self.passphrase())
            .arg("--control-socket")
            .arg(&self.socket)
            .output()
            .context("start mesh")?;
        ensure!(
            output.status.success(),
            "mesh backup {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

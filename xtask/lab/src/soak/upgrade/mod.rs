//! Upgrades the packages of an earlier commit to those of this checkout on three machines with
//! systemd, one machine after the other, under requests and long downloads: none fails, none is
//! cut, and the API of the other managers goes on.

mod packages;

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use mesh_checkout::setup;

use self::packages::Packages;
use super::machines::{self, DOCKER, answers};
use super::managers;
use super::measured::Measured;
use super::polling::Polling;
use super::traffic::Traffic;
use crate::artifacts;
use crate::client::downloads::Downloads;
use crate::cluster::{Docker, eventually};
use crate::images;
use crate::installed::{Machine, Wire};

/// What every machine's name begins with.
const PREFIX: &str = "mesh-upgrade";
/// The machines; all of them are managers.
const MACHINES: u8 = 3;
const PORT: u16 = 80;
/// Where a machine has the packages.
const OLD: &str = "/tmp/old-packages";
const NEW: &str = "/tmp/new-packages";
/// The agent's socket.
const SOCKET: &str = "/run/mesh/docker.sock";
/// The pause between two reads of a manager's API.
const POLL_PAUSE: Duration = Duration::from_millis(50);
/// The longest time between two answers of a manager whose machine is not being upgraded.
const GAP_MAX: Duration = Duration::from_secs(1);
/// The longest time without a leader, as a manager that stops gives its lease up.
const LEADERLESS_MAX: Duration = Duration::from_secs(2);
/// How long requests go on before the first upgrade, and after the last.
const STEADY: Duration = Duration::from_secs(3);
/// How long a step may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// Arguments of `cargo xtask soak upgrade`.
#[derive(Debug, Args)]
pub(super) struct UpgradeArgs {
    /// The commit whose packages are upgraded; they are built once, and kept in target/dist/COMMIT.
    /// HEAD: those of this checkout, to the same with a higher version
    #[arg(long, default_value = "HEAD~1", conflicts_with = "from_packages")]
    from: String,
    /// A directory with the packages to be upgraded
    #[arg(long)]
    from_packages: Option<PathBuf>,
    /// Requests per second, a quarter of them over connections that stay open
    #[arg(long, default_value_t = 300)]
    rate: u32,
    /// Downloads that last as long as the upgrade
    #[arg(long, default_value_t = 50)]
    downloads: usize,
}

/// Runs it.
pub(super) fn run(args: &UpgradeArgs) -> Result<()> {
    setup::ensure()?;
    let (old, new) = packages::both(&args.from, args.from_packages.as_deref())?;
    println!("from {} ({}) to {} ({})", old.origin, old.version, new.origin, new.version);
    let archive = images::make(&artifacts::build_whoami()?, PREFIX)?;
    let wire = Wire::make(PREFIX)?;
    let machines = machines::boot(PREFIX, MACHINES, &wire, &archive)?;
    let mut measured = Measured::default();
    let outcome = hold(&wire, &machines, (&old, &new), args, &mut measured);
    if outcome.is_err() {
        for machine in &machines {
            let said = machine.run("journalctl --no-pager --lines 20 --unit mesh-agent --unit mesh-control");
            eprintln!("{}: {}", machine.name(), said.unwrap_or_else(|error| format!("{error:#}")));
        }
    }
    measured.conclude(outcome)
}

fn hold(
    wire: &Wire,
    machines: &[Machine],
    (old, new): (&Packages, &Packages),
    args: &UpgradeArgs,
    measured: &mut Measured,
) -> Result<()> {
    for machine in machines {
        machines::give(machine, &old.files, OLD)?;
        machines::give(machine, &new.files, NEW)?;
    }
    machines::install_all(machines, machines.len(), OLD)?;
    machines::form(machines, machines.len())?;
    is_whole(machines)?;
    machines[0].run(&format!(
        "{DOCKER} service create --detach --quiet --no-resolve-image --name web --replicas {MACHINES} -p {PORT}:80 whoami"
    ))?;
    docker(&machines[0]).wait_running("web", usize::from(MACHINES), PATIENCE)?;
    for machine in machines {
        eventually(&format!("an answer of {}", machine.name()), PATIENCE, || answers(wire, machine))?;
    }
    let servers: Vec<SocketAddrV4> =
        machines.iter().map(|machine| SocketAddrV4::new(machine.address(), PORT)).collect();
    let downloads = Downloads::start_lasting(wire.clients(), &servers, args.downloads);
    let traffic = Traffic::start(wire.clients(), &servers, args.rate, None);
    thread::sleep(STEADY);
    let upgraded = machines.iter().enumerate().try_for_each(|(number, machine)| {
        upgrade(machines, number, &new.version, measured)
            .with_context(|| format!("the upgrade of {}", machine.name()))
    });
    thread::sleep(STEADY);
    let (outcome, seen) = (traffic.stop()?, downloads.finish()?);
    measured.some("answers on new connections", outcome.answered[0]);
    measured.some("answers on connections that stay open", outcome.answered[1]);
    measured.tell("answers per second", format!("{:.0}", outcome.rate()));
    measured.tell("the slowest answer", format!("{:.1} s", outcome.slowest.as_secs_f64()));
    measured.none("requests failed", &outcome.failed());
    measured.none("connections that were to stay open and were cut", &outcome.closed);
    measured.tell("the upgrade and the downloads lasted", format!("{:.0} s", outcome.lasted.as_secs_f64()));
    measured.some("downloads whole", seen.whole);
    measured.none("downloads cut", &seen.cut);
    upgraded
}

/// The docker CLI with a machine's socket.
fn docker(machine: &Machine) -> Docker {
    Docker::towards(&format!("unix://{}", machine.path(SOCKET).display()))
}

/// Waits until all machines are managers and ready, by each machine's own API.
fn is_whole(machines: &[Machine]) -> Result<()> {
    let names: Vec<&str> = machines.iter().map(Machine::name).collect();
    for machine in machines {
        let docker = docker(machine);
        managers::shows(&docker, &names)?;
        eventually("every node to be Ready", PATIENCE, || {
            let rows = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
            ensure!(rows.lines().all(|row| row.ends_with(" Ready")), "nodes: {rows}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Upgrades one machine while the APIs of all are read.
fn upgrade(machines: &[Machine], number: usize, version: &str, measured: &mut Measured) -> Result<()> {
    let machine = &machines[number];
    let before = processes(machine)?;
    let sockets = machines.iter().map(|one| (one.name().to_owned(), one.path(SOCKET))).collect();
    let polling = Polling::start(sockets, POLL_PAUSE);
    let others = machines.iter().filter(|one| one.name() != machine.name());
    let others = others.map(|one| (one.name().to_owned(), one.path(SOCKET))).collect();
    let leaders = Polling::start_for_a_leader(others, POLL_PAUSE);
    let begun = Instant::now();
    // The last one as by an operator who has apt.
    let installed = if number + 1 == machines.len() {
        machine.run(&format!("apt-get install --yes --no-install-recommends {NEW}/*.deb")).map(drop)
    } else {
        machines::install(machine, true, NEW)
    };
    let is_back =
        installed.and_then(|()| is_upgraded(machine, version, &before)).and_then(|()| is_whole(machines));
    let took = begun.elapsed();
    let leaderless = leaders.stop()?.into_iter().map(|one| one.gap).max().unwrap_or_default();
    measured.below(&format!("upgrade of {}: without a leader", machine.name()), leaderless, LEADERLESS_MAX);
    for polled in polling.stop()? {
        let name = machine.name();
        let figure = format!("upgrade of {name}: the longest time without an answer of {}", polled.manager);
        if polled.manager == name {
            measured.tell(&figure, format!("{:.2} s", polled.gap.as_secs_f64()));
        } else {
            measured.below(&figure, polled.gap, GAP_MAX);
            measured.none(
                &format!("upgrade of {name}: reads that {} did not answer", polled.manager),
                &polled.failures,
            );
        }
    }
    measured.tell(
        &format!("upgrade of {}: complete after", machine.name()),
        format!("{:.1} s", took.as_secs_f64()),
    );
    is_back
}

/// The process ids of the agent and of mesh-control.
fn processes(machine: &Machine) -> Result<[String; 2]> {
    let pid = |unit: &str| machine.run(&format!("systemctl show --property MainPID --value {unit}"));
    Ok([pid("mesh-agent.service")?, pid("mesh-control.service")?])
}

/// Checks that the packages have the version, and that both daemons run as other processes.
fn is_upgraded(machine: &Machine, version: &str, before: &[String; 2]) -> Result<()> {
    let installed =
        machine.run("dpkg-query --show --showformat '${Version}\\n' mesh mesh-agent mesh-control")?;
    ensure!(installed.lines().all(|line| line == version), "expected version {version}, saw {installed}");
    eventually("both daemons to run", PATIENCE, || {
        machine.run("systemctl is-active mesh-agent.service mesh-control.service").map(drop)
    })?;
    let after = processes(machine)?;
    let restarted = before.iter().zip(&after).all(|(before, after)| before != after);
    ensure!(restarted, "expected new processes, saw {before:?} before and {after:?} after");
    Ok(())
}

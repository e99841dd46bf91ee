//! A whole cluster on one machine: a network namespace per node with a Docker engine, mesh-agent,
//! and on managers etcd and mesh-control; a client namespace; one bridge between them.
//!
//! Code map: [`artifacts`] builds its binaries. [`layout`] names everything, [`component`] has the
//! command lines, `network` and `machine` make a node, `daemon` and [`ready`] start its daemons,
//! `images` fills its engine, `teardown` removes it all, [`record`] describes it to its users.
//! [`client`] and [`cluster`] are the interface to a running lab for tests. [`cli`] is the command,
//! [`demo`] the demonstration, [`soak`] the long tests, [`faults`] the faults. [`installed`] is
//! apart: machines with systemd, for the packages.
//!
//! Invariants: nothing of a lab is visible outside of its namespaces but its directories and
//! cgroups; `teardown` finds what exists without the record; one command at a time changes a lab (a
//! lock beside the record).

pub mod artifacts;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod component;
pub mod demo;
pub mod faults;
pub mod installed;
pub mod layout;
pub mod netns;
pub mod ready;
pub mod record;
pub mod soak;

mod cgroup;
mod clock;
mod daemon;
mod etcd_keys;
mod images;
mod keeper;
mod machine;
mod network;
mod pass_program;
mod raise;
mod teardown;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{FlockOperation, flock};

use self::component::Component;
pub use self::images::Application;
use self::layout::{Layout, NodeLayout};
use self::netns::Netns;
use self::record::Record;
use crate::artifacts::Binaries;

/// The options of a new lab.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The number of nodes.
    pub nodes: u8,
    /// How many of them are managers: the first ones.
    pub managers: u8,
    /// The agents' `--datapath`.
    pub datapath: Datapath,
    /// Nodes whose agents have another `--datapath`.
    pub node_datapaths: BTreeMap<String, Datapath>,
    /// Only engines, images and etcd: to compare with Docker Swarm, or to start mesh by hand.
    pub bare: bool,
    /// Engines, images and agents, but no cluster: its user makes one by `docker swarm`.
    pub empty: bool,
    /// Whether agents and control planes take the time from a file, which [`Lab::set_clock`]
    /// writes (Debian's libfaketime).
    pub turnable_clock: bool,
    /// Whether agents and etcd have small disks of their own, which a test can fill.
    pub small_disks: bool,
}

impl UpOptions {
    /// Three nodes, one of them the manager, all on one data path.
    pub const fn usual(datapath: Datapath) -> Self {
        Self {
            nodes: 3,
            managers: 1,
            datapath,
            node_datapaths: BTreeMap::new(),
            bare: false,
            empty: false,
            turnable_clock: false,
            small_disks: false,
        }
    }
}

/// The agents' datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Datapath {
    /// The best one for the uplink
    Auto,
    /// XDP on the uplink, TC at the tasks
    Xdp,
    /// TC for both
    Tc,
    /// The userspace proxy
    Userspace,
}

impl Datapath {
    /// The flag's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::Userspace => "userspace",
        }
    }
}

/// The part of a node to kill or start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// One daemon.
    One(Component),
    /// The whole node, as by its power.
    All,
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    record: Record,
}

impl Lab {
    /// Makes the lab, after removing what an earlier one of that name left; returns when every part
    /// is ready. The binaries must have been built.
    ///
    /// # Errors
    /// A part can't be made or isn't ready in time. What was made is kept for inspection;
    /// [`Lab::down`] removes it.
    pub fn up(layout: &Layout, options: &UpOptions, binaries: &Binaries) -> Result<Self> {
        require_root()?;
        let _lock = lock(layout)?;
        teardown::remove(layout).context("clear what an earlier lab left")?;
        let mut record = raise::plan(layout, options);
        let raised = raise::raise(layout, options, &mut record, binaries);
        record.store(&layout.record_file())?;
        raised?;
        Ok(Self { layout: layout.clone(), record })
    }

    /// Opens the running lab of that name, from its record.
    ///
    /// # Errors
    /// It isn't up.
    pub fn open(layout: &Layout) -> Result<Self> {
        Ok(Self { layout: layout.clone(), record: Record::load(&layout.record_file())? })
    }

    /// Removes every trace of a lab; a lab that doesn't exist is no error.
    ///
    /// # Errors
    /// Something can't be removed.
    pub fn down(layout: &Layout) -> Result<()> {
        require_root()?;
        let lock = lock(layout)?;
        teardown::remove(layout)?;
        fs::remove_dir_all(layout.record_dir()).context("remove the lab's record")?;
        drop(lock);
        Ok(())
    }

    /// The contents of `lab.json`.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Names and paths.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The layout of one of the lab's nodes.
    ///
    /// # Errors
    /// There is no such node; the message lists the nodes.
    pub fn node(&self, name: &str) -> Result<NodeLayout> {
        let known = || self.record.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.record.node(name).and_then(|_| self.layout.node_named(name));
        found.ok_or_else(|| anyhow!("no node `{name}` in this lab; there are: {}", known()))
    }

    /// The client's network namespace.
    pub fn client(&self) -> Netns {
        Netns::named(self.layout.client_netns())
    }

    /// A command that runs `words` on a node's machine, or in the client's namespace. On a node,
    /// `DOCKER_HOST` and `MESH_HOST` name mesh's socket; on a manager, etcdctl finds its etcd and
    /// its certificate.
    ///
    /// # Errors
    /// There is no such node.
    pub fn command(&self, place: &str, words: &[String]) -> Result<Command> {
        let (entrance, mesh_host) = if place == "client" {
            (vec!["nsenter".to_owned(), format!("--net={}", self.client().path().display())], None)
        } else {
            let node = self.node(place).map_err(|e| anyhow!("{e}, client"))?;
            (machine::entrance(&node), Some(component::unix_url(&node.mesh_socket())))
        };
        let is_manager = self.record.node(place).is_some_and(|node| node.manager);
        let etcdctl = self
            .layout
            .node_named(place)
            .filter(|_| is_manager)
            .map(|node| etcd_keys::etcdctl_variables(&node, self.record.empty));
        let (program, args) = entrance.split_first().context("an entrance has a program")?;
        let mut command = Command::new(program);
        command.args(args);
        let here = std::env::current_dir().context("find the working directory")?;
        command.arg(format!("--wd={}", here.display()));
        if let Some(host) = mesh_host {
            command.env("DOCKER_HOST", &host).env("MESH_HOST", host).env_remove("DOCKER_CONTEXT");
        }
        command.envs(etcdctl.into_iter().flatten()).env("ETCDCTL_API", "3");
        command.arg("--").args(words);
        Ok(command)
    }

    /// Kills a daemon with SIGKILL, or cuts a node's power: all its processes die, its link goes
    /// down.
    ///
    /// # Errors
    /// The node doesn't run the part, or it can't be killed.
    pub fn kill(&mut self, name: &str, part: Part) -> Result<()> {
        let node = self.node(name)?;
        self.change(|record| match part {
            Part::One(component) => {
                let pids = &mut record.node_mut(name)?.pids;
                let Some(pid) = pids.get(component) else { bail!("{name} runs no {component}") };
                daemon::kill(component, &node, pid)?;
                pids.set(component, None);
                Ok(())
            }
            Part::All => {
                network::set_link(&node, false)?;
                cgroup::kill(&node.cgroup())?;
                teardown::kill_inside(&[Netns::named(node.netns())])?;
                record.node_mut(name)?.pids = record::Pids::default();
                Ok(())
            }
        })
    }

    /// Starts a daemon that was killed, or boots a node; returns when it is ready.
    ///
    /// # Errors
    /// It is already running, a worker has no such daemon, or it isn't ready in time.
    pub fn start(&mut self, name: &str, part: Part, binaries: &Binaries) -> Result<()> {
        let node = self.node(name)?;
        self.change(|record| match part {
            Part::One(component) => raise::restart(component, &node, record, binaries),
            Part::All => raise::reboot(&node, record, binaries),
        })
    }

    /// The node's daemons that were started and have ended by themselves.
    ///
    /// # Errors
    /// There is no such node.
    pub fn ended(&self, name: &str) -> Result<Vec<Component>> {
        let node = self.node(name)?;
        let pids = self.record.node(name).map(|entry| entry.pids).unwrap_or_default();
        let has_ended = |component: &Component| {
            pids.get(*component).is_some_and(|pid| !daemon::is_alive(*component, &node, pid))
        };
        Ok(Component::ALL.into_iter().filter(has_ended).collect())
    }

    /// Makes an application's image and loads it into the engines of these nodes.
    ///
    /// # Errors
    /// There is no such node, a package of the application is missing, or an engine refuses the
    /// image.
    pub fn give(&self, application: Application, names: &[&str]) -> Result<()> {
        let nodes = names.iter().map(|name| self.node(name)).collect::<Result<Vec<_>>>()?;
        images::give(application, &nodes, &self.layout.name().to_string())
            .with_context(|| format!("give {application:?} to {}; next: cargo xtask setup", names.join(", ")))
    }

    /// Sets the clock of all agents and control planes ahead of the machine's. They see it within a
    /// second.
    ///
    /// # Errors
    /// The lab has no settable clocks.
    pub fn turn_clock(&self, ahead: Duration) -> Result<()> {
        let seconds = i64::try_from(ahead.as_secs()).context("that far ahead")?;
        self.record.nodes.iter().try_for_each(|node| self.set_clock(&node.name, seconds))
    }

    /// Sets the clock of one node's agent and control plane this many seconds ahead of the
    /// machine's, or behind it.
    ///
    /// # Errors
    /// The lab has no settable clocks.
    pub fn set_clock(&self, name: &str, seconds: i64) -> Result<()> {
        let clocks = self.record.clocks.as_ref().context("this lab's clocks are the machine's own")?;
        clock::set(clocks, name, seconds)
    }

    /// Stops a daemon's process with SIGSTOP, or continues it.
    ///
    /// # Errors
    /// The node doesn't run it.
    pub fn pause(&self, name: &str, component: Component, stopped: bool) -> Result<()> {
        let record = Record::load(&self.layout.record_file())?;
        let pid = record.node(name).and_then(|node| node.pids.get(component));
        daemon::pause(pid.with_context(|| format!("{name} runs no {component}"))?, stopped)
    }

    /// Gives a daemon of a node this share of a CPU, in per cent; `None`: no limit.
    ///
    /// # Errors
    /// The control group can't be written to.
    pub fn limit_cpu(&self, name: &str, component: Component, percent: Option<u32>) -> Result<()> {
        cgroup::limit_cpu(&self.node(name)?.cgroup().join(component.to_string()), percent)
    }

    /// Drops this many per cent of the packets from and to a node, at random; 0 drops none.
    ///
    /// # Errors
    /// There is no such node, or nftables refuses.
    pub fn lose_packets(&self, name: &str, percent: u8) -> Result<()> {
        network::lose(&self.node(name)?, percent)
    }

    /// Cuts a node's link, or heals it.
    ///
    /// # Errors
    /// There is no such node.
    pub fn partition(&self, name: &str, heal: bool) -> Result<()> {
        network::set_link(&self.node(name)?, heal)
    }

    /// Changes the record under the lock, based on the file's present contents.
    fn change(&mut self, change: impl FnOnce(&mut Record) -> Result<()>) -> Result<()> {
        require_root()?;
        let _lock = lock(&self.layout)?;
        let file = self.layout.record_file();
        self.record = Record::load(&file)?;
        let done = change(&mut self.record);
        self.record.store(&file)?;
        done
    }
}

fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a lab needs root: it makes namespaces, mounts and engines; next: run it with sudo");
    }
    Ok(())
}

/// Waits for other commands on the same lab.
fn lock(layout: &Layout) -> Result<File> {
    let directory = layout.record_dir();
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let path = directory.join("lock");
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive).with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

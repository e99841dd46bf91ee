//! The `lab` command: its arguments and its output.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::exit;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use mesh_checkout::setup;

use super::component::Component;
use super::layout::{LabName, Layout, NODES_MAX, NodeLayout};
use super::record::NodeRecord;
use super::{Application, Datapath, Lab, Part, UpOptions, daemon, network, ready};

use crate::artifacts;

/// Arguments of `cargo xtask lab`.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// Name of the lab; labs of different names can run at the same time
    #[arg(long, global = true, default_value = "mesh")]
    name: LabName,
    #[command(subcommand)]
    verb: LabVerb,
}

#[derive(Debug, Subcommand)]
enum LabVerb {
    /// Make a lab, in place of an earlier one of that name, and wait until it is ready
    Up {
        /// Number of nodes
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
        nodes: u8,
        /// Number of managers among them, with etcd and mesh-control: 1, 3 or 5
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
        managers: u8,
        /// The agents' data path
        #[arg(long, value_enum, default_value_t = Datapath::Auto)]
        datapath: Datapath,
        /// Another data path for one node, as node-3=userspace; may be given several times
        #[arg(long, value_name = "NODE=DATAPATH", value_parser = node_datapath)]
        node_datapath: Vec<(String, Datapath)>,
        /// Make only network, engines, images and etcd, without mesh
        #[arg(long)]
        bare: bool,
        /// Start agents, but form no cluster: docker swarm join does
        #[arg(long, conflicts_with = "bare")]
        empty: bool,
    },
    /// Remove every trace of the lab
    Down,
    /// Show the nodes, and which of their daemons run and are ready
    Status,
    /// Run a command on a node, or in the client's namespace; exits with the command's code
    Exec {
        /// node-1, node-2, … or client
        place: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Kill a part of a node with SIGKILL; `all` cuts the node's power
    Kill {
        /// node-1, node-2, …
        node: String,
        /// agent, control, dockerd, etcd or all
        part: Part,
    },
    /// Start a part that was killed, and wait until it is ready
    Start {
        /// node-1, node-2, …
        node: String,
        /// agent, control, dockerd, etcd or all
        part: Part,
    },
    /// Give nodes the image of a real application
    Give {
        /// The application
        #[arg(value_enum)]
        application: Application,
        /// node-1, node-2, …; default: all of them
        nodes: Vec<String>,
    },
    /// Cut a node's link
    Partition {
        /// node-1, node-2, …
        node: String,
        /// Heal the link instead
        #[arg(long)]
        heal: bool,
    },
}

/// Parses `node-3=userspace`.
fn node_datapath(text: &str) -> Result<(String, Datapath)> {
    let read = text.split_once('=').and_then(|(node, datapath)| {
        Some((node.to_owned(), <Datapath as ValueEnum>::from_str(datapath, false).ok()?))
    });
    read.with_context(|| format!("`{text}`: expected NODE=auto, xdp, tc or userspace, as node-3=userspace"))
}

impl FromStr for Part {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        if word == "all" {
            return Ok(Self::All);
        }
        match Component::from_str(word, false) {
            Ok(component) => Ok(Self::One(component)),
            Err(_) => bail!("expected agent, control, dockerd, etcd or all"),
        }
    }
}

/// Runs the command; `exec` ends the process with the command's own exit code.
///
/// # Errors
/// The command fails.
pub fn run(args: &LabArgs) -> Result<()> {
    let layout = Layout::new(args.name.clone());
    match &args.verb {
        LabVerb::Up { nodes, managers, datapath, node_datapath, bare, empty } => {
            let options = UpOptions {
                nodes: *nodes,
                managers: *managers,
                datapath: *datapath,
                node_datapaths: node_datapath.iter().cloned().collect(),
                bare: *bare,
                empty: *empty,
                turnable_clock: false,
                small_disks: false,
            };
            up(&layout, &options)
        }
        LabVerb::Down => Lab::down(&layout),
        LabVerb::Status => show(&status(&Lab::open(&layout)?)),
        LabVerb::Exec { place, command } => exec(&Lab::open(&layout)?, place, command),
        LabVerb::Kill { node, part } => Lab::open(&layout)?.kill(node, *part),
        LabVerb::Start { node, part } => {
            Lab::open(&layout)?.start(node, *part, &artifacts::Binaries::expected())
        }
        LabVerb::Give { application, nodes } => {
            let lab = Lab::open(&layout)?;
            let every = lab.record().nodes.iter().map(|node| node.name.as_str());
            let named = nodes.iter().map(String::as_str);
            lab.give(
                *application,
                &if nodes.is_empty() { every.collect::<Vec<_>>() } else { named.collect() },
            )
        }
        LabVerb::Partition { node, heal } => Lab::open(&layout)?.partition(node, *heal),
    }
}

fn up(layout: &Layout, options: &UpOptions) -> Result<()> {
    if options.managers > options.nodes {
        bail!("{} managers need at least as many nodes; there are {}", options.managers, options.nodes);
    }
    let is_there = |name: &str| (1..=options.nodes).any(|number| layout.node(number).name() == name);
    if let Some(name) = options.node_datapaths.keys().find(|name| !is_there(name)) {
        bail!("--node-datapath {name}: the lab has node-1 to node-{}", options.nodes);
    }
    setup::ensure()?;
    let binaries = if options.bare { artifacts::build_whoami()? } else { artifacts::build()? };
    let begun = Instant::now();
    let lab = Lab::up(layout, options, &binaries)?;
    show(&format!("lab {} is up after {:.1} s\n\n", layout.name(), begun.elapsed().as_secs_f64()))?;
    show(&status(&lab))?;
    show(&format!("\ndescription: {}\n", layout.record_file().display()))?;
    match lab.record().nodes.first() {
        Some(node) if !options.bare => show(&format!("try: DOCKER_HOST={} docker node ls\n", node.mesh_host)),
        _ => Ok(()),
    }
}

/// Prints; a closed pipe is an error, not a panic.
fn show(text: &str) -> Result<()> {
    io::stdout().write_all(text.as_bytes()).context("print")
}

/// One line per node: its role, address, link, and which daemons are ready.
fn status(lab: &Lab) -> String {
    let titles = ["NODE", "ROLE", "ADDRESS", "LINK"].map(str::to_owned);
    let components = Component::ALL.iter().map(|component| component.to_string().to_uppercase());
    let mut lines = vec![line_of(titles.into_iter().chain(components))];
    for entry in &lab.record().nodes {
        let Ok(node) = lab.node(&entry.name) else { continue };
        let role = if entry.manager { "manager" } else { "worker" };
        let link = if network::link_is_up(&node) { "up" } else { "down" };
        let about = [entry.name.clone(), role.to_owned(), entry.ip.to_string(), link.to_owned()];
        let states = Component::ALL.iter().map(|component| state_of(*component, &node, entry));
        lines.push(line_of(about.into_iter().chain(states)));
    }
    lines.concat()
}

fn state_of(component: Component, node: &NodeLayout, entry: &NodeRecord) -> String {
    match entry.pids.get(component) {
        None if component.managers_only() && !entry.manager => "-".to_owned(),
        Some(pid) if daemon::is_alive(component, node, pid) => {
            let ready = ready::probe(component, node).is_ok();
            format!("{pid} {}", if ready { "ready" } else { "not ready" })
        }
        _ => "down".to_owned(),
    }
}

fn line_of(cells: impl Iterator<Item = String>) -> String {
    const WIDTHS: [usize; 8] = [10, 9, 13, 6, 18, 18, 18, 18];
    let padded = cells.zip(WIDTHS).map(|(cell, width)| format!("{cell:<width$}"));
    padded.collect::<String>().trim_end().to_owned() + "\n"
}

fn exec(lab: &Lab, place: &str, argv: &[String]) -> Result<()> {
    let status = lab.command(place, argv)?.status().context("start nsenter")?;
    exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

//! Wires the agent: what runs as long as the process does, and what a member of a cluster runs
//! beside it.
//!
//! Code map: [`life`] goes from being alone to being a member and back; [`member`] starts what a
//! member runs, [`membership`] the part of it that needs managers; [`departure`] takes mesh off the
//! node when it leaves.
//!
//! Invariant: `docker.sock` is served as long as the process runs, whatever the node's membership.

mod carriers;
mod departure;
mod described;
mod descriptors;
mod encryption;
mod health;
mod life;
mod member;
mod membership;
mod overlap;
mod state;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwapOption;
use mesh_admission::door::Door;
use mesh_admission::figures::Listener;
use mesh_admission::refusals::Refusals;
use mesh_runtime::reload::Reloader;
use mesh_runtime::{Components, follow_signals, supervisor};
use mesh_state::ids::NodeId;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::cli::RunArgs;
use crate::config::Config;
use crate::docker_api::{self, Attachments, Promotions, Upstreams};
use crate::enrolment::{Desk, Enrolment, LocalState};
use crate::instance::Instance;
use crate::view::NodeView;
use descriptors::Room;
use mesh_runtime::private_file::create_private_dir;

/// How long stopping waits for all components to end.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Task statuses and assignments that may wait in their queues.
const QUEUE: usize = 256;

/// What lives as long as the process.
struct Process {
    args: RunArgs,
    components: Components,
    room: Room,
    refusals: Refusals,
    /// Whether the agent does what it can do at its start; systemd waits for it.
    ready: watch::Sender<bool>,
    /// The node's view of the mesh; empty while it is in no cluster.
    view: watch::Sender<Arc<NodeView>>,
    /// Why the node carries traffic in userspace though its settings allow kernel programs.
    fallback: watch::Sender<Option<String>>,
    /// Containers on the cluster's networks, while the node is a member.
    attachments: Arc<ArcSwapOption<Attachments>>,
    /// How far the manager on this node is.
    promotions: Promotions,
}

/// Runs the agent until it gets a signal to stop; `reloader` reads its settings again.
///
/// # Errors
/// The agent can't start, or a component failed.
pub async fn run(args: RunArgs, reloader: Reloader) -> anyhow::Result<()> {
    create_private_dir(&args.data_dir)
        .with_context(|| format!("make the data directory {}", args.data_dir.display()))?;
    let _instance = Instance::take(&args.data_dir)?;
    // Settings that can't work are an error at once, not only when a manager answers.
    let begins = life::present(&args)?;
    let state = if begins.is_some() { LocalState::Active } else { LocalState::Inactive };
    let room = descriptors::make_room(usize::try_from(args.proxy_connections_max).unwrap_or(usize::MAX));
    let process = Process {
        components: Components::new(args.debug_faults),
        room,
        refusals: Refusals::new()?,
        ready: watch::Sender::new(false),
        view: watch::Sender::new(Arc::new(no_view())),
        fallback: watch::Sender::new(None),
        attachments: Arc::default(),
        promotions: Arc::default(),
        args,
    };
    let (desk, enrolment) = Desk::new(state);
    let socket = bind_docker(&process.args)?;
    let stopping = process.components.stopping().clone();
    process.components.spawn("signals", follow_signals(stopping, reloader));
    start_telling_systemd(&process);
    start_docker_api(&process, socket, enrolment);
    let lived = life::live(&process, desk, begins).await;
    process.components.stopping().cancel();
    let ended = process.components.wait(STOP_LIMIT).await;
    lived.and(ended)
}

/// The view of a node in no cluster.
fn no_view() -> NodeView {
    NodeView::new(NodeId::default(), Ipv4Addr::UNSPECIFIED)
}

/// Looks for mistakes in the settings of a run.
///
/// # Errors
/// What is missing or wrong, and which flag fixes it.
pub fn check(args: RunArgs) -> anyhow::Result<()> {
    // Without these the node is in no cluster until docker swarm join.
    if !args.manager.is_empty() || args.join_token_file.is_some() {
        Config::new(args)?;
    }
    Ok(())
}

/// Starts telling systemd how the agent is.
fn start_telling_systemd(process: &Process) {
    let mut ready = process.ready.subscribe();
    let is_ready = async move {
        // Its sender lives as long as the process.
        let _never_gone = ready.wait_for(|ready| *ready).await;
    };
    let stop = process.components.stopping().clone();
    process.components.spawn("systemd", supervisor::keep_told(is_ready, stop));
}

fn bind_docker(args: &RunArgs) -> anyhow::Result<UnixListener> {
    docker_api::open(&args.socket, &args.socket_group)
        .with_context(|| format!("serve the Docker API on {}", args.socket.display()))
}

/// Starts serving the node's `docker` commands.
fn start_docker_api(process: &Process, socket: UnixListener, enrolment: Enrolment) {
    let upstreams = Upstreams {
        engine: process.args.engine.clone(),
        control: process.args.control_socket.clone(),
        tunnel_port: process.args.vxlan_port,
        view: process.view.subscribe(),
        fallback: process.fallback.subscribe(),
        attachments: Arc::clone(&process.attachments),
        enrolment,
        promotions: Arc::clone(&process.promotions),
    };
    let door = Door::new(Listener::DockerSocket, process.room.docker, process.refusals.clone());
    let stop = process.components.stopping().clone();
    process.components.spawn("docker API", async move {
        docker_api::serve(socket, upstreams, door, stop).await;
        Ok(())
    });
}

//! The DNS server for this node's tasks: it resolves names of services and tasks, on port 53 of the
//! node's addresses on the tasks' networks.
//!
//! Purpose: [`zone`] answers questions and [`wire`] parses and encodes messages, both pure;
//! [`respond`] joins them. [`Names::run`] follows the view and serves sockets on every address of
//! the node. How a name is resolved, step by step: docs/names.md.
//!
//! Invariants: only tasks of this node get answers, and only for names of their own networks. The
//! server needs no manager, as the table on disk is enough. All state that a task can cause is
//! bounded by [`mesh_admission::figures::names`].
//!
//! Left to others: passing the server's address to containers, and the addresses of tasks
//! ([`crate::task::local`]).

pub mod counts;
pub mod respond;
pub mod wire;
pub mod zone;

mod forward;
mod index;
mod server;
mod sockets;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use mesh_admission::door::Door;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::task::local::LocalTasks;
use crate::view::NodeView;
use counts::Counts;
use forward::Forwarder;
use server::Server;
use upstream::Resolvers;
use zone::Zone;

/// The port of DNS servers.
pub const DNS_PORT: u16 = 53;
/// The file that lists the host's resolvers.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The pause after indexing a zone, as a multiple of the time that it took. It bounds the share of
/// a CPU that zones cost on a busy cluster.
const REST: u32 = 4;

/// The address of the name server for tasks on `mesh`: the gateway of the node's subnet, which is
/// its first address, as the engine gives that one to the bridge.
pub fn gateway(view: &NodeView) -> Option<Ipv4Addr> {
    view.subnet.and_then(|subnet| subnet.hosts().next())
}

/// The name server of a node.
pub struct Names {
    /// Publishes the view of the mesh.
    pub views: watch::Receiver<Arc<NodeView>>,
    /// The tasks of this node.
    pub local: Arc<LocalTasks>,
    /// Admits TCP clients, and counts those that it refuses.
    pub door: Arc<Door>,
    /// The name server's metrics.
    pub counts: Counts,
    /// The port to serve, also used to reach the host's resolvers.
    pub port: u16,
    /// The file that lists the host's resolvers.
    pub resolv_conf: PathBuf,
}

impl Names {
    /// Serves names until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let (sender, zone) = watch::channel(Arc::new(Zone::default()));
        let resolvers = Resolvers::new(self.resolv_conf, self.port);
        let forwarder = Forwarder::new(Arc::clone(&resolvers));
        let server = Arc::new(Server::new(zone, self.local, forwarder, self.door, self.counts));
        let listening = Listening { server, resolvers, port: self.port };
        tokio::join!(follow(self.views.clone(), sender, stop.clone()), listening.run(self.views, stop));
    }
}

/// Makes a new zone of each view whose names differ from the last one.
async fn follow(
    mut views: watch::Receiver<Arc<NodeView>>,
    zone: watch::Sender<Arc<Zone>>,
    stop: CancellationToken,
) {
    let mut indexed: Option<Arc<NodeView>> = None;
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        if !indexed.as_ref().is_some_and(|indexed| has_same_names(indexed, &view)) {
            let (began, of) = (Instant::now(), Arc::clone(&view));
            let made = tokio::task::spawn_blocking(move || Zone::of(&of));
            // If the blocking task panics, this future ends, and with it the agent.
            let Ok(made) = made.await else { return };
            zone.send_replace(Arc::new(made));
            let rest = tokio::time::sleep(REST * began.elapsed());
            if stop.run_until_cancelled(rest).await.is_none() {
                return;
            }
        }
        indexed = Some(view);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = views.changed() => if changed.is_err() { return },
        }
    }
}

/// Whether both views give the same zone.
fn has_same_names(one: &NodeView, other: &NodeView) -> bool {
    one.node_id == other.node_id
        && one.subnet == other.subnet
        && one.nodes == other.nodes
        && one.networks == other.networks
        && one.services == other.services
        && one.members == other.members
}

/// The sockets on the view's addresses.
struct Listening {
    server: Arc<Server>,
    resolvers: Arc<Resolvers>,
    port: u16,
}

impl Listening {
    async fn run(self, mut views: watch::Receiver<Arc<NodeView>>, stop: CancellationToken) {
        let serving = TaskTracker::new();
        let mut open: BTreeMap<Ipv4Addr, CancellationToken> = BTreeMap::new();
        loop {
            let wanted = addresses(&views.borrow_and_update());
            self.resolvers.leave_out(wanted.clone());
            open.retain(|address, stop| {
                let stays = wanted.contains(address);
                if !stays {
                    stop.cancel();
                }
                stays
            });
            for address in wanted {
                open.entry(address).or_insert_with(|| {
                    let stop = stop.child_token();
                    let address = SocketAddrV4::new(address, self.port);
                    serving.spawn(sockets::serve(Arc::clone(&self.server), address, stop.clone()));
                    stop
                });
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = views.changed() => if changed.is_err() { break },
            }
        }
        stop.cancelled().await;
        serving.close();
        serving.wait().await;
    }
}

/// The addresses on which this node's tasks reach the name server: the gateway on `mesh`, and for
/// tasks without an interface there the node's own address on each network.
pub fn addresses(view: &NodeView) -> BTreeSet<Ipv4Addr> {
    view.networks.values().filter_map(|network| network.node_address).chain(gateway(view)).collect()
}

//! The data plane as one object: opened once, driven by [`super::run`], queried by metrics and the
//! task worker.
//!
//! Invariants: opening adopts whatever is pinned, so that no packet meets a gap; only [`uninstall`]
//! detaches programs. Locks are taken in the order of [`Datapath`]'s fields, if more than one is
//! held, and never across an await. Every method here blocks for system calls: call them off the
//! runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use mesh_ebpf::abi::{Address, Backend, BackendState, Be16, Config, names};
use mesh_state::ids::TaskId;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::attach::Hooks;
use super::attach::filters::remove_all;
use super::cabling::Cabling;
use super::carry_over::carry_over;
use super::config::DatapathConfig;
use super::connections::Connections;
use super::diff::is_ahead;
use super::drain::DrainCount;
use super::error::DatapathError;
use super::loader;
use super::lock::lock;
use super::maps::Maps;
use super::network::host::{self, TUNNEL_OVERHEAD};
use super::network::monitor::LinkChanges;
use super::network::netlink::Netlink;
use super::network::upkeep::{self, Upkeep};
use super::network::uplinks::{MemberRoutes, Uplinks};
use super::pins::Pins;
use super::provoke::{Forgotten, provoke};
use super::published::Published;
use super::state::State;
use super::stats::{Counters, StatsSnapshot};
use super::sweep::{Census, Sweeper, monotonic_ns};
use super::tallies::Tallies;
use crate::task::network::Draining;
use crate::view::NodeView;

/// IPv4 and TCP headers without options, bytes.
const TCP_HEADERS: u32 = 40;

/// The node's data plane.
pub struct Datapath {
    pub(super) config: DatapathConfig,
    /// The sweeper and `state` share the tallies, which have a lock of their own; it is taken
    /// inside of both.
    sweeper: Mutex<Sweeper>,
    network: Mutex<Network>,
    pub(super) cabling: Mutex<Cabling>,
    pub(super) state: Mutex<State>,
    pub(super) upkeep: Mutex<Upkeep>,
    pub(super) hooks: Mutex<Hooks>,
    drains: DrainCount,
    pub(super) connections: Connections,
    census: Mutex<Census>,
    pub(super) tasks: Mutex<BTreeMap<TaskId, Address>>,
    /// What a scrape needs of `state`, without its lock.
    pub(super) published: Arc<Published>,
    pub(super) counters: Counters,
    capacities: BTreeMap<&'static str, u32>,
    lacks_neighbours: AtomicBool,
    /// Notified when a sweep can't wait for its period.
    pub(super) sweep_now: Notify,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The last known state of the node's network.
struct Network {
    uplinks: Uplinks,
    routes: MemberRoutes,
}

/// Loads the programs, or adopts the ones that run, and attaches them.
///
/// Until a view comes, services and backends stay as the maps have them.
///
/// # Errors
/// The node lacks a privilege, a kernel feature or an uplink; each error names the next step.
pub fn open(config: DatapathConfig) -> Result<Arc<Datapath>, DatapathError> {
    let pins = Pins::new(&config.bpffs);
    pins.prepare()?;
    let ebpf = loader::load(&pins, config.tables)?;
    carry_over(&pins);
    let tallies = Arc::new(Mutex::new(Tallies::open(&pins)?));
    let sweeper = Sweeper::open(&pins, Arc::clone(&tallies))?;
    let drains = DrainCount::open(&pins)?;
    let capacities = sweeper.capacities()?;
    if capacities.get(names::FLOWS) != Some(&config.tables.flows())
        || capacities.get(names::NAT_ESTABLISHED) != Some(&config.tables.established)
    {
        warn!(
            ?capacities,
            "flow tables keep the sizes that they were made with until `mesh-agent uninstall`"
        );
    }
    let mut netlink = Netlink::open().map_err(DatapathError::netlink("opening a netlink socket"))?;
    let uplinks = Uplinks::find(&mut netlink, &config)?;
    host::prepare(&uplinks.links);
    let mut upkeep = Upkeep::new();
    upkeep.firewall.install(config.vxlan_port);
    let published = Arc::<Published>::default();
    let datapath = Datapath {
        state: Mutex::new(State::read(Maps::open(&pins, tallies)?, Arc::clone(&published))?),
        published,
        counters: Counters::open(&pins)?,
        capacities,
        hooks: Mutex::new(Hooks::new(ebpf, pins, config.mode, config.tc_hooks)),
        network: Mutex::new(Network { uplinks, routes: MemberRoutes::default() }),
        cabling: Mutex::default(),
        sweeper: Mutex::new(sweeper),
        drains,
        connections: Connections::default(),
        upkeep: Mutex::new(upkeep),
        census: Mutex::new(Census::default()),
        tasks: Mutex::new(BTreeMap::new()),
        lacks_neighbours: AtomicBool::new(false),
        sweep_now: Notify::new(),
        config,
    };
    // Before anything is planned: flows hold on to address indexes, and the entries of containers'
    // veths stay only while these are known.
    datapath.sweep()?;
    datapath.follow_cables(LinkChanges::everything())?;
    datapath.refresh_links()?;
    info!(address = %lock(&datapath.network).uplinks.address, "data plane ready");
    Ok(Arc::new(datapath))
}

/// Whether programs of an earlier agent are on this node.
///
/// # Errors
/// The kernel refuses a query.
pub(super) fn has_programs(config: &DatapathConfig) -> Result<bool, DatapathError> {
    let pins = Pins::new(&config.bpffs);
    let netlink = || DatapathError::netlink("listing the filters of interfaces");
    let filters = Netlink::open().and_then(|mut netlink| netlink.filters()).map_err(netlink())?;
    Ok(!pins.links().is_empty() || !pins.others().is_empty() || !filters.is_empty())
}

/// Removes what an attempt to load and attach programs has left. The device of encrypted networks
/// stays, as this agent reads it.
///
/// # Errors
/// Something could not be removed.
pub(super) fn take_off_programs(config: &DatapathConfig) -> Result<(), DatapathError> {
    Pins::new(&config.bpffs).remove()?;
    remove_all()?;
    host::remove_tunnel().map(drop)
}

/// Removes everything that mesh has put on this node: links, filters and maps of every version, the
/// tunnel device, the firewall table. Returns what was removed, in words.
///
/// # Errors
/// Something could not be removed; everything else is removed.
pub fn uninstall(config: &DatapathConfig) -> Result<Vec<String>, DatapathError> {
    let pins = Pins::new(&config.bpffs).remove();
    let (filters, host) = (remove_all(), host::remove()?);
    let programs = pins?.into_iter().map(|path| format!("the programs and maps in {}", path.display()));
    Ok(programs.chain(filters?).chain(host).collect())
}

impl Datapath {
    /// The address by which other nodes reach this one.
    ///
    /// # Errors
    /// Another thread failed in the middle of a change.
    pub fn address(&self) -> Result<Ipv4Addr, DatapathError> {
        Ok(lock(&self.network).uplinks.address)
    }

    /// Whether the maps follow a newer table than that of `generation`: an earlier agent was killed
    /// before it had stored that one.
    ///
    /// # Errors
    /// Another thread failed in the middle of a change.
    pub fn is_ahead_of(&self, generation: u64) -> Result<bool, DatapathError> {
        Ok(is_ahead(&lock(&self.state).contents().config, generation))
    }

    /// Starts a sweep now if a backend has gone: clients that wait for it are to get a RST.
    pub(super) fn sweep_if_gone(&self, state: &mut State) {
        if state.take_gone() {
            self.sweep_now.notify_one();
        }
    }

    /// Counters, read from the live maps. Neither waits for changes of the tables nor delays them.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn stats(&self) -> Result<StatsSnapshot, DatapathError> {
        let hooks = lock(&self.hooks).attached();
        let census = lock(&self.census).clone();
        let outline = self.published.outline();
        let snapshot = self.published.counted(self.counters.read(&outline))?;
        let (errors, host) = (self.published.errors(), self.host_settings()?);
        Ok(snapshot.with(&outline, &census, &self.capacities, errors, hooks, host))
    }

    /// The number of flows through the programs, and of connections over networks, for which a
    /// drain still waits.
    ///
    /// # Errors
    /// A table can't be read, or the task's sockets can't be listed.
    pub fn flows_left(&self, task: &Draining) -> Result<u64, DatapathError> {
        let is_ours = |backend: &Backend| backend.is_local() && backend.state == BackendState::Draining as u8;
        let draining = {
            let state = lock(&self.state);
            state.contents().alive().filter(|(_, backend)| is_ours(backend)).map(|(id, _)| id).collect()
        };
        Ok(self.drains.left(task, draining)? + self.connections.left(task)?)
    }

    /// Brings the maps to `view`, and returns the generation that they follow. Nodes that are new
    /// in it are reached through TC until [`refresh_neighbours`](Self::refresh_neighbours) has
    /// their MACs.
    ///
    /// # Errors
    /// A map refuses a write; what was applied stays, the rest waits for the next call.
    pub(super) fn apply(&self, view: Arc<NodeView>) -> Result<u64, DatapathError> {
        let mut state = lock(&self.state);
        let now = Instant::now();
        state.set_view(view, now);
        let generation = state.reconcile(now);
        self.sweep_if_gone(&mut state);
        generation
    }

    /// Follows interfaces, addresses and routes: tunnel device, programs, the node's own entries.
    ///
    /// # Errors
    /// The kernel refuses a query or a change; what was in force stays.
    pub(super) fn refresh_links(&self) -> Result<u64, DatapathError> {
        let mut netlink = Netlink::open().map_err(DatapathError::netlink("opening a netlink socket"))?;
        let uplinks = Uplinks::find(&mut netlink, &self.config)?;
        let mtu = uplinks.mtu();
        let tunnel = host::ensure_tunnel(&mut netlink, self.config.vxlan_port, mtu)?;
        let encryption = host::find_encryption(&mut netlink)?;
        if let Some(device) = &encryption {
            // Before packets are sent to it: what comes back must not reach the host's stack.
            lock(&self.hooks).guard_encryption(device)?;
        }
        let tunnel_mtu = mtu.saturating_sub(TUNNEL_OVERHEAD);
        let config = Config {
            address: uplinks.address.into(),
            tunnel_ifindex: tunnel.index,
            tunnel_port_be: Be16::new(self.config.vxlan_port),
            tunnel_mss: u16::try_from(tunnel_mtu.saturating_sub(TCP_HEADERS)).unwrap_or(u16::MAX),
            tunnel_mtu,
            uplink_ifindex: uplinks.direct,
            syn_guard_rate: self.config.syn_guard_rate,
            encrypted_mtu: crate::encryption::overlay_mtu(tunnel_mtu),
            encryption_ifindex: encryption.as_ref().map_or(0, |device| device.index),
            ..Config::default()
        };
        let before = lock(&self.state).facts().config.tunnel_ifindex;
        if before != 0 && before != tunnel.index {
            lock(&self.upkeep).settings.note_restored(upkeep::TUNNEL);
        }
        lock(&self.state).change_facts(|facts| {
            facts.config = config;
            facts.addresses.clone_from(&uplinks.addresses);
            facts.own = uplinks.own_node();
        });
        let links = uplinks.links.clone();
        {
            let mut network = lock(&self.network);
            network.uplinks = uplinks;
            network.routes.forget();
        }
        let generation = self.refresh_neighbours()?;
        lock(&self.hooks).ensure(&links, &tunnel, encryption.as_ref())?;
        Ok(generation)
    }

    /// Whether a member node's MAC was missing at the last check: until it is known, XDP leaves
    /// that node to TC.
    pub(super) fn lacks_neighbours(&self) -> bool {
        self.lacks_neighbours.load(Ordering::Relaxed)
    }

    /// Follows the neighbour table, and reconciles.
    ///
    /// # Errors
    /// The kernel refuses a query, or a map a write.
    pub(super) fn refresh_neighbours(&self) -> Result<u64, DatapathError> {
        let mut netlink = Netlink::open().map_err(DatapathError::netlink("opening a netlink socket"))?;
        let hops = {
            let mut network = lock(&self.network);
            let Network { uplinks, routes } = &mut *network;
            let nodes: BTreeSet<Ipv4Addr> = {
                let state = lock(&self.state);
                match state.view() {
                    Some(view) => view.nodes.values().map(|node| node.address).collect(),
                    None => state.contents().peers.keys().filter_map(as_ipv4).collect(),
                }
            };
            let others = nodes.into_iter().filter(|node| *node != uplinks.address).collect();
            routes.hops(&mut netlink, uplinks, &others)?
        };
        self.lacks_neighbours.store(hops.values().any(|hop| hop.mac.is_none()), Ordering::Relaxed);
        let mut state = lock(&self.state);
        state.change_facts(|facts| facts.hops = hops);
        state.reconcile(Instant::now())
    }

    /// Reads the maps back and corrects them.
    ///
    /// # Errors
    /// A map can't be read or written.
    pub(super) fn resync(&self) -> Result<u64, DatapathError> {
        let mut state = lock(&self.state);
        state.resync()?;
        state.reconcile(Instant::now())
    }

    /// Evicts flows that are over and counts the others.
    ///
    /// # Errors
    /// A table can't be read.
    pub(super) fn sweep(&self) -> Result<(), DatapathError> {
        let census = {
            let mut sweeper = lock(&self.sweeper);
            let (terms, known) = {
                let state = lock(&self.state);
                sweeper.begin();
                (state.terms(monotonic_ns()), state.owners())
            };
            sweeper.sweep(&terms, &known)
        };
        let mut census = self.published.counted(census)?;
        let mut state = lock(&self.state);
        state.hold_address_indexes(census.address_indexes.clone());
        let lost: Vec<Forgotten> = std::mem::take(&mut census.lost)
            .into_iter()
            // A virtual IP's client is a task, which finds out by its next packet.
            .filter(|key| key.virtual_ip().is_none())
            .filter_map(|key| {
                let client = SocketAddr::new(key.client.into(), key.client_port_be.get());
                let vip = state.address_with_index(key.vip.address_index())?;
                Some(Forgotten { client, vip: SocketAddr::new(vip.into(), key.vip.port()) })
            })
            .collect();
        drop(state);
        *lock(&self.census) = census;
        provoke(&lost);
        Ok(())
    }
}

fn as_ipv4(address: &Address) -> Option<Ipv4Addr> {
    match std::net::IpAddr::from(*address) {
        std::net::IpAddr::V4(v4) => Some(v4),
        std::net::IpAddr::V6(_) => None,
    }
}

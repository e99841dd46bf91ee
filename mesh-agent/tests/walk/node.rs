//! A node of the walk: a namespace with an uplink, a VXLAN device, a bridge with one task, and the
//! programs.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use aya::maps::{Array, HashMap, MapData, PerCpuArray, ProgramArray};
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod};
use mesh_ebpf::abi::{
    Backend, BackendState, BackendStats, Be16, Config, Edge, FrontendStats, Live, Mac, Mode, Node as Peer,
    Policy, Service, ServiceKey, backend_flag, names, protocol,
};

use crate::netns::Netns;

/// The published port.
pub(crate) const PUBLISHED: u16 = 80;
/// The port on which tasks listen.
pub(crate) const TASK_PORT: u16 = 8080;
/// The most entries of each table of translations.
pub(crate) const TRANSLATIONS: u32 = 4096;
/// UDP port of the tunnel.
const TUNNEL_PORT: u16 = 4799;
/// MTU of the uplinks.
pub(crate) const MTU: u16 = 1500;

/// The data path of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Datapath {
    Tc,
    Xdp,
}

/// A node with one task.
pub(crate) struct Node {
    /// Number in the cluster; its address ends in 10 + number, its task's backend id is the number.
    pub(crate) number: u8,
    /// The node's namespace.
    pub(crate) netns: Netns,
    /// The task's namespace.
    pub(crate) task: Netns,
    pub(crate) programs: Ebpf,
    _edges: ProgramArray<MapData>,
}

impl Node {
    /// Address of the node with this number.
    pub(crate) const fn address_of(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, 10 + number)
    }

    /// MAC of the uplink of the node with this number.
    const fn mac_of(number: u8) -> Mac {
        Mac([2, 0, 0, 0, 1, number])
    }

    /// MAC of the task on the node with this number.
    const fn task_mac_of(number: u8) -> Mac {
        Mac([2, 0, 0, 0, 2, number])
    }

    /// Makes the namespaces and devices, loads and attaches the programs. The uplink's peer goes
    /// into `bridge`.
    pub(crate) fn new(bridge: &Netns, number: u8, datapath: Datapath) -> Self {
        let netns = Netns::new(&format!("node-{number}"));
        let task = Netns::new(&format!("task-{number}"));
        plug(
            bridge,
            &netns,
            &format!("up{number}"),
            &format!("{}/24", Self::address_of(number)),
            Self::mac_of(number),
        );
        netns.ip(&format!("link add mesh-vxlan0 type vxlan external dstport {TUNNEL_PORT} nolearning"));
        netns.ip("link set mesh-vxlan0 up");
        netns.ip("link add mesh0 type bridge");
        netns.ip(&format!("addr add 10.128.{number}.1/24 dev mesh0"));
        netns.ip("link set mesh0 up");
        let task_mtu = MTU - 50;
        netns.ip(&format!(
            "link add task0 mtu {task_mtu} type veth peer name eth0 mtu {task_mtu} address {} netns {}",
            dotted(Self::task_mac_of(number)),
            task.name()
        ));
        netns.ip("link set task0 master mesh0 up");
        task.ip(&format!("addr add 10.128.{number}.2/24 dev eth0"));
        task.ip("link set eth0 up");
        task.ip(&format!("route add default via 10.128.{number}.1"));
        let (programs, edges) = netns.within(|| load(datapath));
        let mut node = Self { number, netns, task, programs, _edges: edges };
        node.configure();
        node
    }

    fn configure(&mut self) {
        let config = self.config();
        self.set(names::CONFIG, 0, config);
        self.insert(names::ADDRESSES, config.address, 0u32);
    }

    /// Sets the SYNs per second for which each CPU makes a flow entry.
    pub(crate) fn guard(&mut self, syn_guard_rate: u32) {
        let config = Config { syn_guard_rate, ..self.config() };
        self.set(names::CONFIG, 0, config);
    }

    fn config(&self) -> Config {
        let tunnel_mtu = u32::from(MTU) - 50;
        Config {
            address: Self::address_of(self.number).into(),
            tunnel_ifindex: self.ifindex("mesh-vxlan0"),
            tunnel_port_be: Be16::new(TUNNEL_PORT),
            tunnel_mss: MTU - 50 - 40,
            tunnel_mtu,
            uplink_ifindex: self.ifindex("eth0"),
            ..Config::default()
        }
    }

    /// Disconnects the task's link, or connects it again.
    pub(crate) fn silence_task(&self, is_silent: bool) {
        if is_silent {
            return self.task.ip("link set eth0 down");
        }
        self.task.ip("link set eth0 up");
        // The route went with the link.
        self.task.ip(&format!("route add default via 10.128.{}.1", self.number));
    }

    /// Adds a member node to this node's maps; its index is its number.
    pub(crate) fn add_peer(&mut self, number: u8) {
        let peer = Peer {
            address: Self::address_of(number).into(),
            mac: Self::mac_of(number),
            source_mac: Self::mac_of(self.number),
            ifindex: self.ifindex("eth0"),
            flags: 0,
            cookie: 0,
        };
        self.set(names::NODES, u32::from(number), peer);
        self.insert(names::PEERS, peer.address, u32::from(number));
    }

    /// Adds the task on the node with this number to this node's maps.
    pub(crate) fn set_backend(&mut self, number: u8, state: BackendState) {
        let is_local = number == self.number;
        let backend = Backend {
            task_address: Ipv4Addr::new(10, 128, number, 2).into(),
            node: if is_local { 0 } else { u32::from(number) },
            service_index: 0,
            task_port_be: Be16::new(TASK_PORT),
            published_port_be: Be16::new(PUBLISHED),
            protocol: protocol::TCP,
            state: state as u8,
            flags: if is_local { backend_flag::LOCAL } else { 0 },
            ifindex: if is_local { self.ifindex("task0") } else { 0 },
            task_mac: if is_local { Self::task_mac_of(number) } else { Mac::NONE },
            ..Backend::default()
        };
        self.set(names::BACKENDS, u32::from(number), backend);
    }

    /// Publishes the port on these backends.
    pub(crate) fn publish(&mut self, backends: &[u8], policy: Policy) {
        for (slot, id) in (0..).zip(backends) {
            self.set(names::SLOTS, slot, u32::from(*id));
        }
        let slot_count = u32::try_from(backends.len()).expect("few backends");
        let service = Service { slot_count, policy: policy as u8, ..Service::default() };
        self.insert(names::SERVICES, ServiceKey::tcp(PUBLISHED), service);
    }

    /// Publishes the port on these backends, whose nodes are to answer the client directly.
    pub(crate) fn publish_direct(&mut self, backends: &[u8]) {
        self.publish(backends, Policy::RoundRobin);
        let slot_count = u32::try_from(backends.len()).expect("few backends");
        let service = Service { slot_count, mode: Mode::Dsr as u8, ..Service::default() };
        self.insert(names::SERVICES, ServiceKey::tcp(PUBLISHED), service);
    }

    /// Removes the published port.
    pub(crate) fn unpublish(&mut self) {
        let map = self.programs.map_mut(names::SERVICES).expect("map of services");
        let mut services: HashMap<_, ServiceKey, Service> = HashMap::try_from(map).expect("hash");
        services.remove(&ServiceKey::tcp(PUBLISHED)).expect("the port is published");
    }

    /// The counters of a backend, over all CPUs.
    pub(crate) fn backend_stats(&self, id: u32) -> BackendStats {
        let map = self.programs.map(names::BACKEND_STATS).expect("map of stats");
        let stats: PerCpuArray<&MapData, BackendStats> = PerCpuArray::try_from(map).expect("per-CPU array");
        let mut sum = BackendStats::default();
        for cpu in stats.get(&id, 0).expect("stats").iter() {
            sum.request.packets += cpu.request.packets;
            sum.reply.packets += cpu.reply.packets;
            sum.request.bytes += cpu.request.bytes;
            sum.reply.bytes += cpu.reply.bytes;
            sum.opened += cpu.opened;
            sum.closed += cpu.closed;
            sum.unanswered += cpu.unanswered;
            sum.answered += cpu.answered;
        }
        sum
    }

    /// SYNs of the published port that got no flow entry.
    pub(crate) fn unremembered(&self) -> u64 {
        self.frontend_stats().iter().map(|cpu| cpu.unremembered).sum()
    }

    /// Flows of the published port that got an entry.
    pub(crate) fn opened(&self) -> u64 {
        self.frontend_stats().iter().map(|cpu| cpu.opened).sum()
    }

    fn frontend_stats(&self) -> aya::maps::PerCpuValues<FrontendStats> {
        let map = self.programs.map(names::FRONTEND_STATS).expect("map of stats");
        let stats: PerCpuArray<&MapData, FrontendStats> = PerCpuArray::try_from(map).expect("per-CPU array");
        stats.get(&0, 0).expect("stats")
    }

    /// Live connections of a backend.
    pub(crate) fn live(&self, id: u32) -> u64 {
        let live: Array<&MapData, Live> =
            Array::try_from(self.programs.map(names::LIVE).expect("map of live connections")).expect("array");
        live.get(&id, 0).expect("live connections").count(0)
    }

    /// All drops: label and count, where there are any.
    pub(crate) fn drops(&self) -> Vec<(&'static str, u64)> {
        let map = self.programs.map(names::DROPS).expect("map of drops");
        let drops: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(map).expect("per-CPU array");
        let count = |index| drops.get(&index, 0).expect("drops").iter().sum::<u64>();
        let all = mesh_ebpf::abi::DropReason::ALL.iter();
        all.map(|reason| (reason.label(), count(*reason as u32 * 2) + count(*reason as u32 * 2 + 1)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// Packets that the kernel's VXLAN device has sent and received.
    pub(crate) fn tunnel_packets(&self) -> [u64; 2] {
        let netns = self.netns.name();
        ["tx_packets", "rx_packets"].map(|counter| {
            let path = format!("/sys/class/net/mesh-vxlan0/statistics/{counter}");
            let output =
                Command::new("ip").args(["netns", "exec", netns, "cat", &path]).output().expect(counter);
            String::from_utf8_lossy(&output.stdout).trim().parse().expect(counter)
        })
    }

    pub(crate) fn ifindex(&self, device: &str) -> u32 {
        self.netns.within(|| ifindex(device))
    }

    pub(crate) fn set<V: Pod>(&mut self, name: &str, index: u32, value: V) {
        let mut map: Array<_, V> = Array::try_from(self.programs.map_mut(name).expect(name)).expect(name);
        map.set(index, value, 0).expect(name);
    }

    pub(crate) fn insert<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: V) {
        let mut map: HashMap<_, K, V> =
            HashMap::try_from(self.programs.map_mut(name).expect(name)).expect(name);
        map.insert(key, value, 0).expect(name);
    }
}

/// Loads and attaches the programs in the namespace of this thread.
fn load(datapath: Datapath) -> (Ebpf, ProgramArray<MapData>) {
    let object = fs::read(env!("MESH_PROGRAMS_OBJECT")).expect("compiled programs");
    let mut loader = EbpfLoader::new();
    for table in [names::NAT_HALF_OPEN, names::NAT_ESTABLISHED] {
        loader.map_max_entries(table, TRANSLATIONS);
    }
    let mut programs = loader.load(&object).expect("programs load");
    let edges = continue_by(&mut programs);
    let hooks = [
        (names::PROGRAM_UPLINK, "eth0"),
        (names::PROGRAM_TUNNEL, "mesh-vxlan0"),
        (names::PROGRAM_TASK, "task0"),
    ];
    for (name, device) in hooks {
        let program: &mut SchedClassifier =
            programs.program_mut(name).expect(name).try_into().expect("a TC program");
        program.load().expect(name);
        attach_tc(program, device).expect(name);
    }
    if datapath == Datapath::Xdp {
        attach_xdp(&mut programs, names::PROGRAM_XDP, "eth0");
    }
    (programs, edges)
}

/// Loads the programs to which the hooks' programs tail-call. The array removes them when it is
/// dropped.
fn continue_by(programs: &mut Ebpf) -> ProgramArray<MapData> {
    let map = programs.take_map(names::EDGES).expect("array of edges");
    let mut edges: ProgramArray<MapData> = ProgramArray::try_from(map).expect("array of programs");
    for edge in Edge::ALL {
        let program: &mut SchedClassifier =
            programs.program_mut(edge.program()).expect("edge").try_into().expect("a TC program");
        program.load().expect("verifier accepts");
        edges.set(edge as u32, program.fd().expect("loaded"), 0).expect("edge");
    }
    edges
}

/// Attaches a program to a device's ingress. Kernels without tcx links need the qdisc.
pub(crate) fn attach_tc(program: &mut SchedClassifier, device: &str) -> Result<(), ProgramError> {
    if SchedClassifier::query_tcx(device, TcAttachType::Ingress).is_err() {
        qdisc_add_clsact(device)?;
    }
    program.attach(device, TcAttachType::Ingress).map(drop)
}

fn attach_xdp(programs: &mut Ebpf, name: &str, device: &str) {
    let program: &mut Xdp = programs.program_mut(name).expect(name).try_into().expect("an XDP program");
    program.load().expect(name);
    program.attach(device, XdpMode::Driver).expect(name);
}

/// Connects `inside`, as `eth0` with this address, to the bridge.
pub(crate) fn plug(bridge: &Netns, inside: &Netns, port: &str, address: &str, mac: Mac) {
    bridge.ip(&format!(
        "link add {port} type veth peer name eth0 address {} netns {}",
        dotted(mac),
        inside.name()
    ));
    bridge.ip(&format!("link set {port} master br0 up"));
    inside.ip(&format!("addr add {address} dev eth0"));
    inside.ip("link set eth0 up");
}

/// Prepares the bridge's end of an uplink for XDP on the other end: its own XDP program passes
/// everything and completes checksums.
pub(crate) fn pass(bridge: &Netns, port: &str) -> Ebpf {
    bridge.exec(&format!("ethtool -K {port} tx off"));
    bridge.within(|| {
        let object = fs::read(env!("MESH_PASS_OBJECT")).expect("compiled program");
        let mut programs = Ebpf::load(&object).expect("program loads");
        attach_xdp(&mut programs, names::PROGRAM_PASS, port);
        programs
    })
}

fn ifindex(device: &str) -> u32 {
    rustix::net::netdevice::name_to_index(
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
            .expect("socket"),
        device,
    )
    .expect(device)
}

pub(crate) fn dotted(mac: Mac) -> String {
    mac.0.map(|byte| format!("{byte:02x}")).join(":")
}

//! Runs one list of fixtures through the host's pipeline and through the compiled programs in the
//! kernel (`BPF_PROG_TEST_RUN`): same verdict, same bytes, same drops, same flows. Needs root;
//! without it, the tests print so and pass (they fail where `CI` is set).

#[path = "programs/maps.rs"]
mod maps;

use std::fs;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, ProgramArray};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use maps::{clear, fill, set};
use mesh_ebpf::abi::{
    BackendLoad, DropReason, Edge, Flow, FlowCell, FragmentKey, FragmentPorts, Mac, Nat, NatKey, TUNNEL_MARK,
    flow_event, names, protocol,
};
use mesh_ebpf::conntrack::{is_closed, is_established};
use mesh_ebpf::flow_table::{cell_count, factors};
use mesh_ebpf::select::Candidates;
use mesh_ebpf::testing::fixtures;
use mesh_ebpf::testing::{Fixture, Frame, Hook, HostTables, IFINDEX};
use mesh_ebpf::verdict::Verdict;

/// Room for the longest output: no fixture is longer than an Ethernet frame with its outer headers.
const OUTPUT_MAX: usize = 2048;
/// Upper bound of the numbers of backends, nodes, slots and services in fixtures.
const IDS_MAX: u32 = 16;
/// Room of the tables of translations: far more than any fixture has. Before Linux 6.16, one CPU
/// takes all of a small table's free entries, and another evicts to find one.
const TRANSLATIONS: u32 = 4096;
/// Homes of the flow table, and its seed.
const HOMES: u32 = 64;
const SEED: u64 = 0x0123_4567_89ab_cdef;
/// The name of a fixture whose packet is a SYN that creates a flow.
const NEW_FLOW: &str = "xdp: a SYN for a remote backend goes into the tunnel";
/// The most instructions that a kernel's verifier may walk to accept a program: half of its limit,
/// as it needs up to three times as many on some kernels as on others.
const VERIFIED_MAX: u32 = 500_000;
/// The program that gives a packet an origin.
const FROM_TUNNEL: &str = "mesh_from_tunnel";

/// The effects of one program run.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// The program's return value.
    returned: i32,
    packet: Vec<u8>,
    /// Drops by reason, both directions.
    drops: Vec<(&'static str, u64)>,
    /// Entries of the half-open and established tables of flows, then of translations; packets in
    /// fragments.
    tables: [usize; 5],
    /// Flows and translations that have ended.
    closed: usize,
    /// Where the clients of flows are in their sequence numbers, and where replies to them go.
    ways: Vec<(u16, Mac)>,
    /// Loads of both backends, whatever their age.
    loads: [u32; 2],
}

/// The context (`__sk_buff`) by which the egress program sees where a packet comes from: from the
/// VXLAN device, or from another interface.
fn context_of(hook: Hook) -> Option<[u8; 192]> {
    const MARK: usize = 8;
    const INGRESS_IFINDEX: usize = 36;
    let (at, number) = match hook {
        Hook::Egress { is_devices: true } => (MARK, TUNNEL_MARK),
        Hook::Forwarded => (INGRESS_IFINDEX, IFINDEX),
        _ => return None,
    };
    let mut context = [0; 192];
    context[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    Some(context)
}

/// The return value that carries out a verdict at a hook.
fn return_value(hook: Hook, verdict: Verdict) -> i32 {
    const XDP_DROP: i32 = 1;
    const XDP_PASS: i32 = 2;
    const XDP_TX: i32 = 3;
    const TC_UNSPEC: i32 = -1;
    const TC_SHOT: i32 = 2;
    const TC_REDIRECT: i32 = 7;
    match (hook, verdict) {
        (Hook::Xdp, Verdict::Pass) => XDP_PASS,
        (Hook::Xdp, Verdict::Drop(_)) => XDP_DROP,
        (Hook::Xdp, Verdict::Bounce) => XDP_TX,
        (Hook::Xdp, other) => panic!("XDP does not {other:?}"),
        (_, Verdict::Pass) => TC_UNSPEC,
        (_, Verdict::Drop(_)) => TC_SHOT,
        (
            _,
            Verdict::Bounce
            | Verdict::Emit { .. }
            | Verdict::Route { .. }
            | Verdict::Deliver { .. }
            | Verdict::ViaDevice(_),
        ) => TC_REDIRECT,
        (_, verdict) => panic!("{verdict:?} is no end"),
    }
}

fn on_host(fixture: &Fixture) -> Outcome {
    let tables = HostTables::new(fixture.setup.clone());
    let mut packet = Frame::new(fixture.input.clone());
    let verdict = fixture.hook.run(&mut packet, &tables);
    assert_eq!(verdict, fixture.verdict, "verdict of: {}", fixture.name);
    assert_eq!(packet.bytes, fixture.output, "the host's packet of: {}", fixture.name);
    let counted = tables.counted.borrow();
    let count =
        |reason| counted.drops.iter().filter(|((own, _), _)| *own == reason).map(|(_, count)| count).sum();
    Outcome {
        returned: return_value(fixture.hook, verdict),
        packet: without_source_port(fixture.hook, packet.bytes),
        drops: drops(count),
        tables: [
            tables.flows.half_open.borrow().len(),
            tables.flows.established.borrow().len(),
            tables.nats.half_open.borrow().len(),
            tables.nats.established.borrow().len(),
            tables.fragments.borrow().len(),
        ],
        closed: tables.flows.all().iter().filter(|flow| is_closed(flow.events)).count()
            + tables.nats.all().iter().filter(|nat| is_closed(nat.events)).count(),
        ways: ways(&tables.flows.all()),
        loads: [1, 2].map(|id| tables.load(id).unwrap_or(0)),
    }
}

/// TC takes the outer source port from the kernel's hash of the flow, which has a secret seed.
fn without_source_port(hook: Hook, mut packet: Vec<u8>) -> Vec<u8> {
    const PORTS: usize = 14 + 20;
    let is_outer = packet.get(PORTS + 2..PORTS + 4) == Some(&4799u16.to_be_bytes());
    if hook != Hook::Xdp && is_outer {
        packet[PORTS..PORTS + 2].fill(0);
    }
    packet
}

/// Reasons that were counted.
fn drops(count: impl Fn(DropReason) -> u64) -> Vec<(&'static str, u64)> {
    let all = DropReason::ALL.into_iter().map(|reason| (reason.label(), count(reason)));
    all.filter(|(_, count)| *count > 0).collect()
}

/// The programs in the kernel, their maps emptied before each fixture.
struct Kernel {
    programs: Ebpf,
    /// Gives packets an origin before they come to the tunnel's hook.
    from_tunnel: Ebpf,
    /// The programs to which others tail-call: an array removes its programs when it is dropped.
    _arrays: [ProgramArray<MapData>; 2],
}

/// The programs, which all tests share: on some kernels the verifier takes a minute.
fn kernel() -> MutexGuard<'static, Kernel> {
    static KERNEL: LazyLock<Mutex<Kernel>> = LazyLock::new(|| Mutex::new(Kernel::load()));
    // Each fixture begins by emptying the maps, so a test that failed leaves nothing behind.
    KERNEL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernel {
    fn load() -> Self {
        let object = |path| fs::read(path).expect("compiled programs");
        let mut loader = EbpfLoader::new();
        for table in [names::NAT_HALF_OPEN, names::NAT_ESTABLISHED] {
            loader.map_max_entries(table, TRANSLATIONS);
        }
        loader.map_max_entries(names::FLOWS, cell_count(HOMES));
        loader.override_global(names::FLOW_HOMES, &HOMES, true);
        let factors = factors(SEED);
        loader.override_global(names::FLOW_FACTORS, &factors[..], true);
        let mut programs = loader.load(&object(env!("MESH_PROGRAMS_OBJECT"))).expect("maps are made");
        let xdp: &mut Xdp = program(&mut programs, names::PROGRAM_XDP);
        xdp.load().expect("verifier accepts mesh_xdp");
        let mut edges = array(&mut programs, names::EDGES);
        for edge in Edge::ALL {
            enter(&mut edges, edge as u32, classifier(&mut programs, edge.program()));
        }
        classifier(&mut programs, names::PROGRAM_UPLINK);
        classifier(&mut programs, names::PROGRAM_TASK);
        classifier(&mut programs, names::PROGRAM_OVERLAY);
        classifier(&mut programs, names::PROGRAM_DECRYPTED);
        classifier(&mut programs, names::PROGRAM_EGRESS);
        classifier(&mut programs, names::PROGRAM_DEVICE);
        let mut from_tunnel = Ebpf::load(&object(env!("MESH_FROM_TUNNEL_OBJECT"))).expect("maps are made");
        classifier(&mut from_tunnel, FROM_TUNNEL);
        let mut next = array(&mut from_tunnel, "NEXT");
        enter(&mut next, 0, classifier(&mut programs, names::PROGRAM_TUNNEL));
        Self { programs, from_tunnel, _arrays: [edges, next] }
    }

    fn run(&mut self, fixture: &Fixture) -> Outcome {
        clear(&mut self.programs);
        fill(&mut self.programs, &fixture.setup);
        self.run_as_is(fixture)
    }

    /// Runs the fixture's packet with the entries that the maps have now.
    fn run_as_is(&mut self, fixture: &Fixture) -> Outcome {
        let mut packet = vec![0; OUTPUT_MAX];
        let context = context_of(fixture.hook);
        let options = TestRunOptions {
            data_in: Some(&fixture.input),
            data_out: Some(&mut packet),
            ctx_in: context.as_ref().map(|context| &context[..]),
            ..TestRunOptions::new()
        };
        let classifier = match fixture.hook {
            Hook::Xdp => None,
            Hook::Uplink => Some(program(&mut self.programs, names::PROGRAM_UPLINK)),
            Hook::Task => Some(program(&mut self.programs, names::PROGRAM_TASK)),
            Hook::Decrypted => Some(program(&mut self.programs, names::PROGRAM_DECRYPTED)),
            Hook::Overlay => Some(program(&mut self.programs, names::PROGRAM_OVERLAY)),
            Hook::Egress { .. } | Hook::Forwarded => Some(program(&mut self.programs, names::PROGRAM_EGRESS)),
            Hook::Tunnel(origin) => {
                let peer = u32::from_be_bytes(origin.peer);
                let mark = if origin.is_checked { TUNNEL_MARK } else { 0 };
                set(&mut self.from_tunnel, "ORIGIN", (0..).zip([peer, origin.vni.0, mark]));
                Some(program::<SchedClassifier>(&mut self.from_tunnel, FROM_TUNNEL))
            }
        };
        let (returned, len) = if let Some(classifier) = classifier {
            let result = classifier
                .test_run(options)
                .unwrap_or_else(|error| panic!("TC test run of {}: {error}", fixture.name));
            (result.return_value, result.data_size_out)
        } else {
            let xdp: &mut Xdp = program(&mut self.programs, names::PROGRAM_XDP);
            let result = xdp
                .test_run(options)
                .unwrap_or_else(|error| panic!("XDP test run of {}: {error}", fixture.name));
            (result.return_value, result.data_size_out)
        };
        packet.truncate(len as usize);
        self.outcome(returned.cast_signed(), without_source_port(fixture.hook, packet))
    }

    fn outcome(&self, returned: i32, packet: Vec<u8>) -> Outcome {
        let programs = &self.programs;
        let counters: PerCpuArray<&MapData, u64> =
            PerCpuArray::try_from(programs.map(names::DROPS).expect("map of drops")).expect("per-CPU array");
        let at = |index: u32| counters.get(&index, 0).expect("drops").iter().sum::<u64>();
        let loads: Array<&MapData, BackendLoad> =
            Array::try_from(programs.map(names::LOADS).expect("map of loads")).expect("array");
        let [half_open, established] = flows(programs);
        Outcome {
            returned,
            packet,
            drops: drops(|reason| at(reason as u32 * 2) + at(reason as u32 * 2 + 1)),
            tables: [
                half_open,
                established,
                entries::<NatKey, Nat>(programs, names::NAT_HALF_OPEN),
                entries::<NatKey, Nat>(programs, names::NAT_ESTABLISHED),
                entries::<FragmentKey, FragmentPorts>(programs, names::FRAGMENTS),
            ],
            closed: standing(programs).iter().filter(|flow| is_closed(flow.events)).count()
                + closed_nats(programs, names::NAT_HALF_OPEN)
                + closed_nats(programs, names::NAT_ESTABLISHED),
            ways: ways(&standing(programs)),
            loads: [1, 2].map(|id| loads.get(&id, 0).expect("loads").load),
        }
    }
}

fn program<'a, T>(programs: &'a mut Ebpf, name: &str) -> &'a mut T
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program>,
    <&'a mut T as TryFrom<&'a mut aya::programs::Program>>::Error: std::fmt::Debug,
{
    programs.program_mut(name).expect("program of that name").try_into().expect("program of that kind")
}

/// A TC program, loaded.
fn classifier<'a>(programs: &'a mut Ebpf, name: &str) -> &'a SchedClassifier {
    let program: &mut SchedClassifier = program(programs, name);
    program.load().unwrap_or_else(|error| panic!("verifier accepts {name}: {error}"));
    program
}

fn array(programs: &mut Ebpf, name: &str) -> ProgramArray<MapData> {
    ProgramArray::try_from(programs.take_map(name).expect(name)).expect("array of programs")
}

fn enter(array: &mut ProgramArray<MapData>, index: u32, program: &SchedClassifier) {
    array.set(index, program.fd().expect("loaded"), 0).expect("place in the array");
}

/// The sequence numbers and MACs of flows' clients, in an order that doesn't depend on the table's.
fn ways(flows: &[Flow]) -> Vec<(u16, Mac)> {
    let mut ways: Vec<_> = flows.iter().map(|flow| (flow.sequence, flow.client_mac)).collect();
    ways.sort_unstable_by_key(|(sequence, mac)| (*sequence, mac.0));
    ways
}

/// The flows in the kernel's table.
fn standing(programs: &Ebpf) -> Vec<Flow> {
    let map = programs.map(names::FLOWS).expect("map of flows");
    let cells: Array<&MapData, FlowCell> = Array::try_from(map).expect("array");
    let flows = cells.iter().map(|cell| {
        let flow = cell.expect("cell").flow;
        Flow { events: flow.events & flow_event::ALL, ..flow }
    });
    flows.filter(|flow| flow.events != 0).collect()
}

fn closed_nats(programs: &Ebpf, name: &str) -> usize {
    let map: HashMap<&MapData, NatKey, Nat> = HashMap::try_from(programs.map(name).expect(name)).expect(name);
    map.iter().filter(|entry| is_closed(entry.as_ref().expect(name).1.events)).count()
}

/// Half-open and established flows.
fn flows(programs: &Ebpf) -> [usize; 2] {
    let (established, half_open): (Vec<Flow>, Vec<Flow>) =
        standing(programs).into_iter().partition(|flow| is_established(flow.events));
    [half_open.len(), established.len()]
}

fn entries<K: Pod, V: Pod>(programs: &Ebpf, name: &str) -> usize {
    let map: HashMap<&MapData, K, V> = HashMap::try_from(programs.map(name).expect(name)).expect(name);
    map.keys().count()
}

/// Whether this process may load programs; where `CI` is set it must.
fn is_privileged() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var_os("CI").is_none(), "this test needs root");
    if !is_root {
        eprintln!("skipped: needs root");
    }
    is_root
}

#[test]
fn a_syn_that_evicts_a_half_open_flow_fires_the_guard() {
    if !is_privileged() {
        return;
    }
    let mut kernel = kernel();
    let fixtures = fixtures::all();
    let syn = fixtures.iter().find(|fixture| fixture.name == NEW_FLOW).expect("the fixture of a new flow");
    let (half_open, closed) = (flow_event::SYN, flow_event::SYN | flow_event::RESET);
    for (ip_protocol, events, fires) in
        [(protocol::TCP, half_open, true), (protocol::TCP, closed, false), (protocol::UDP, half_open, false)]
    {
        clear(&mut kernel.programs);
        fill(&mut kernel.programs, &syn.setup);
        set(&mut kernel.programs, names::FLOWS, (0..).zip(maps::full_table(ip_protocol, events)));
        kernel.run_as_is(syn);
        let map = kernel.programs.map(names::SYN_GUARD_FIRED).expect("map of the guard");
        let fired: Array<&MapData, u64> = Array::try_from(map).expect("array");
        let has_fired = fired.get(&0, 0).expect("when it fired") != 0;
        assert_eq!(has_fired, fires, "protocol {ip_protocol}, events {events:#x}");
    }
}

#[test]
fn kernel_agrees_with_the_host() {
    if !is_privileged() {
        return;
    }
    let mut kernel = kernel();
    let fixtures = fixtures::all();
    let differs = |fixture: &Fixture| {
        let (on_host, in_kernel) = (on_host(fixture), kernel.run(fixture));
        let name = fixture.name;
        (in_kernel != on_host).then(|| format!("{name}\n  kernel: {in_kernel:?}\n  host:   {on_host:?}"))
    };
    let differing: Vec<String> = fixtures.iter().filter_map(differs).collect();
    let (count, all) = (differing.len(), fixtures.len());
    println!("fixtures: {all}, of which the kernel differs on {count}");
    assert_eq!(count, 0, "the kernel differs on {count} of {all} fixtures:\n{}", differing.join("\n"));
}

#[test]
fn the_verifier_has_half_of_its_limit_left() {
    if !is_privileged() {
        return;
    }
    let kernel = kernel();
    let mut most = 0;
    for (name, program) in kernel.programs.programs() {
        let info = program.info().unwrap_or_else(|error| panic!("{name} is loaded: {error}"));
        let walked = info.verified_instruction_count().expect("Linux 5.16 or newer");
        println!("{name}: {walked} instructions walked");
        most = most.max(walked);
        assert!(walked <= VERIFIED_MAX, "{name}: the verifier walked {walked}, more than {VERIFIED_MAX}");
    }
    assert_ne!(most, 0, "there are programs");
}

//! TC programs as filters of the clsact qdisc, as on kernels without tcx links; and nodes whose
//! kernel refuses programs.

use aya::programs::{Xdp, XdpMode};
use mesh_agent::datapath::{self, DatapathConfig, DatapathMode, TcHooks};

use crate::netlab::{NODES, Netlab, PASS, run};
use crate::node::{Node, Traces, configs};
use crate::{
    can_run, check_client_address, check_live, connect, echo, eventually, has_tcx, programs, restart,
};
use crate::{start, story};

/// Another program's filter, which matches nothing.
const OTHERS: &str = "bpf bytecode '1,6 0 0 0' flowid 1:1";

/// The filters on the ingress of an interface, as `tc` shows them; none if it has no such qdisc.
pub(crate) fn filters(lab: &Netlab, node: usize, interface: &str) -> String {
    run(&format!(
        "tc -n {} filter show dev {interface} ingress 2>/dev/null || true",
        lab.node_namespace(node)
    ))
}

/// How many of them are mesh's. `tc` shows the program's name, too.
pub(crate) fn own_filters(lab: &Netlab, node: usize, interface: &str) -> usize {
    let shown = filters(lab, node, interface);
    shown.matches(" mesh:").count() + shown.matches(" mesh+qdisc:").count()
}

fn with(tc_hooks: TcHooks, configs: &[DatapathConfig; 2]) -> [DatapathConfig; 2] {
    configs.clone().map(|config| DatapathConfig { tc_hooks, ..config })
}

#[test]
fn filters_carry_restarts_and_leave_nothing() {
    story("clsact", DatapathMode::Tc, TcHooks::Clsact);
}

/// An agent takes over from one that attached the other way: each interface has one program after
/// it, and no connection fails meanwhile.
#[test]
fn links_and_filters_take_over_from_each_other() {
    if !can_run() || !has_tcx() {
        eprintln!("skipped: this kernel attaches in one way only");
        return;
    }
    let configs = configs("over", DatapathMode::Tc);
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("over", false);
    let (mut nodes, task) = start(&lab, &configs);
    let mut live = lab.client.call(|| connect(NODES[0])).expect("a long connection").0;
    echo(&mut live, 1000);
    for (tc_hooks, filters_expected) in [(TcHooks::Clsact, 1), (TcHooks::Tcx, 0)] {
        nodes = restart(&lab, nodes, &with(tc_hooks, &configs), &task);
        echo(&mut live, 1 << 20);
        for (node, interface) in [(0, "eth0"), (0, "mesh-vxlan0"), (1, "eth0"), (1, "host1")] {
            // The kernel frees a link a little after its pin is removed.
            eventually("one program is left", || programs(&lab, node, interface) == 1);
            let seen = own_filters(&lab, node, interface);
            assert_eq!(seen, filters_expected, "filters on {interface} with {tc_hooks:?}");
        }
    }
    check_live(&nodes[0], 1);
    nodes.into_iter().for_each(Node::stop);
    drop(lab);
    drop(traces);
}

/// Filters come back when somebody deletes the qdisc, of an uplink or of a task; a task's goes with
/// the task; others' filters stay.
#[test]
fn filters_that_were_removed_are_made_again() {
    if !can_run() {
        return;
    }
    let configs = with(TcHooks::Clsact, &configs("qdisc", DatapathMode::Tc));
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("qdisc", false);
    let node = lab.node_namespace(1);
    // Another program's qdisc, with a filter behind mesh's.
    run(&format!("tc -n {node} qdisc add dev eth0 clsact"));
    run(&format!("tc -n {node} filter add dev eth0 ingress pref 60 handle 1 {OTHERS}"));
    let (nodes, task) = start(&lab, &configs);
    for (number, interface) in [(0, "eth0"), (1, "mesh-vxlan0"), (1, "host1")] {
        run(&format!("tc -n {} qdisc del dev {interface} clsact", lab.node_namespace(number)));
        eventually("the program is back", || programs(&lab, number, interface) == 1);
    }
    run(&format!("tc -n {node} filter del dev eth0 ingress pref 50"));
    eventually("the program is back", || programs(&lab, 1, "eth0") == 1);
    check_client_address(&lab, 0);
    check_client_address(&lab, 1);
    let datapath = nodes[1].datapath.clone();
    lab.nodes[1].call(move || datapath.detach_task(&task.task_id)).expect("the task is unplugged");
    assert_eq!(programs(&lab, 1, "host1"), 0, "programs on a task that was detached");
    nodes.into_iter().for_each(Node::stop);
    for (number, config) in configs.iter().enumerate() {
        let removed = config.clone();
        lab.nodes[number].call(move || datapath::uninstall(&removed)).expect("all goes");
        assert_eq!(programs(&lab, number, "eth0"), 0, "programs that are left");
    }
    let qdiscs = |number| run(&format!("tc -n {} qdisc show dev eth0", lab.node_namespace(number)));
    assert!(!qdiscs(0).contains("clsact"), "mesh's own qdisc is left: {}", qdiscs(0));
    assert!(qdiscs(1).contains("clsact"), "another program's qdisc is gone: {}", qdiscs(1));
    assert!(filters(&lab, 1, "eth0").contains("bytecode"), "another program's filter is gone");
    drop(lab);
    drop(traces);
}

/// Somebody else has mesh's place: `tc` is an error that says so, `auto` goes on without programs,
/// and neither touches what is there nor leaves anything.
#[test]
fn auto_goes_on_without_programs_where_they_can_not_be_attached() {
    if !can_run() {
        return;
    }
    let configs = with(TcHooks::Clsact, &configs("refused", DatapathMode::Auto));
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("refused", false);
    let namespace = lab.node_namespace(0);
    run(&format!("tc -n {namespace} qdisc add dev eth0 clsact"));
    run(&format!("tc -n {namespace} filter add dev eth0 ingress pref 50 handle 1 {OTHERS}"));

    let (auto, tc) = (configs[0].clone(), DatapathConfig { mode: DatapathMode::Tc, ..configs[0].clone() });
    let opened = lab.nodes[0].call(move || datapath::open_or_fall_back(&auto).expect("it goes on"));
    let fallback = opened.expect_err("there are no programs");
    assert_eq!(fallback.cause, "attach");
    assert!(fallback.sentence().contains("tc filter show"), "the next step: {}", fallback.sentence());
    assert!(!configs[0].bpffs.exists(), "{} is left", configs[0].bpffs.display());
    let links = run(&format!("ip -n {namespace} link"));
    assert!(!links.contains("mesh-vxlan0"), "left behind: {links}");
    for side in ["ingress", "egress"] {
        let filters = run(&format!("tc -n {namespace} filter show dev eth0 {side}"));
        assert!(!filters.contains("mesh"), "left behind: {filters}");
        assert_eq!(filters.contains("bytecode"), side == "ingress", "others' filters: {filters}");
    }
    let failure = lab.nodes[0].call(move || datapath::open_or_fall_back(&tc).map(drop));
    let failure = mesh_runtime::error_chain(&failure.expect_err("tc was asked for"));
    assert!(failure.contains("can't attach mesh_uplink to eth0"), "{failure}");
    drop(lab);
    drop(traces);
}

/// Another XDP program is on an uplink: `auto` leaves its packets to TC, `xdp` is an error.
#[test]
fn auto_leaves_packets_to_tc_where_xdp_is_refused() {
    if !can_run() {
        return;
    }
    let mut configs = configs("noxdp", DatapathMode::Auto);
    // `auto` tries XDP on devices that aren't software's; here that is only the loopback device.
    configs[0].interfaces.push("lo".to_owned());
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("noxdp", false);
    let _others = lab.nodes[0].call(|| {
        let mut ebpf = aya::Ebpf::load(PASS).expect("the pass program loads");
        let program: &mut Xdp = ebpf.program_mut("mesh_pass").expect("it").try_into().expect("it is XDP");
        program.load().expect("the verifier takes it");
        program.attach("lo", XdpMode::Skb).expect("it attaches");
        ebpf
    });
    let auto = configs[0].clone();
    let opened = lab.nodes[0].call(move || datapath::open_or_fall_back(&auto).expect("it opens"));
    let hooks = opened.expect("with programs").stats().expect("figures").hooks;
    assert!(hooks.iter().any(|hook| hook.interface == "lo" && hook.hook == "tc"), "{hooks:?}");
    assert!(hooks.iter().all(|hook| hook.hook != "xdp"), "{hooks:?}");
    let xdp =
        DatapathConfig { mode: DatapathMode::Xdp, interfaces: vec!["lo".to_owned()], ..configs[0].clone() };
    let failure = lab.nodes[0].call(move || datapath::open_or_fall_back(&xdp).map(drop));
    let failure = mesh_runtime::error_chain(&failure.expect_err("xdp was asked for"));
    assert!(failure.contains("another XDP program is there"), "{failure}");
    drop(lab);
    drop(traces);
}

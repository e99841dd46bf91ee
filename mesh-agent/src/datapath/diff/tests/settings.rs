//! What services ask for beside backends: allow-lists, weights, and who is left out.

use super::*;
use crate::datapath::facts::Cable;

#[test]
fn an_allow_list_is_there_before_its_flag_and_until_after_it() {
    let (mut view, facts) = small_world();
    let mut contents = Contents::default();
    let mut switch = |allow: &[&str]| {
        for service in view.services.values_mut() {
            service.lb.allow = allow.iter().map(|net| net.parse().unwrap()).collect();
        }
        let writes = plan(&contents, Some(&view), &facts, &Held::default()).writes;
        let mut listed = Vec::new();
        for write in &writes {
            contents.apply(write);
            let flagged =
                contents.services.values().any(|service| service.flags & service_flag::ALLOW_LIST != 0);
            assert!(!flagged || !contents.allowed.is_empty(), "after {write:?}: nobody is allowed");
            match write {
                Write::Allow(_) => listed.push("allow"),
                Write::Disallow(_) => listed.push("disallow"),
                Write::Service(..) => listed.push("service"),
                _ => {}
            }
        }
        (listed, contents.allowed.len())
    };
    assert_eq!(switch(&["10.0.0.0/8", "fd00::/8"]), (vec!["allow", "allow", "service"], 2));
    assert_eq!(switch(&["10.0.0.0/8", "10.0.0.0/9"]), (vec!["allow", "disallow"], 2));
    assert_eq!(switch(&[]), (vec!["service", "disallow", "disallow"], 0));
}

#[test]
fn a_port_with_a_task_on_a_userspace_node_is_the_proxys() {
    let (mut view, facts) = small_world();
    for service in view.services.values_mut() {
        service.lb.mode = lb::Mode::Dsr;
    }
    let modes = |view: &NodeView, facts: &Facts| {
        let mut contents = Contents::default();
        for write in plan(&contents, Some(view), facts, &Held::default()).writes {
            contents.apply(&write);
        }
        contents.services.values().map(|service| service.mode).collect::<Vec<_>>()
    };
    assert_eq!(modes(&view, &facts), [mesh_ebpf::abi::Mode::Dsr as u8], "as the service says");
    let away = view.backends.values().last().unwrap();
    let (id, node) = (away.id.get(), away.node_id.clone());
    view.nodes.get_mut(&node).unwrap().in_userspace = true;
    assert_eq!(modes(&view, &facts), [mesh_ebpf::abi::Mode::Proxy as u8], "one is behind a relay only");
    let elsewhere = view.backends.values().filter(|backend| backend.node_id != node).count();
    assert_eq!(elsewhere, 1, "the other backend is on another node");
    let without = Facts { ejected: [id].into(), ..facts };
    assert_eq!(modes(&view, &without), [mesh_ebpf::abi::Mode::Dsr as u8], "that one gets nothing for now");
}

#[test]
fn an_ejected_backend_keeps_its_flows_and_gets_no_new_ones() {
    let (view, mut facts) = small_world();
    facts.ejected.insert(1);
    facts.weights.insert(2, 5);
    let mut contents = Contents::default();
    for write in plan(&contents, Some(&view), &facts, &Held::default()).writes {
        contents.apply(&write);
    }
    let alive: Vec<_> = contents.alive().map(|(id, backend)| (id, backend.weight)).collect();
    assert_eq!(alive, [(1, 16), (2, 5)], "backends and their weights");
    let slots: Vec<u32> = contents.services.values().flat_map(|service| contents.members(service)).collect();
    assert_eq!(slots, [2]);
}

#[test]
fn a_port_of_the_hosts_own_is_left_to_it_while_its_flows_go_on() {
    let (mut view, mut facts) = small_world();
    // The port that the host takes has a higher index than the lowest that is free once it has
    // left.
    let second = view.services.values_mut().nth(1).unwrap();
    second.ports.push(PortView { protocol: Protocol::Tcp, published: 22, target: 8080 });
    let mut contents = Contents::default();
    converge(&mut contents, &view, &facts, &mut Held::default()).expect("both ports");
    view.services.values_mut().nth(1).unwrap().ports.clear();
    converge(&mut contents, &view, &facts, &mut Held::default()).expect("one port");
    let before = contents.clone();

    facts.host_ports.insert(Frontend { protocol: protocol::TCP, port: 80 });
    let unheard = plan(&contents, None, &facts, &Held::default());
    let frontend = Frontend { protocol: protocol::TCP, port: 80 };
    assert_eq!(
        unheard.writes,
        [Write::RemoveService(Front::Port(frontend))],
        "by an agent that was told no table yet"
    );

    converge(&mut contents, &view, &facts, &mut Held::default()).expect("the host's port");
    assert!(contents.services.is_empty(), "services: {:?}", contents.services);
    assert_eq!(contents.backends, before.backends, "flows that live go on");
    let idle = plan(&contents, Some(&view), &facts, &Held::default());
    assert_eq!(idle, Plan::default(), "nothing is left to do");

    facts.host_ports.clear();
    converge(&mut contents, &view, &facts, &mut Held::default()).expect("the service's again");
    let members: Vec<u32> = contents.services.values().flat_map(|port| contents.members(port)).collect();
    assert_eq!(members, [1, 2]);
}

#[test]
fn a_backend_of_a_node_without_link_program_waits() {
    let (view, mut facts) = small_world();
    facts.ports.clear();
    let mut contents = Contents::default();
    for write in plan(&contents, Some(&view), &facts, &Held::default()).writes {
        contents.apply(&write);
    }
    assert_eq!(contents.alive().map(|(id, _)| id).collect::<Vec<_>>(), [2], "only the remote one");
}

#[test]
fn an_agent_that_starts_takes_nothing_away_before_it_has_looked() {
    let (view, facts) = small_world();
    let mut contents = Contents::default();
    converge(&mut contents, &view, &facts, &mut Held::default()).expect("the first table");
    let mut started = Facts::of_earlier_agent(&contents);
    let idle = plan(&contents, None, &started, &Held::default());
    assert_eq!(idle, Plan::default(), "nothing has changed");

    // The veths of containers are the first thing that a starting agent looks at.
    started.cables.insert(77, Cable { network: 1, end: None });
    let plan = plan(&contents, None, &started, &Held::default());
    assert_eq!(plan.writes, [], "the uplinks are yet to be looked at");
}

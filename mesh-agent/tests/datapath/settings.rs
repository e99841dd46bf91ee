//! The effects of services' settings on a kernel: idle connections, backends that go, weights and
//! loads in the maps.

use std::io::{ErrorKind, Read};
use std::num::NonZeroU32;
use std::time::Duration;

use mesh_agent::datapath::DatapathMode;
use mesh_agent::view::BackendState;
use mesh_state::ids::BackendId;

use crate::netlab::{NODES, Netlab};
use crate::node::{Node, Traces, configs, view};
use crate::{DEADLINE, can_run, check_live, connect, echo, eventually, start};

/// A client that waits for data and sends none gets a RST when its connection is over, whether it
/// was idle or its task has gone.
#[test]
fn waiting_clients_learn_that_their_connection_is_over() {
    if !can_run() {
        return;
    }
    let configs = configs("idle", DatapathMode::Tc);
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("idle", false);
    let (nodes, _) = start(&lab, &configs);
    let waiting = |why: &str, end: &dyn Fn()| {
        let mut streams = NODES.map(|node| lab.client.call(move || connect(node)).expect("a connection").0);
        for stream in &mut streams {
            echo(stream, 1000);
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        }
        end();
        for (stream, node) in streams.iter_mut().zip(NODES) {
            let read = stream.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(read, Err(ErrorKind::ConnectionReset), "{why}, through {node}");
        }
    };
    waiting("an idle connection", &|| {
        for (number, node) in nodes.iter().enumerate() {
            let mut view = view(number, 2, &[BackendState::Active]);
            for service in view.services.values_mut() {
                service.lb.idle_timeout_s = NonZeroU32::new(1);
            }
            node.apply(view);
        }
    });
    for node in &nodes {
        check_live(node, 0);
    }
    let evictions = nodes[0].datapath.stats().expect("figures").evictions.tcp;
    assert_eq!((evictions.timeout, evictions.backend_gone), (1, 0), "evictions: {evictions:?}");
    for (number, node) in nodes.iter().enumerate() {
        node.apply(view(number, 3, &[BackendState::Active]));
    }
    waiting("a connection whose task has gone", &|| {
        for (number, node) in nodes.iter().enumerate() {
            node.apply(view(number, 4, &[]));
        }
    });
    nodes.into_iter().for_each(Node::stop);
    drop(lab);
    drop(traces);
}

/// Weights and loads are in the maps, and a weight in slow start rises.
#[test]
fn weights_and_loads_reach_the_maps() {
    if !can_run() {
        return;
    }
    let configs = configs("share", DatapathMode::Tc);
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("share", false);
    let (nodes, _) = start(&lab, &configs);
    let seen = || nodes[0].datapath.stats().expect("figures").backends[0];
    assert_eq!(seen().backend.weight, 16, "a full weight of one");
    assert_eq!(seen().load, None);
    let id = BackendId::new(7).expect("7 is an id");
    configs[0].loads.set([(id, 100)], std::time::Instant::now());
    eventually("what a manager told", || seen().load.is_some_and(|(level, _)| level == 100));
    let datapath = nodes[0].datapath.clone();
    lab.nodes[0].call(move || datapath.note_own_loads(&[(id, 5)])).expect("the load is written");
    let (level, age) = seen().load.expect("a load");
    assert!(level == 5 && age < Duration::from_secs(1), "what was measured here: {level}, {age:?} old");

    nodes[0].apply(view(0, 2, &[]));
    let mut slow = view(0, 3, &[BackendState::Active]);
    for service in slow.services.values_mut() {
        service.lb.slow_start_s = 4;
    }
    nodes[0].apply(slow);
    let first = seen().backend.weight;
    assert!(first < 8, "a new backend begins with {first} of 16");
    eventually("the weight rises", || (first + 1..16).contains(&seen().backend.weight));
    eventually("the weight is full", || seen().backend.weight == 16);
    nodes.into_iter().for_each(Node::stop);
    drop(lab);
    drop(traces);
}

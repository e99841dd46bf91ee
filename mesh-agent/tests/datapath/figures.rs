//! Counters of the kernel and of userspace, which continue where an earlier agent stopped.

use std::io::{ErrorKind, Read};
use std::num::NonZeroU32;

use mesh_agent::datapath::{DatapathMode, Evictions};
use mesh_agent::view::BackendState;

use crate::netlab::{NODES, Netlab};
use crate::node::{Node, Traces, configs, view};
use crate::{DEADLINE, can_run, check_client_address, connect, echo, eventually, start};

const CONNECTIONS: u64 = 10;

/// Handshakes and lifetimes that were measured, and evicted flow entries.
fn figures(node: &Node) -> (u64, u64, Evictions) {
    let stats = node.datapath.stats().expect("figures");
    let durations = stats.frontends.first().expect("the published port").durations;
    (durations.connect.count(), durations.flow.count(), stats.evictions.tcp)
}

#[test]
fn durations_and_evictions_outlive_the_agent() {
    if !can_run() {
        return;
    }
    let configs = configs("figure", DatapathMode::Tc);
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("figure", false);
    let ([first, second], _) = start(&lab, &configs);
    for _ in 0..CONNECTIONS {
        check_client_address(&lab, 0);
    }
    eventually("every connection was timed once", || {
        figures(&first) == (CONNECTIONS, CONNECTIONS, Evictions::default())
    });
    let sum_ns = first.datapath.stats().expect("figures").frontends[0].durations.connect.sum_ns;
    assert!(
        (1000..1_000_000_000).contains(&(sum_ns / CONNECTIONS)),
        "a handshake takes more than a microsecond and less than a second: {sum_ns} ns for {CONNECTIONS}"
    );

    let mut idle = lab.client.call(|| connect(NODES[0])).expect("a connection").0;
    echo(&mut idle, 1000);
    idle.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut hasty = view(0, 2, &[BackendState::Active]);
    for service in hasty.services.values_mut() {
        service.lb.idle_timeout_s = NonZeroU32::new(1);
    }
    first.apply(hasty);
    let read = idle.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(read, Err(ErrorKind::ConnectionReset), "the idle connection");
    let expected = (CONNECTIONS + 1, CONNECTIONS + 1, Evictions { timeout: 1, ..Evictions::default() });
    eventually("the idle connection's life, and why it ended", || figures(&first) == expected);

    first.stop();
    let first = Node::start(&lab, 0, &configs[0]);
    assert_eq!(figures(&first), expected, "after a restart, before a view came");
    first.apply(view(0, 3, &[]));
    first.apply(view(0, 4, &[BackendState::Active]));
    assert_eq!(figures(&first).2, expected.2, "evictions belong to no port");
    first.stop();
    second.stop();
    drop(lab);
    drop(traces);
}

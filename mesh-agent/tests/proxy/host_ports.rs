//! Ports that belong to the node: the proxy doesn't bind them, reports them, and tells the
//! programs.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};

use mesh_state::spec::Protocol;
use tokio::time::timeout;

use crate::mesh::{Backend, Mesh, SOON, ask_name, free_port, start_node, start_node_that_needs, start_task};

#[tokio::test]
async fn a_port_that_the_host_listens_on_stays_the_hosts_until_it_is_free() {
    let backends = vec![Backend { id: 1, node: "a", task: start_task("task").await }];
    let mesh = Mesh::tcp(backends);
    let published = (Protocol::Tcp, mesh.published);
    let holder = TcpListener::bind((Ipv4Addr::UNSPECIFIED, mesh.published)).expect("the port is free");
    let node = start_node("a", Ipv4Addr::LOCALHOST, free_port(), &mesh).await;
    let mut host_ports = node.proxy.host_ports();
    let seen = timeout(SOON, host_ports.wait_for(|ports| ports.contains(&published))).await;
    assert!(seen.is_ok_and(|seen| seen.is_ok()), "the programs are told to leave it");
    let clashes = node.proxy.clashes().borrow().clone();
    assert_eq!(clashes.len(), 1, "clashes: {clashes:?}");
    assert!(clashes[0].reason.starts_with("in use by another process"), "clashes: {clashes:?}");

    drop(holder);
    let freed = timeout(SOON, host_ports.wait_for(|ports| !ports.contains(&published))).await;
    assert!(freed.is_ok_and(|freed| freed.is_ok()), "the programs may have it");
    assert_eq!(ask_name(mesh.published).await.expect("the service has it now"), "task");
}

#[tokio::test]
async fn a_listener_on_loopback_keeps_no_packets_from_the_programs() {
    let backends = vec![Backend { id: 1, node: "a", task: start_task("task").await }];
    let mesh = Mesh::tcp(backends);
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, mesh.published)).expect("the port is free");
    let node = start_node("a", Ipv4Addr::LOCALHOST, free_port(), &mesh).await;
    let mut clashes = node.proxy.clashes();
    let clash = timeout(SOON, clashes.wait_for(|clashes| clashes.len() == 1)).await;
    assert!(clash.is_ok_and(|clash| clash.is_ok()), "the node's own connections don't reach the service");
    let published = (Protocol::Tcp, mesh.published);
    assert!(!node.proxy.host_ports().borrow().contains(&published), "other hosts can't reach that listener");
    drop(holder);
}

#[tokio::test]
async fn a_port_that_mesh_needs_is_never_bound() {
    let backends = vec![Backend { id: 1, node: "a", task: start_task("task").await }];
    let mesh = Mesh::tcp(backends);
    let published = (Protocol::Tcp, mesh.published);
    let own = BTreeMap::from([(published, "agents' streams to managers".to_owned())]);
    let node = start_node_that_needs(own, "a", Ipv4Addr::LOCALHOST, free_port(), &mesh).await;
    assert!(node.proxy.host_ports().borrow().contains(&published), "the programs are told to leave it");
    let mut clashes = node.proxy.clashes();
    let clash = timeout(SOON, clashes.wait_for(|clashes| clashes.len() == 1)).await;
    let reason = clash.expect("soon").expect("the proxy runs")[0].reason.clone();
    assert_eq!(reason, "needed by mesh itself, for agents' streams to managers: publish another port");
    // A manager that starts after the agent finds it free.
    drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, mesh.published)).expect("nobody took it"));
}

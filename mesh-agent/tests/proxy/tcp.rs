//! TCP connections: which backend gets them, how they end, what they survive.

use std::net::Ipv4Addr;

use mesh_agent::view::BackendState;
use mesh_state::ids::BackendId;
use mesh_state::proto;
use mesh_state::spec::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::mesh::{
    Backend, Mesh, Node, SOON, ask_name, connect, read_line, refusing_task, start_both, start_nodes,
    start_task,
};

#[tokio::test]
async fn local_and_remote_tasks_share_connections_in_turn() {
    let backends = vec![
        Backend { id: 1, node: "a", task: start_task("here").await },
        Backend { id: 2, node: "b", task: start_task("there").await },
    ];
    let (mesh, a, b) = start_nodes(backends).await;
    let mut names = Vec::new();
    for _ in 0..4 {
        names.push(ask_name(mesh.published).await.expect("a name"));
    }
    assert_eq!(names, ["here", "there", "here", "there"]);
    let opened = |node: &Node, id| {
        let stats = node.proxy.ledger().stats();
        BackendId::new(id).and_then(|id| stats.backends.get(&id).map(|figures| figures.opened))
    };
    assert_eq!((opened(&a, 1), opened(&a, 2)), (Some(2), Some(2)), "counted where they were selected");
    assert_eq!(opened(&b, 2), Some(0), "a relayed connection is not counted again");
}

#[tokio::test]
async fn each_way_ends_by_itself() {
    for node in ["a", "b"] {
        let task = start_task("task").await;
        let (mesh, _a, _b) = start_nodes(vec![Backend { id: 1, node, task }]).await;
        let mut stream = connect(mesh.published).await;
        assert_eq!(read_line(&mut stream).await.expect("a name"), "task");
        let sent = vec![7; 1 << 20];
        let (mut read, mut write) = stream.split();
        let upload = async {
            write.write_all(&sent).await.expect("the task reads");
            write.shutdown().await.expect("our way ends");
        };
        let mut received = Vec::new();
        let download = async { read.read_to_end(&mut received).await.expect("the task's way ends properly") };
        tokio::join!(upload, download);
        assert_eq!(received.len(), sent.len() + 3, "all bytes came back on node {node}");
        assert!(received.ends_with(b"bye"), "what the task says after our end arrives, node {node}");
    }
}

#[tokio::test]
async fn an_ejected_backend_gets_nothing_until_it_is_back() {
    let backends = vec![
        Backend { id: 1, node: "a", task: start_task("here").await },
        Backend { id: 2, node: "b", task: start_task("there").await },
    ];
    let (mesh, a, _b) = start_nodes(backends).await;
    let second = BackendId::new(2).expect("an id");
    let names = async |count: usize| {
        let mut names = Vec::new();
        for _ in 0..count {
            names.push(ask_name(mesh.published).await.expect("a name"));
        }
        names
    };
    // The proxy takes it in its own time.
    let eventually = async |wanted: &dyn Fn(&[String]) -> bool, what: &str| {
        let heard = async {
            loop {
                let names = names(4).await;
                if wanted(&names) {
                    return;
                }
            }
        };
        timeout(SOON, heard).await.expect(what);
    };
    a.proxy.eject(&[second].into());
    eventually(&|names| names.iter().all(|name| name == "here"), "the ejected one is left out").await;
    let connected = a.proxy.ledger().stats().backends[&second].opened;
    names(4).await;
    assert_eq!(a.proxy.ledger().stats().backends[&second].opened, connected, "not even tried");
    a.proxy.eject(&[].into());
    eventually(&|names| names.iter().any(|name| name == "there"), "it is back").await;
}

#[tokio::test]
async fn a_refused_backend_is_passed_over() {
    for node in ["a", "b"] {
        let backends = vec![
            Backend { id: 1, node, task: refusing_task().await },
            Backend { id: 2, node, task: start_task("good").await },
        ];
        let (mesh, a, _b) = start_nodes(backends).await;
        for turn in 0..4 {
            assert_eq!(ask_name(mesh.published).await.expect("a name"), "good", "turn {turn}, node {node}");
        }
        let stats = a.proxy.ledger().stats();
        let failures = BackendId::new(1).map(|id| stats.backends[&id].failures);
        assert_eq!(failures, Some([0, 2, 0]), "every second turn was refused, node {node}");
    }
}

#[tokio::test]
async fn without_a_backend_the_client_is_reset() {
    let backends = vec![Backend { id: 1, node: "a", task: refusing_task().await }];
    let (mesh, mut a, _b) = start_nodes(backends).await;
    let error = ask_name(mesh.published).await.expect_err("nobody answers");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    a.apply(&Mesh { backends: vec![], ..mesh }.table(2)).await;
    let error = ask_name(mesh.published).await.expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let figures: Vec<_> = a.proxy.ledger().stats().frontends.into_values().collect();
    assert_eq!(figures.iter().map(|f| (f.no_backend, f.all_refused)).collect::<Vec<_>>(), [(1, 1)]);
}

#[tokio::test]
async fn live_connections_survive_changes_until_their_backend_is_gone() {
    let backends = |first, second| {
        vec![Backend { id: 1, node: "b", task: first }, Backend { id: 2, node: "a", task: second }]
    };
    let (first, second) = (start_task("first").await, start_task("second").await);
    let (mesh, mut a, mut b) = start_nodes(backends(first, second)).await;
    let mut pinned = connect(mesh.published).await;
    assert_eq!(read_line(&mut pinned).await.expect("a name"), "first");

    let mut table = mesh.table(2);
    table.backends[0].state = proto::BackendState::Draining.into();
    for node in [&mut a, &mut b] {
        node.apply(&table).await;
    }
    let state = a.view.borrow().backends.values().next().map(|backend| backend.state);
    assert_eq!(state, Some(BackendState::Draining));
    for _ in 0..3 {
        assert_eq!(ask_name(mesh.published).await.expect("a name"), "second", "no new flows while draining");
    }
    pinned.write_all(b"still\n").await.expect("the connection lives");
    assert_eq!(read_line(&mut pinned).await.expect("an echo"), "still");

    let mut table = mesh.table(3);
    table.backends.remove(0);
    a.apply(&table).await;
    let error = read_line(&mut pinned).await.expect_err("its backend is gone");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_listener_goes_with_its_service_and_its_connections_stay() {
    let backends = vec![Backend { id: 1, node: "a", task: start_task("task").await }];
    let (mesh, mut a, _b) = start_nodes(backends).await;
    let mut live = connect(mesh.published).await;
    assert_eq!(read_line(&mut live).await.expect("a name"), "task");
    let mut table = mesh.table(2);
    table.services.clear();
    a.apply(&table).await;
    let refused = timeout(SOON, async {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, mesh.published)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    refused.await.expect("the port is closed soon");
    live.write_all(b"on\n").await.expect("the connection lives");
    assert_eq!(read_line(&mut live).await.expect("an echo"), "on");
}

#[tokio::test]
async fn a_port_in_use_is_reported_and_others_go_on() {
    let task = start_task("task").await;
    let (mesh, mut a, _b) = start_nodes(vec![Backend { id: 1, node: "a", task }]).await;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let taken_port = taken.local_addr().expect("its address").port();
    let mut table = mesh.table(2);
    let port = proto::MeshPort { protocol: "tcp".into(), published: taken_port.into(), target: 80 };
    table.services[0].ports.push(port);
    a.apply(&table).await;
    let listeners = a.proxy.ledger().stats().listeners;
    let bound = |port| listeners[&(Protocol::Tcp, port)];
    assert_eq!((bound(taken_port), bound(mesh.published)), (false, true));
    assert_eq!(ask_name(mesh.published).await.expect("a name"), "task");
}

#[tokio::test]
async fn a_stopping_proxy_cuts_what_does_not_end() {
    let task = start_task("task").await;
    let (mesh, a, _b) = start_nodes(vec![Backend { id: 1, node: "a", task }]).await;
    let mut live = connect(mesh.published).await;
    assert_eq!(read_line(&mut live).await.expect("a name"), "task");
    a.shutdown.cancel();
    timeout(SOON, a.running).await.expect("the proxy ends").expect("without a panic");
    assert!(read_line(&mut live).await.is_err(), "the connection is cut");
}

#[tokio::test]
async fn a_node_that_prefers_its_own_tasks_uses_them() {
    let backends = vec![
        Backend { id: 1, node: "a", task: start_task("here").await },
        Backend { id: 2, node: "b", task: start_task("there").await },
    ];
    let mesh = Mesh { settings: r#"{"prefer_local":true}"#, ..Mesh::tcp(backends) };
    let (_a, _b) = start_both(&mesh).await;
    for _ in 0..4 {
        assert_eq!(ask_name(mesh.published).await.expect("a name"), "here");
    }
}

#[tokio::test]
async fn a_client_off_the_allow_list_is_reset() {
    let backends = vec![Backend { id: 1, node: "a", task: start_task("task").await }];
    let mesh = Mesh { settings: r#"{"allow":["127.0.0.8/32"]}"#, ..Mesh::tcp(backends) };
    let (a, _b) = start_both(&mesh).await;
    let error = ask_name(mesh.published).await.expect_err("not allowed");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind((Ipv4Addr::new(127, 0, 0, 8), 0).into()).expect("an address");
    let mut allowed =
        socket.connect((Ipv4Addr::LOCALHOST, mesh.published).into()).await.expect("it connects");
    assert_eq!(read_line(&mut allowed).await.expect("a name"), "task");
    let denied: Vec<_> = a.proxy.ledger().stats().frontends.values().map(|figures| figures.denied).collect();
    assert_eq!(denied, [1]);
}

#[tokio::test]
async fn a_service_has_its_own_idle_limit() {
    for node in ["a", "b"] {
        let backends = vec![Backend { id: 1, node, task: start_task("task").await }];
        let mesh = Mesh { settings: r#"{"idle_timeout_s":1}"#, ..Mesh::tcp(backends) };
        let (_a, _b) = start_both(&mesh).await;
        let mut stream = connect(mesh.published).await;
        assert_eq!(read_line(&mut stream).await.expect("a name"), "task");
        let error = read_line(&mut stream).await.expect_err("it was idle");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "node {node}");
    }
}

#[tokio::test]
async fn the_task_is_told_the_client_by_the_proxy_protocol() {
    for node in ["a", "b"] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let task = listener.local_addr().expect("its address");
        let mesh = Mesh { settings: r#"{"mode":"proxy"}"#, ..Mesh::tcp(vec![Backend { id: 1, node, task }]) };
        let (a, _b) = start_both(&mesh).await;
        let mut client = connect(mesh.published).await;
        let address = client.local_addr().expect("its address");
        let (mut seen, _) = listener.accept().await.expect("the task is connected to");
        let mut header = [0; 28];
        timeout(SOON, seen.read_exact(&mut header))
            .await
            .expect("before the client speaks")
            .expect("a header");
        assert_eq!(header[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c", "node {node}");
        assert_eq!(header[16..24], [127, 0, 0, 1, 127, 0, 0, 1], "node {node}");
        let ports = [address.port().to_be_bytes(), mesh.published.to_be_bytes()].concat();
        assert_eq!(header[24..], ports, "node {node}");
        client.write_all(b"hello").await.expect("the client speaks");
        client.shutdown().await.expect("and ends");
        let mut rest = Vec::new();
        seen.read_to_end(&mut rest).await.expect("the client's bytes");
        assert_eq!(rest, b"hello", "node {node}");
        let figures = a.proxy.ledger().stats().backends.into_values().next().expect("a backend");
        assert_eq!(figures.request_bytes, 5, "the header is not the client's, node {node}");
    }
}

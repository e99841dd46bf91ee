//! UDP flows: which backend gets them, and how they end.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesh_state::ids::BackendId;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::mesh::{Backend, Mesh, Node, SOON, start_both};

/// A task that answers every datagram with its name and what it got.
async fn start_task(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = socket.local_addr().expect("its address");
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let answer = [name.as_bytes(), b" ", &buffer[..length]].concat();
            socket.send_to(&answer, from).await.expect("it is sent");
        }
    });
    address
}

/// An address that nothing listens on.
async fn refusing_task() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    socket.local_addr().expect("its address")
}

async fn start(backends: Vec<Backend>) -> (Mesh, Node, Node) {
    let mesh = Mesh { protocol: "udp", ..Mesh::tcp(backends) };
    let (a, b) = start_both(&mesh).await;
    (mesh, a, b)
}

/// A client of the published port.
async fn client(mesh: &Mesh) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    socket.connect((Ipv4Addr::LOCALHOST, mesh.published)).await.expect("an address");
    socket
}

/// The answer to `text`, which is sent again until there is one.
async fn ask(client: &UdpSocket, text: &str) -> String {
    let mut buffer = vec![0; 65_535];
    let answer = async {
        loop {
            client.send(text.as_bytes()).await.expect("it is sent");
            if let Ok(received) = timeout(Duration::from_millis(200), client.recv(&mut buffer)).await {
                break received.expect("an answer");
            }
        }
    };
    let length = timeout(SOON, answer).await.expect("an answer soon");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[tokio::test]
async fn flows_take_turns_and_stay() {
    let backends = vec![
        Backend { id: 1, node: "a", task: start_task("here").await },
        Backend { id: 2, node: "b", task: start_task("there").await },
    ];
    let (mesh, a, b) = start(backends).await;
    let (first, second) = (client(&mesh).await, client(&mesh).await);
    for round in ["1", "2", "3"] {
        assert_eq!(ask(&first, round).await, format!("here {round}"));
        assert_eq!(ask(&second, round).await, format!("there {round}"));
    }
    // Answers are counted once they are sent.
    let total =
        || a.proxy.ledger().stats().frontends.values().map(|figures| figures.reply_bytes).sum::<u64>();
    let counted = async {
        while total() < 39 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, counted).await.expect("all answers are counted soon");
    let stats = a.proxy.ledger().stats();
    let figures = |id| stats.backends[&BackendId::new(id).expect("an id")];
    for (id, reply_bytes) in [(1, 18), (2, 21)] {
        let seen = figures(id);
        assert_eq!((seen.opened, seen.live), (1, 1), "backend {id}");
        assert_eq!((seen.request_bytes, seen.reply_bytes), (3, reply_bytes), "backend {id}");
    }
    let frontend = stats.frontends.into_values().next().expect("a published port");
    assert_eq!((frontend.opened, frontend.request_bytes, frontend.reply_bytes), (2, 6, 39));
    drop(b);
}

#[tokio::test]
async fn large_and_empty_datagrams_arrive_as_they_are() {
    for node in ["a", "b"] {
        let (mesh, _a, _b) = start(vec![Backend { id: 1, node, task: start_task("t").await }]).await;
        let client = client(&mesh).await;
        for length in [0, 1, 1472, 60_000] {
            let text = "x".repeat(length);
            assert!(ask(&client, &text).await == format!("t {text}"), "{length} bytes, node {node}");
        }
    }
}

#[tokio::test]
async fn a_task_that_refuses_is_passed_over() {
    for node in ["a", "b"] {
        let backends = vec![
            Backend { id: 1, node, task: refusing_task().await },
            Backend { id: 2, node, task: start_task("good").await },
        ];
        let (mesh, a, _b) = start(backends).await;
        assert_eq!(ask(&client(&mesh).await, "x").await, "good x", "node {node}");
        let stats = a.proxy.ledger().stats();
        let failures = BackendId::new(1).map(|id| stats.backends[&id].failures);
        assert_eq!(failures, Some([0, 1, 0]), "node {node}");
    }
}

#[tokio::test]
async fn a_flow_whose_backend_is_gone_gets_another() {
    let backends = |first, second| {
        vec![Backend { id: 1, node: "b", task: first }, Backend { id: 2, node: "a", task: second }]
    };
    let (first, second) = (start_task("first").await, start_task("second").await);
    let (mesh, mut a, mut b) = start(backends(first, second)).await;
    let client = client(&mesh).await;
    assert_eq!(ask(&client, "x").await, "first x");

    let mut table = mesh.table(2);
    table.backends[0].state = mesh_state::proto::BackendState::Draining.into();
    for node in [&mut a, &mut b] {
        node.apply(&table).await;
    }
    assert_eq!(ask(&client, "x").await, "first x", "a draining backend keeps its flows");
    table = mesh.table(3);
    table.backends.remove(0);
    for node in [&mut a, &mut b] {
        node.apply(&table).await;
    }
    assert_eq!(ask(&client, "x").await, "second x");
    table = mesh.table(4);
    table.backends.clear();
    for node in [&mut a, &mut b] {
        node.apply(&table).await;
    }
    // A datagram may still meet the flow that ends, and is lost with it.
    let refused = async {
        while a.proxy.ledger().stats().frontends.values().all(|figures| figures.no_backend == 0) {
            client.send(b"x").await.expect("it is sent");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, refused).await.expect("a datagram without a backend is counted soon");
}

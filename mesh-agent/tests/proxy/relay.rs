//! The relay: which peers it serves, and what connections survive.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_agent::control_link::relay_keys::RelayKey;
use mesh_agent::proxy::preamble::{self, Answer, CHALLENGE_LENGTH, Challenge, Preamble};
use mesh_agent::view::NodeView;
use mesh_state::ids::BackendId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::mesh::{
    Backend, Mesh, SOON, ask_name, free_port, keys, start_node_with_room, start_nodes, start_task,
};

/// A connection to a relay, and its challenge; none if the relay closes it, maybe at once.
async fn greet(relay: SocketAddr) -> Option<(TcpStream, Challenge)> {
    let mut stream = TcpStream::connect(relay).await.ok()?;
    let mut challenge = [0; CHALLENGE_LENGTH];
    timeout(SOON, stream.read_exact(&mut challenge)).await.expect("a challenge soon").ok()?;
    Some((stream, challenge))
}

/// What a relay answers to `preamble`.
async fn ask(stream: &mut TcpStream, bytes: &[u8]) -> Option<u8> {
    stream.write_all(bytes).await.expect("the relay reads");
    timeout(SOON, stream.read_u8()).await.expect("an answer soon").ok()
}

fn preamble(backend: u32, challenge: Challenge) -> Preamble {
    Preamble {
        backend: BackendId::new(backend).expect("an id"),
        client: "192.0.2.1:40000".parse().expect("an address"),
        destination: "127.0.0.1:80".parse().expect("an address"),
        challenge,
    }
}

#[tokio::test]
async fn a_relay_takes_only_members_good_answers_to_its_challenge() {
    let backends = vec![
        Backend { id: 1, node: "b", task: start_task("there").await },
        Backend { id: 2, node: "a", task: start_task("here").await },
    ];
    let (mesh, _a, mut b) = start_nodes(backends).await;
    let relay = b.proxy.relay_address();
    let key = |byte| RelayKey::from_bytes(&[byte; 32]).expect("a key");
    let connected = Some(Answer::Connected.to_byte());
    let denied = Some(Answer::Denied.to_byte());

    let (mut stream, challenge) = greet(relay).await.expect("a member is greeted");
    let good = preamble(1, challenge).sign(&key(1));
    assert_eq!(ask(&mut stream, &good).await, connected, "a good preamble");
    let (mut stream, challenge) = greet(relay).await.expect("a member is greeted");
    assert_eq!(ask(&mut stream, &good).await, denied, "the same again");
    let (mut stream, other) = greet(relay).await.expect("a member is greeted");
    assert_ne!(challenge, other, "every connection has its own challenge");
    let forged = preamble(1, other).sign(&key(9));
    assert_eq!(ask(&mut stream, &forged).await, denied, "signed with another key");
    let (mut stream, challenge) = greet(relay).await.expect("a member is greeted");
    let unknown = Some(Answer::UnknownBackend.to_byte());
    assert_eq!(ask(&mut stream, &preamble(2, challenge).sign(&key(1))).await, unknown, "another node's task");

    let mut strangers = NodeView::clone(&b.view.borrow());
    strangers.nodes.retain(|id, _| id.as_str() == "b");
    strangers.generation = 2;
    b.view.send_replace(Arc::new(strangers));
    b.applied.wait_for(|applied| *applied == 2).await.expect("the proxy runs");
    assert!(greet(relay).await.is_none(), "no member is not greeted");
    drop(mesh);
}

#[tokio::test]
async fn a_connection_carries_one_session_after_another() {
    let task = start_task("there").await;
    let (_mesh, _a, b) = start_nodes(vec![Backend { id: 1, node: "b", task }]).await;
    let key = RelayKey::from_bytes(&[1; 32]).expect("a key");
    let (mut stream, mut challenge) = greet(b.proxy.relay_address()).await.expect("a member is greeted");
    for round in 0..3 {
        let asked = preamble(1, challenge).sign(&key);
        assert_eq!(ask(&mut stream, &asked).await, Some(Answer::Connected.to_byte()), "round {round}");
        stream.write_all(b"\0\0\0\x02hi\0\0\0\0").await.expect("the session is taken");
        assert_eq!(session(&mut stream).await, b"there\nhibye", "round {round}");
        challenge = preamble::next(challenge);
    }
    let early = preamble(1, preamble::next(challenge)).sign(&key);
    assert_eq!(ask(&mut stream, &early).await, Some(Answer::Denied.to_byte()), "not the next challenge");
}

#[tokio::test]
async fn a_session_waits_for_room_for_a_while_and_not_beyond_the_agents_stop() {
    const ROOM: usize = 2;
    const ROOM_DEADLINE: Duration = Duration::from_secs(5);
    let mesh = Mesh::tcp(vec![Backend { id: 1, node: "b", task: start_task("there").await }]);
    let b = start_node_with_room(ROOM, "b", Ipv4Addr::new(127, 0, 0, 2), free_port(), &mesh).await;
    let relay = b.proxy.relay_address();
    let key = RelayKey::from_bytes(&[1; 32]).expect("a key");
    // First the ones that wait in the pool: they leave the sessions' permits to the next two, which
    // keep theirs.
    let (mut patient, first) = greet(relay).await.expect("a member is greeted");
    let (mut second, its) = greet(relay).await.expect("a member is greeted");
    let mut sessions = Vec::new();
    for _ in 0..ROOM {
        let (mut stream, challenge) = greet(relay).await.expect("a member is greeted");
        let asked = preamble(1, challenge).sign(&key);
        assert_eq!(ask(&mut stream, &asked).await, Some(Answer::Connected.to_byte()));
        sessions.push(stream);
    }

    let begun = Instant::now();
    patient.write_all(&preamble(1, first).sign(&key)).await.expect("the relay reads");
    let answer = timeout(2 * ROOM_DEADLINE, patient.read_u8()).await.expect("an answer after the deadline");
    assert_eq!(answer.ok(), Some(Answer::Timeout.to_byte()), "no session has ended");
    assert!(begun.elapsed() >= ROOM_DEADLINE, "it had no room after {:?}", begun.elapsed());

    second.write_all(&preamble(1, its).sign(&key)).await.expect("the relay reads");
    b.shutdown.cancel();
    let stopped = timeout(ROOM_DEADLINE / 2, async {
        let end = second.read_u8().await;
        b.running.await.expect("no panic");
        end
    });
    let end = stopped.await.expect("it waits no longer than the agent");
    assert!(end.is_err(), "answered with {end:?}");
}

/// The bytes of a session until its end.
async fn session(stream: &mut TcpStream) -> Vec<u8> {
    let mut payload = Vec::new();
    loop {
        let length = timeout(SOON, stream.read_u32()).await.expect("a frame soon").expect("a frame");
        if length == 0 {
            return payload;
        }
        let from = payload.len();
        payload.resize(from + length as usize, 0);
        stream.read_exact(&mut payload[from..]).await.expect("the frame's bytes");
    }
}

#[tokio::test]
async fn a_relay_that_was_restarted_is_reached_afresh() {
    let task = start_task("there").await;
    let (mesh, _a, b) = start_nodes(vec![Backend { id: 1, node: "b", task }]).await;
    for _ in 0..3 {
        assert_eq!(ask_name(mesh.published).await.expect("a name"), "there");
    }
    let relay = b.proxy.relay_address();
    b.shutdown.cancel();
    timeout(SOON, b.running).await.expect("the proxy ends").expect("without a panic");
    drop(b.proxy);
    assert!(ask_name(mesh.published).await.is_err(), "nobody is there");
    let again = crate::mesh::start_node("b", Ipv4Addr::new(127, 0, 0, 2), relay.port(), &mesh).await;
    assert_eq!(ask_name(mesh.published).await.expect("a name"), "there");
    drop(again);
}

/// The task's bytes come after the answer, whoever speaks first; a thousand connections use up no
/// pool.
#[tokio::test]
async fn many_connections_at_once_are_relayed() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let task = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let byte = stream.read_u8().await?;
                stream.write_u8(byte).await
            });
        }
    });
    let (mesh, _a, _b) = start_nodes(vec![Backend { id: 1, node: "b", task }]).await;
    let clients: Vec<_> = (0..48_u8)
        .map(|byte| {
            tokio::spawn(async move {
                for _ in 0..10 {
                    let mut stream =
                        TcpStream::connect((Ipv4Addr::LOCALHOST, mesh.published)).await.expect("it connects");
                    stream.write_u8(byte).await.expect("it is taken");
                    assert_eq!(stream.read_u8().await.expect("an echo"), byte);
                }
            })
        })
        .collect();
    for client in clients {
        timeout(SOON, client).await.expect("soon").expect("every connection is served");
    }
}

#[tokio::test]
async fn keys_rotate_without_a_lost_connection() {
    let task = start_task("there").await;
    let (mesh, a, b) = start_nodes(vec![Backend { id: 1, node: "b", task }]).await;
    for (ours, theirs) in
        [(keys(&[1, 2]), keys(&[1])), (keys(&[1]), keys(&[1, 2])), (keys(&[1, 2]), keys(&[1, 2]))]
    {
        a.keys.send_replace(ours.clone());
        b.keys.send_replace(theirs.clone());
        let name = ask_name(mesh.published).await.expect("a name");
        assert_eq!(name, "there", "with {ours:?} here and {theirs:?} there");
    }
}

//! The name server over real sockets: UDP and TCP clients at addresses of tasks, a resolver of the
//! host, strangers, and tables that change.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use mesh_admission::door::Door;
use mesh_admission::figures::Listener;
use mesh_admission::refusals::{Reason, Refusals};
use mesh_agent::names::Names;
use mesh_agent::names::counts::Counts;
use mesh_agent::names::respond::Outcome;
use mesh_agent::task::local::{Asker, LocalTasks};
use mesh_agent::view::NodeView;
use mesh_state::ids::{NodeId, TaskId};
use mesh_state::proto;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

/// A node whose subnet is 127.`second`.0.0/24: all of it is this host's. The gateway is the first
/// address, the host's resolver the last.
struct Node {
    second: u8,
    port: u16,
    views: watch::Sender<Arc<NodeView>>,
    local: Arc<LocalTasks>,
    refusals: Refusals,
    counts: Counts,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    _files: tempfile::TempDir,
}

fn member(id: &str, address: &str) -> proto::MeshMember {
    proto::MeshMember {
        id: id.into(),
        service_id: "web".into(),
        name: format!("web.1.{id}"),
        node_id: "here".into(),
        state: proto::BackendState::Active.into(),
        weight: 1,
        attachments: vec![proto::MeshAttachment {
            network_id: "app".into(),
            address: address.into(),
            ..proto::MeshAttachment::default()
        }],
        ..proto::MeshMember::default()
    }
}

fn view(second: u8, generation: u64, tasks: u32) -> Arc<NodeView> {
    let members = (0..tasks).map(|number| {
        let address = Ipv4Addr::from(0x7f00_0101 + (u32::from(second) << 16) + number);
        member(&format!("t{number}"), &address.to_string())
    });
    let table = proto::MeshTable {
        generation,
        networks: vec![proto::MeshNetwork {
            id: "app".into(),
            name: "app_net".into(),
            number: 1,
            subnet: format!("127.{second}.0.0/16"),
            ..proto::MeshNetwork::default()
        }],
        services: vec![proto::MeshService {
            id: "web".into(),
            name: "web".into(),
            policy: "round-robin".into(),
            networks: vec![proto::MeshServiceNetwork {
                network_id: "app".into(),
                virtual_ip: format!("127.{second}.9.9"),
                aliases: vec!["www".into()],
            }],
            ..proto::MeshService::default()
        }],
        members: members.collect(),
        ..proto::MeshTable::default()
    };
    let mut own = NodeView::new(NodeId::from("here"), Ipv4Addr::LOCALHOST);
    own.subnet = format!("127.{second}.0.0/24").parse().ok();
    Arc::new(own.apply(&table).expect("a good table"))
}

impl Node {
    /// A node with one task of `web` on the network `app`, which asks from the second address.
    async fn start(second: u8) -> Self {
        let port = {
            let free = std::net::UdpSocket::bind((Ipv4Addr::new(127, second, 0, 1), 0)).expect("a free port");
            free.local_addr().expect("its address").port()
        };
        start_resolver(Ipv4Addr::new(127, second, 0, 254), port).await;
        let files = tempfile::tempdir().expect("a directory");
        let resolv_conf = files.path().join("resolv.conf");
        // The first is the name server itself, which must not ask itself.
        fs::write(&resolv_conf, format!("nameserver 127.{second}.0.1\nnameserver 127.{second}.0.254\n"))
            .expect("a file");
        let (views, seen) = watch::channel(view(second, 1, 1));
        let (local, refusals) = (Arc::new(LocalTasks::default()), Refusals::new().expect("a counter"));
        let counts = Counts::new().expect("counters");
        let stop = CancellationToken::new();
        let names = Names {
            views: seen,
            local: Arc::clone(&local),
            door: Door::new(Listener::Names, Listener::Names.figures(), refusals.clone()),
            counts: counts.clone(),
            port,
            resolv_conf,
        };
        let running = tokio::spawn(names.run(stop.clone()));
        let node = Self { second, port, views, local, refusals, counts, stop, running, _files: files };
        node.add_task("t0", 2, false);
        node
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.second, 0, last)
    }

    fn add_task(&self, task: &str, last: u8, has_own_servers: bool) {
        let task = TaskId::from(task);
        self.local.describe(&task, Asker { networks: vec!["app".into()], has_own_servers });
        self.local.add(&task, self.address(last));
    }

    fn server(&self) -> SocketAddr {
        SocketAddrV4::new(self.address(1), self.port).into()
    }

    /// Asks by UDP from an address until there is an answer: datagrams to a socket that is not
    /// bound yet are lost.
    async fn ask(&self, last: u8, name: &str, record_type: RecordType) -> Message {
        let socket = UdpSocket::bind((self.address(last), 0)).await.expect("a socket");
        socket.connect(self.server()).await.expect("it is connected");
        let (id, bytes) = question(name, record_type);
        let end = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 4096];
        loop {
            assert!(Instant::now() < end, "no answer for {name}");
            if socket.send(&bytes).await.is_err() {
                tokio::task::yield_now().await;
                continue;
            }
            match timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await {
                Ok(Ok(length)) => {
                    let answer = Message::from_vec(&buffer[..length]).expect("a good answer");
                    assert_eq!(answer.metadata.id, id);
                    return answer;
                }
                // It is refused until the server listens.
                Ok(Err(_)) | Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    async fn connect(&self, last: u8) -> TcpStream {
        let end = Instant::now() + PATIENCE;
        loop {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind((IpAddr::V4(self.address(last)), 0).into()).expect("it is bound");
            match socket.connect(self.server()).await {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < end, "connect: {error}"),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.running).await.expect("it ends").expect("without a panic");
    }
}

fn question(name: &str, record_type: RecordType) -> (u16, Vec<u8>) {
    let mut message = Message::new(0x5eed, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_labels(name.split('.').map(str::as_bytes)).expect("a name");
    message.add_query(Query::query(name, record_type));
    (0x5eed, message.to_vec().expect("bytes"))
}

async fn ask_by_tcp(stream: &mut TcpStream, name: &str) -> Message {
    let (_, bytes) = question(name, RecordType::A);
    stream.write_u16(u16::try_from(bytes.len()).expect("a length")).await.expect("it is sent");
    stream.write_all(&bytes).await.expect("it is sent");
    let length = usize::from(stream.read_u16().await.expect("a length"));
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await.expect("an answer");
    Message::from_vec(&answer).expect("a good answer")
}

/// A resolver that knows every name, at 192.0.2.1.
async fn start_resolver(address: Ipv4Addr, port: u16) {
    let socket = UdpSocket::bind((address, port)).await.expect("a socket");
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let mut answer = Message::from_vec(&buffer[..length]).expect("a good question");
            answer.metadata.message_type = MessageType::Response;
            let name = answer.queries[0].name().clone();
            let address = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
            answer.add_answer(Record::from_rdata(name, 60, address));
            socket.send_to(&answer.to_vec().expect("bytes"), from).await.expect("it is sent");
        }
    });
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn a_task_asks_by_udp_and_tcp_and_gets_ours_and_foreign_names() {
    let node = Node::start(81).await;
    let answer = node.ask(2, "wWw", RecordType::A).await;
    assert_eq!(data(&answer), ["127.81.9.9"]);
    assert!(answer.metadata.authoritative);
    assert_eq!(answer.queries[0].name().to_ascii(), "wWw.");
    let empty = node.ask(2, "web", RecordType::AAAA).await;
    assert_eq!((empty.metadata.response_code, empty.answers.len()), (ResponseCode::NoError, 0));
    let denied = node.ask(2, "nobody", RecordType::A).await;
    assert_eq!(denied.metadata.response_code, ResponseCode::NXDomain);
    let foreign = node.ask(2, "example.org", RecordType::A).await;
    assert_eq!(data(&foreign), ["192.0.2.1"], "by the host's resolver");
    assert!(!foreign.metadata.authoritative);
    let mut stream = node.connect(2).await;
    for (name, expected) in
        [("web", "127.81.9.9"), ("tasks.web.app_net", "127.81.1.1"), ("web", "127.81.9.9")]
    {
        assert_eq!(data(&ask_by_tcp(&mut stream, name).await), [expected], "{name} by one connection");
    }
    let seen = |outcome| node.counts.seen(outcome);
    assert_eq!((seen(Outcome::NoData), seen(Outcome::NoName), seen(Outcome::Forwarded)), (1, 1, 1));
    assert!(seen(Outcome::Answered) >= 4);
    node.end().await;
}

#[tokio::test]
async fn what_is_too_long_for_udp_comes_by_tcp() {
    let node = Node::start(82).await;
    node.views.send_replace(view(82, 2, 200));
    let end = Instant::now() + PATIENCE;
    loop {
        let mut stream = node.connect(2).await;
        let whole = ask_by_tcp(&mut stream, "tasks.web").await;
        if whole.answers.len() == 200 {
            break;
        }
        assert!(Instant::now() < end, "the new table counts, saw {}", whole.answers.len());
    }
    let short = node.ask(2, "tasks.web", RecordType::A).await;
    assert!(short.metadata.truncation);
    assert!((20..200).contains(&short.answers.len()), "{} of 200", short.answers.len());
    node.end().await;
}

#[tokio::test]
async fn strangers_are_refused_and_who_becomes_known_in_time_is_not() {
    let node = Node::start(83).await;
    node.ask(2, "web", RecordType::A).await;
    let began = Instant::now();
    let refused = node.ask(66, "web", RecordType::A).await;
    assert_eq!((refused.metadata.response_code, refused.answers.len()), (ResponseCode::Refused, 0));
    assert!(began.elapsed() >= Duration::from_millis(900), "it might have become known");
    assert_eq!(node.refusals.seen(Listener::Names, Reason::Stranger), 1);
    let (early, ()) = tokio::join!(node.ask(3, "web", RecordType::A), async {
        // The question waits already.
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.add_task("t9", 3, false);
    });
    assert_eq!(data(&early), ["127.83.9.9"]);
    node.local.forget(&TaskId::from("t9"));
    let gone = node.ask(3, "web", RecordType::A).await;
    assert_eq!(gone.metadata.response_code, ResponseCode::Refused, "its address is nobody's now");
    node.end().await;
}

#[tokio::test]
async fn a_task_with_servers_of_its_own_is_sent_to_them_for_foreign_names() {
    let node = Node::start(84).await;
    node.add_task("t1", 4, true);
    assert_eq!(data(&node.ask(4, "web", RecordType::A).await), ["127.84.9.9"]);
    for name in ["example.org", "nas"] {
        let refused = node.ask(4, name, RecordType::A).await;
        assert_eq!(refused.metadata.response_code, ResponseCode::Refused, "{name}");
        assert!(!refused.metadata.authoritative);
    }
    node.end().await;
}

#[tokio::test]
async fn a_member_is_known_by_its_address_in_the_table() {
    let node = Node::start(85).await;
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 85, 1, 1), 0)).await.expect("a socket");
    socket.connect(node.server()).await.expect("it is connected");
    node.ask(2, "web", RecordType::A).await;
    socket.send(&question("web", RecordType::A).1).await.expect("it is sent");
    let mut buffer = [0; 512];
    let received = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("in time").expect("an answer");
    assert_eq!(data(&Message::from_vec(&buffer[..received]).expect("an answer")), ["127.85.9.9"]);
    node.end().await;
}

#[tokio::test]
async fn whoever_publishes_the_port_at_all_addresses_takes_no_question_of_a_task() {
    let node = Node::start(88).await;
    node.ask(2, "web", RecordType::A).await;
    // As the proxy binds a published port 53.
    let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, node.port));
    let [udp, tcp] = [Type::DGRAM, Type::STREAM].map(|kind| {
        let socket = Socket::new(Domain::IPV6, kind, None).expect("a socket");
        socket.set_only_v6(false).expect("for both families");
        socket.set_reuse_port(true).expect("shared");
        socket.set_reuse_address(kind == Type::STREAM).expect("after an earlier one");
        socket.bind(&any.into()).expect("it is bound beside the name server");
        socket
    });
    tcp.listen(8).expect("it listens");
    for _ in 0..16 {
        assert_eq!(data(&node.ask(2, "web", RecordType::A).await), ["127.88.9.9"]);
        assert_eq!(data(&ask_by_tcp(&mut node.connect(2).await, "web").await), ["127.88.9.9"]);
    }
    drop(udp);
    node.end().await;
}

#[tokio::test]
async fn a_port_that_another_program_has_is_taken_once_it_is_free() {
    let holder = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
    let node = {
        let node = Node::start(86).await;
        node.ask(2, "web", RecordType::A).await;
        node
    };
    // The node's subnet moves to one whose first address another program has.
    let taken = SocketAddrV4::new(Ipv4Addr::new(127, 87, 0, 1), node.port);
    holder.bind(&SocketAddr::from(taken).into()).expect("it is bound");
    let mut moved = NodeView::clone(&view(86, 2, 1));
    moved.subnet = "127.87.0.0/24".parse().ok();
    node.views.send_replace(Arc::new(moved));
    let client = UdpSocket::bind((node.address(2), 0)).await.expect("a socket");
    client.connect(taken).await.expect("it is connected");
    drop(holder);
    let mut buffer = [0; 512];
    let end = Instant::now() + PATIENCE;
    let answer = loop {
        assert!(Instant::now() < end, "the freed port is taken");
        let sent = client.send(&question("web", RecordType::A).1).await;
        match timeout(Duration::from_millis(200), client.recv(&mut buffer)).await {
            Ok(Ok(length)) if sent.is_ok() => break Message::from_vec(&buffer[..length]).expect("an answer"),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert_eq!(data(&answer), ["127.86.9.9"]);
    node.end().await;
}

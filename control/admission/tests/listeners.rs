//! Tests with clients that are too many, too slow or silent, on real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use mesh_admission::door::Door;
use mesh_admission::figures::{Figures, Listener};
use mesh_admission::refusals::{Reason, Refusals};
use mesh_admission::register::Call;
use mesh_admission::{accept, http};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(5);

fn figures() -> Figures {
    Figures {
        evictable_after: Duration::from_millis(200),
        connections: 8,
        waiting: 8,
        per_peer: 8,
        waiting_per_peer: 4,
        wait: Duration::from_millis(500),
        stall: Some(Duration::from_millis(500)),
        streams: 2,
        slow_calls: 4,
    }
}

/// Answers `/stream` endlessly, `/slow` never, and `/large` with 64 MiB.
async fn answer(request: Request<Incoming>) -> Result<Response<Either<Endless, Full<Bytes>>>, Infallible> {
    Ok(Response::new(match request.uri().path() {
        "/stream" => Either::Left(Endless),
        "/slow" => std::future::pending().await,
        "/large" => Either::Right(Full::new(Bytes::from(vec![b'x'; 64 << 20]))),
        _ => Either::Right(Full::new(Bytes::from_static(b"ok"))),
    }))
}

struct Endless;

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        std::task::Poll::Pending
    }
}

fn classify(request: &Request<Incoming>) -> Call {
    match request.uri().path() {
        "/stream" => Call::Stream,
        "/slow" => Call::Slow,
        _ => Call::Short,
    }
}

struct Served {
    directory: tempfile::TempDir,
    refusals: Refusals,
    stop: CancellationToken,
}

impl Served {
    fn start(figures: Figures) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("sock")).unwrap();
        let (refusals, stop) = (Refusals::new().unwrap(), CancellationToken::new());
        let door = Door::new(Listener::DockerSocket, figures, refusals.clone());
        tokio::spawn(http::serve(listener, door, classify, service_fn(answer), stop.clone()));
        Self { directory, refusals, stop }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("sock")
    }

    async fn client(&self) -> UnixStream {
        UnixStream::connect(self.path()).await.unwrap()
    }

    fn refused(&self, reason: Reason) -> u64 {
        self.refusals.seen(Listener::DockerSocket, reason)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn ask(stream: &mut UnixStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
}

/// The first bytes of an answer.
async fn first(stream: &mut UnixStream) -> String {
    let mut bytes = vec![0; 4096];
    let read = timeout(SOON, stream.read(&mut bytes)).await.expect("an answer in time").unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

async fn status_of(path: &Path, asked: &str) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    ask(&mut stream, asked).await;
    let answer = first(&mut stream).await;
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn streams_and_slow_calls_leave_room_for_short_ones() {
    let served = Served::start(figures());
    let mut held = Vec::new();
    for path in ["/stream", "/stream", "/slow", "/slow"] {
        let mut client = served.client().await;
        ask(&mut client, path).await;
        if path == "/stream" {
            assert!(first(&mut client).await.starts_with("HTTP/1.1 200"));
        }
        held.push(client);
    }
    let mut third = served.client().await;
    ask(&mut third, "/stream").await;
    let told = first(&mut third).await;
    assert!(told.starts_with("HTTP/1.1 503") && told.contains("follow events"), "a third stream saw {told}");
    assert_eq!(status_of(&served.path(), "/slow").await, "503");
    assert_eq!(status_of(&served.path(), "/short").await, "200", "the reserve is gone");
    assert_eq!((served.refused(Reason::Streams), served.refused(Reason::SlowCalls)), (1, 1));
    held.clear();
    let again = timeout(SOON, async {
        while status_of(&served.path(), "/stream").await != "200" {
            sleep(Duration::from_millis(10)).await;
        }
    });
    again.await.expect("streams that ended release their places");
}

#[tokio::test]
async fn silent_connections_make_room_for_those_that_speak() {
    let served = Served::start(Figures { wait: Duration::from_mins(1), ..figures() });
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(served.client().await);
    }
    let mut late = served.client().await;
    ask(&mut late, "/short").await;
    let told = first(&mut late).await;
    assert!(told.starts_with("HTTP/1.1 503") && told.contains("too many connections"), "saw {told}");
    assert_eq!(served.refused(Reason::Connections), 1);
    sleep(figures().evictable_after).await;
    assert_eq!(status_of(&served.path(), "/short").await, "200", "no silent connection made room");
    assert_eq!(first(&mut silent[0]).await, "", "the oldest is still open");
    assert_eq!(served.refused(Reason::Evicted), 1);
}

#[tokio::test]
async fn half_a_request_times_out() {
    let served = Served::start(figures());
    let mut client = served.client().await;
    client.write_all(b"GET /short HTTP/1.1\r\nhost").await.unwrap();
    assert!(!first(&mut client).await.starts_with("HTTP/1.1 200"));
    assert_eq!(served.refused(Reason::WaitedTooLong), 1);
    let mut idle = served.client().await;
    ask(&mut idle, "/short").await;
    assert!(first(&mut idle).await.starts_with("HTTP/1.1 200"));
    assert_eq!(first(&mut idle).await, "", "an idle connection is kept");
    assert_eq!(served.refused(Reason::WaitedTooLong), 1, "one that was served is no refusal");
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_given_up() {
    let served = Served::start(figures());
    let mut client = served.client().await;
    ask(&mut client, "/large").await;
    let given_up = timeout(SOON, async {
        while served.refused(Reason::Stalled) == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    });
    given_up.await.expect("the server still waits for its client");
    assert_eq!(status_of(&served.path(), "/short").await, "200");
}

#[tokio::test]
async fn a_client_without_proof_is_disconnected_and_a_member_is_not() {
    use futures::StreamExt as _;
    let refusals = Refusals::new().unwrap();
    let door = Door::new(Listener::Nodes, figures(), refusals.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = Box::pin(accept::proven(listener, Arc::clone(&door), Duration::from_secs(2)));
    let member = TcpStream::connect(address).await.unwrap();
    let mut served_member = incoming.next().await.unwrap().unwrap();
    door.prove(member.local_addr().unwrap());
    let stranger = TcpStream::connect(address).await.unwrap();
    let mut served_stranger = incoming.next().await.unwrap().unwrap();
    let cut = timeout(SOON, served_stranger.read_u8()).await.expect("the stranger is kept");
    assert_eq!(cut.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(refusals.seen(Listener::Nodes, Reason::WaitedTooLong), 1);
    let kept = timeout(Duration::from_millis(200), served_member.read_u8()).await;
    assert!(kept.is_err(), "the member was cut off: {kept:?}");
    drop((stranger, served_stranger));
    assert_eq!(door.open(), 1, "places are released");
    let more: Vec<_> = futures::future::join_all((0..8).map(|_| TcpStream::connect(address))).await;
    let admitted = async {
        let mut admitted = Vec::new();
        while let Ok(next) = timeout(Duration::from_millis(200), incoming.next()).await {
            admitted.push(next);
        }
        admitted.len()
    };
    assert_eq!(admitted.await, 4, "connections of one address that wait");
    drop(more);
}

#[tokio::test]
async fn after_an_error_of_accept_the_listener_pauses() {
    struct Failing(std::sync::atomic::AtomicU64);
    impl accept::ConnectionSource for Failing {
        type Io = UnixStream;
        async fn take(&self) -> std::io::Result<(UnixStream, Option<std::net::SocketAddr>)> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Err(std::io::Error::from_raw_os_error(24))
        }
    }
    let (failing, refusals) = (Failing(0.into()), Refusals::new().unwrap());
    let door = Door::new(Listener::Nodes, figures(), refusals.clone());
    let taken = timeout(Duration::from_millis(350), accept::next(&failing, &door)).await;
    assert!(taken.is_err());
    let tries = failing.0.load(std::sync::atomic::Ordering::Relaxed);
    assert!((2..=5).contains(&tries), "{tries} tries in 350 ms: it spins or has stopped");
    assert_eq!(refusals.seen(Listener::Nodes, Reason::Descriptors), tries);
}

//! Clients that never finish the TLS handshake.

use http_body_util::Full;
use mesh_admission::figures::{Figures, Listener};
use mesh_admission::refusals::Refusals;
use mesh_admission::register::Call;
use tokio::io::AsyncReadExt as _;

use super::certificate::tests::{context, trust};
use super::*;

/// How long a client may wait here.
const WAIT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn whoever_says_nothing_is_closed_in_time_and_holds_up_nobody() {
    let registry = prometheus::Registry::new();
    let refusals = Refusals::register(&registry).unwrap();
    let figures = Figures { wait: WAIT, ..Listener::RemoteApi.figures() };
    let (_cas, trusted) = watch::channel(trust("c"));
    let context = context();
    let snapshots = context.feed.snapshots.clone();
    let (_certificate, tls) =
        Certificate::new(context, trusted.clone(), vec!["localhost".to_owned()]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let door = Door::new(Listener::RemoteApi, figures, refusals.clone());
    let api = RemoteApi { listener, door: Arc::clone(&door), tls, snapshots, trust: trusted };
    let shutdown = CancellationToken::new();
    let service = service_fn(async |_: Request<Incoming>| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
    });
    let serving = tokio::spawn(api.serve(|_| Call::Short, service, shutdown.clone()));

    let mut silent = TcpStream::connect(address).await.unwrap();
    // Another one's broken handshake is over while the silent one waits.
    let mut broken = TcpStream::connect(address).await.unwrap();
    broken.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answers = Vec::new();
    for stream in [&mut broken, &mut silent] {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(10 * WAIT, stream.read_to_end(&mut answer)).await;
        read.expect("the connection is closed in time").unwrap();
        answers.push(answer);
    }
    assert!(answers[0].starts_with(&[0x15]), "more than an alert: {:?}", answers[0]);
    assert_eq!(answers[1], b"", "an answer to nothing");
    for reason in [Reason::Stranger, Reason::WaitedTooLong] {
        assert_eq!(refusals.seen(Listener::RemoteApi, reason), 1, "{reason:?}");
    }
    shutdown.cancel();
    serving.await.unwrap();
    assert_eq!(door.open(), 0, "a place was kept");
}

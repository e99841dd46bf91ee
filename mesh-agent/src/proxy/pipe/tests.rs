//! Ends of connections, without a mesh around them.

use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

const IDLE_LIMIT: Duration = Duration::from_mins(5);

struct Carried {
    client: TcpStream,
    backend: TcpStream,
    gone: CancellationToken,
    end: JoinHandle<Result<(), PipeError>>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (dialled.expect("it connects"), accepted.expect("it is accepted").0)
}

/// A client and a backend, and what carries between them.
async fn start() -> Carried {
    let (client, client_side) = pair().await;
    let (backend, backend_side) = pair().await;
    let gone = CancellationToken::new();
    let told = gone.clone();
    let end = tokio::spawn(async move {
        let terms = Terms { idle_limit: IDLE_LIMIT, gone: &told, request: &[], reply: &[] };
        carry(client_side, backend_side, &terms).await
    });
    Carried { client, backend, gone, end }
}

async fn assert_reset(stream: &mut TcpStream, whose: &str) {
    let error = stream.read_u8().await.expect_err("no byte comes");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{whose} connection");
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_byte_ends_after_the_limit() {
    let Carried { mut client, mut backend, end, .. } = start().await;
    let began = Instant::now();
    let error = end.await.expect("no panic").expect_err("it was idle");
    assert!(matches!(error, PipeError::Idle(_)), "saw {error:?}");
    assert!(began.elapsed() >= IDLE_LIMIT, "ended after {:?}", began.elapsed());
    assert_reset(&mut client, "the client's").await;
    assert_reset(&mut backend, "the backend's").await;
}

#[tokio::test]
async fn both_sides_hear_that_the_backend_is_gone() {
    let Carried { mut client, mut backend, gone, end } = start().await;
    gone.cancel();
    assert!(matches!(end.await.expect("no panic"), Err(PipeError::Gone)));
    assert_reset(&mut client, "the client's").await;
    assert_reset(&mut backend, "the backend's").await;
}

#[tokio::test]
async fn a_cut_off_reply_is_no_whole_one() {
    let Carried { mut client, mut backend, end, .. } = start().await;
    backend.write_all(b"half").await.expect("the backend writes");
    let mut half = [0; 4];
    client.read_exact(&mut half).await.expect("what was written arrives");
    reset(&backend);
    drop(backend);
    assert!(matches!(end.await.expect("no panic"), Err(PipeError::Broken(_))));
    assert_reset(&mut client, "the client's").await;
}

#[tokio::test]
async fn what_a_slow_end_does_not_take_is_kept_and_arrives_in_order() {
    let Carried { mut client, mut backend, end, .. } = start().await;
    let sent: Vec<u8> = (0..=255_u8).cycle().step_by(7).take(32 << 20).collect();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        client.write_all(&sent).await.expect("the bytes are taken");
        client.shutdown().await.expect("our way ends");
        client.read_to_end(&mut Vec::new()).await.expect("the other way ends");
    });
    let mut received = Vec::new();
    let mut some = vec![0; 100_000];
    loop {
        let length = backend.read(&mut some).await.expect("bytes, then the end");
        if length == 0 {
            break;
        }
        received.extend_from_slice(&some[..length]);
        tokio::task::yield_now().await;
    }
    assert!(received == expected, "{} of {} bytes came, or not in order", received.len(), expected.len());
    backend.shutdown().await.expect("the reply ends");
    writing.await.expect("the client is done");
    end.await.expect("no panic").expect("a proper end");
}

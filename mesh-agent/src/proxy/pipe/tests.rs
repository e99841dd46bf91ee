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
    gone: Arc<Gone>,
    /// Room for two pipes.
    pipes: Arc<Semaphore>,
    end: JoinHandle<Result<Option<TcpStream>, PipeError>>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (dialled.expect("it connects"), accepted.expect("it is accepted").0)
}

/// A client and a backend, and what carries between them.
async fn start() -> Carried {
    start_to(Leg::Plain).await
}

/// The same with a backend that is another node.
async fn start_framed() -> Carried {
    start_to(Leg::Framed).await
}

async fn start_to(leg: fn(TcpStream) -> Leg) -> Carried {
    let (client, client_side) = pair().await;
    let (backend, backend_side) = pair().await;
    let gone = Arc::new(Gone::default());
    let pipes = Arc::new(Semaphore::new(2));
    let (told, room) = (Arc::clone(&gone), Arc::clone(&pipes));
    let end = tokio::spawn(async move {
        let context =
            PipeContext { idle_limit: IDLE_LIMIT, gone: &told, request: &[], reply: &[], pipes: Some(&room) };
        carry(Leg::Plain(client_side), leg(backend_side), &context).await
    });
    Carried { client, backend, gone, pipes, end }
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
    let Carried { mut client, mut backend, gone, end, .. } = start().await;
    client.write_all(b"!").await.expect("the byte is taken");
    assert_eq!(backend.read_u8().await.expect("it arrives"), b'!');
    gone.signal();
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

#[tokio::test]
async fn a_session_ends_and_its_connection_goes_on() {
    let Carried { mut client, mut backend, end, .. } = start_framed().await;
    client.write_all(b"hi").await.expect("the bytes are taken");
    let mut frame = [0; 6];
    backend.read_exact(&mut frame).await.expect("a frame");
    assert_eq!(frame, *b"\0\0\0\x02hi");
    backend.write_all(b"\0\0\0\x05hello\0\0\0\0").await.expect("the reply is taken");
    let mut reply = Vec::new();
    client.read_to_end(&mut reply).await.expect("the reply and its end");
    assert_eq!(reply, b"hello");
    drop(client);
    let mut last = [9; 4];
    backend.read_exact(&mut last).await.expect("a frame");
    assert_eq!(last, [0; 4], "the end of the request");
    let mut again =
        end.await.expect("no panic").expect("a proper end").expect("the connection, for the next");
    again.write_all(b"next").await.expect("it is open");
    backend.read_exact(&mut last).await.expect("what was said last");
    assert_eq!(last, *b"next");
}

#[tokio::test]
async fn a_session_that_is_cut_off_is_no_whole_one() {
    let Carried { mut client, mut backend, end, .. } = start_framed().await;
    backend.write_all(b"\0\0\0\x04half").await.expect("the backend writes");
    let mut half = [0; 4];
    client.read_exact(&mut half).await.expect("what was written arrives");
    drop(backend);
    assert!(matches!(end.await.expect("no panic"), Err(PipeError::Broken(_))));
    assert_reset(&mut client, "the client's").await;
}

#[tokio::test]
async fn a_long_session_takes_its_connection_along() {
    let Carried { mut client, mut backend, end, .. } = start_framed().await;
    let sent: Vec<u8> = (0..=250_u8).cycle().take(8 << 20).collect();
    let mut wire = b"\0\0\0\x03abc\xff\xff\xff\xff".to_vec();
    wire.extend_from_slice(&sent);
    let writing = tokio::spawn(async move {
        backend.write_all(&wire).await.expect("the bytes are taken");
        backend.shutdown().await.expect("the way ends");
        let mut asked = Vec::new();
        backend.read_to_end(&mut asked).await.expect("the connection ends");
        asked
    });
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.expect("all of it, and its end");
    assert!(received.strip_prefix(b"abc") == Some(&sent[..]), "{} bytes came, or others", received.len());
    drop(client);
    let again = end.await.expect("no panic").expect("a proper end");
    assert!(again.is_none(), "there is nothing to give back");
    assert_eq!(writing.await.expect("no panic"), [0; 4], "the request's end");
}

/// Carries bytes from the client until `holds` says so; returns how many.
async fn send_until(client: &mut TcpStream, backend: &mut TcpStream, holds: impl Fn() -> bool) -> usize {
    let (some, mut read, mut sent) = (vec![7; 1 << 20], vec![0; 1 << 20], 0);
    while !holds() {
        assert!(sent < 1 << 30, "not within {sent} bytes");
        let (written, received) = tokio::join!(client.write_all(&some), backend.read_exact(&mut read));
        written.expect("the bytes are taken");
        received.expect("the bytes come");
        assert!(read == some, "other bytes came");
        sent += some.len();
    }
    sent
}

#[tokio::test]
async fn a_pipe_that_rests_is_given_up_when_no_other_has_room() {
    let Carried { mut client, mut backend, pipes, end, .. } = start().await;
    send_until(&mut client, &mut backend, || pipes.available_permits() == 1).await;
    let _others = pipes.try_acquire().expect("room for another pipe");
    client.write_all(b"!").await.expect("the byte is taken");
    assert_eq!(backend.read_u8().await.expect("it arrives"), b'!');
    while pipes.available_permits() == 0 {
        tokio::task::yield_now().await;
    }
    client.shutdown().await.expect("the request ends");
    backend.shutdown().await.expect("the reply ends");
    end.await.expect("no panic").expect("a proper end");
}

#[tokio::test]
async fn without_room_for_a_pipe_bytes_are_copied() {
    let Carried { mut client, mut backend, pipes, end, .. } = start().await;
    let taken = pipes.try_acquire_many(2).expect("it is free");
    let started = std::cell::Cell::new(0);
    let sent = send_until(&mut client, &mut backend, || started.replace(started.get() + 1) == 32).await;
    assert_eq!(sent, 32 << 20);
    drop(taken);
    client.shutdown().await.expect("the request ends");
    backend.shutdown().await.expect("the reply ends");
    end.await.expect("no panic").expect("a proper end");
}

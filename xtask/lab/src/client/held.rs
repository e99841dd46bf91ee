//! Connections that stay open, with a request on each of them twice a second.
//!
//! Invariant: every connection that was asked for is counted, as whole or as broken.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::http::{self, Response};
use crate::netns::Netns;

/// The pause between two requests on a connection.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest head and body of an answer, bytes.
const ANSWER_MAX: usize = 64 * 1024;

/// Connections of `whoami`'s that are open until they are released.
#[derive(Debug)]
pub struct Held {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Connection>>>,
}

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The address that the client connected to.
    pub server: SocketAddrV4,
    /// The body of its first answer; empty if there was none.
    pub first: String,
    /// Since the connections were begun: when the request was sent that got no answer, and why.
    pub broken: Option<(Duration, String)>,
}

impl Held {
    /// Opens `each` connections from `client` to each of the `servers`, and returns once each has
    /// its first answer or has failed. An answer may take as long as `deadline`.
    pub fn open(client: &Netns, servers: &[SocketAddrV4], each: usize, deadline: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let (ready, opened) = mpsc::channel::<()>();
        let threads = servers
            .iter()
            .flat_map(|server| std::iter::repeat_n(*server, each))
            .map(|server| {
                let (client, stop, ready) = (client.clone(), Arc::clone(&stop), ready.clone());
                std::thread::spawn(move || {
                    client.run(|| Ok(hold(server, deadline, begun, &stop, move || drop(ready))))
                })
            })
            .collect();
        drop(ready);
        // Nothing is ever sent: the last sender is dropped when the last connection is open.
        while let Ok(()) = opened.recv() {}
        Self { stop, threads }
    }

    /// Sends a last request on each connection and closes it.
    ///
    /// # Errors
    /// The client's namespace could not be entered.
    pub fn release(self) -> Result<Vec<Connection>> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a connection's thread panicked"))?)
            .collect()
    }
}

/// Keeps one connection until `stop`; calls `opened` once it is known whether it opens.
fn hold(
    server: SocketAddrV4,
    deadline: Duration,
    begun: Instant,
    stop: &AtomicBool,
    opened: impl FnOnce(),
) -> Connection {
    let mut connection = Connection { server, first: String::new(), broken: None };
    let mut sent = begun.elapsed();
    let keep = || -> Result<()> {
        let mut stream = connect(server, deadline)?;
        connection.first = ask(&mut stream, server)?;
        opened();
        loop {
            let last = stop.load(Ordering::Relaxed);
            sent = begun.elapsed();
            ask(&mut stream, server)?;
            if last {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
    };
    if let Err(error) = keep() {
        connection.broken = Some((sent, format!("{error:#}")));
    }
    connection
}

fn connect(server: SocketAddrV4, deadline: Duration) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&server.into(), deadline)
        .with_context(|| format!("connect to {server}"))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    stream.set_write_timeout(Some(deadline)).context("set the write deadline")?;
    stream.set_read_timeout(Some(deadline)).context("set the read deadline")?;
    Ok(BufReader::new(stream))
}

/// Sends a request and returns the body of the answer; the connection stays open.
fn ask(stream: &mut BufReader<TcpStream>, server: SocketAddrV4) -> Result<String> {
    let request = format!("GET / HTTP/1.1\r\nHost: {server}\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes()).context("send a request")?;
    let answer = read_answer(stream).context("read the answer")?;
    ensure!(answer.status == 200, "status {}", answer.status);
    Ok(answer.text())
}

/// Reads one answer with a body of a known length.
fn read_answer(stream: &mut BufReader<TcpStream>) -> Result<Response> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let count = stream.read_until(b'\n', &mut bytes)?;
        ensure!(count > 0, "the server closed the connection");
        ensure!(bytes.len() < ANSWER_MAX, "a head of more than {ANSWER_MAX} bytes");
    }
    let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .context("an answer without a length")?
        .trim()
        .parse()
        .context("content-length is not a number")?;
    ensure!(length < ANSWER_MAX, "a body of {length} bytes");
    let start = bytes.len();
    bytes.resize(start + length, 0);
    stream.read_exact(&mut bytes[start..])?;
    http::parse(&bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};

    use super::*;

    /// A server that answers `count` requests of one connection and closes it.
    fn server(count: usize) -> SocketAddrV4 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let SocketAddr::V4(address) = listener.local_addr().expect("an address") else { panic!("IPv4") };
        std::thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().expect("a client").0);
            for _ in 0..count {
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    stream.read_line(&mut line).expect("a request");
                }
                stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nme").expect("sent");
            }
        });
        address
    }

    #[test]
    fn a_connection_that_is_closed_is_broken_and_one_that_is_served_is_whole() {
        let fate = |answers, stopped: bool| {
            let stop = AtomicBool::new(stopped);
            hold(server(answers), http::DEADLINE, Instant::now(), &stop, || ())
        };
        let whole = fate(2, true);
        assert_eq!((whole.first.as_str(), &whole.broken), ("me", &None));
        let broken = fate(2, false);
        assert_eq!(broken.first, "me");
        assert!(broken.broken.is_some_and(|(at, _)| at >= PAUSE), "it broke at the third request");
    }
}

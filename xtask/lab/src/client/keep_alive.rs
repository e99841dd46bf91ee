//! Requests over connections that stay open: each connection carries one request after the other at
//! a steady pace.
//!
//! A server may close a connection between two requests; the client then opens another one and asks
//! again, as every HTTP client does. What counts as failed is a request that got no whole answer
//! otherwise.
//!
//! Invariant: every request that was begun is counted, as answered or as failed.

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::http;
use crate::netns::Netns;

/// The connections of a load, and what they carry.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Connections at a time.
    pub connections: usize,
    /// The pause between two requests of a connection.
    pub pause: Duration,
    /// How long a connection is used before the client replaces it; `None`: as long as it stays
    /// open.
    pub life: Option<Duration>,
    /// The deadline of each answer.
    pub deadline: Duration,
}

/// The outcomes of the requests.
#[derive(Debug, Default)]
pub struct Kept {
    /// Requests with a whole answer of status 200.
    pub answered: u64,
    /// Connections that the server closed between two requests.
    pub closed: Vec<(Duration, String)>,
    /// Requests that failed: when they began (since the load began), and why.
    pub failures: Vec<(Duration, String)>,
}

/// A load over connections that stay open, until it is stopped.
#[derive(Debug)]
pub struct KeepAlive {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Kept>>>,
}

impl KeepAlive {
    /// Opens connections from `client` to the `servers` in turn. Moments of failures are measured
    /// from `begun` on.
    pub fn start(client: &Netns, servers: &[SocketAddrV4], pace: Pace, begun: Instant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |number: usize| {
            let (client, servers, stop) = (client.clone(), servers.to_vec(), Arc::clone(&stop));
            std::thread::spawn(move || {
                // Not all at the same moment.
                let count = u32::try_from(pace.connections.max(1)).unwrap_or(u32::MAX);
                std::thread::sleep(pace.pause * u32::try_from(number).unwrap_or(0) / count);
                client.run(|| Ok(Client { servers, next: number, pace, begun, open: None }.ask_until(&stop)))
            })
        };
        Self { threads: (0..pace.connections).map(thread).collect(), stop }
    }

    /// Stops the load and returns its outcomes.
    ///
    /// # Errors
    /// The client's namespace could not be entered.
    pub fn stop(self) -> Result<Kept> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Kept::default();
        for thread in self.threads {
            let kept = thread.join().map_err(|_| anyhow!("a client panicked"))??;
            all.answered += kept.answered;
            all.closed.extend(kept.closed);
            all.failures.extend(kept.failures);
        }
        Ok(all)
    }
}

/// One connection after the other.
struct Client {
    servers: Vec<SocketAddrV4>,
    next: usize,
    pace: Pace,
    begun: Instant,
    open: Option<(SocketAddrV4, TcpStream, Instant)>,
}

impl Client {
    fn ask_until(mut self, stop: &AtomicBool) -> Kept {
        let mut kept = Kept::default();
        while !stop.load(Ordering::Relaxed) {
            let (at, asked) = (self.begun.elapsed(), Instant::now());
            match self.ask(at, &mut kept.closed) {
                Ok(()) => kept.answered += 1,
                Err(error) => {
                    self.open = None;
                    kept.failures.push((at, format!("{error:#}")));
                }
            }
            std::thread::sleep(self.pace.pause.saturating_sub(asked.elapsed()));
        }
        kept
    }

    /// One request, on the open connection if there is one.
    fn ask(&mut self, at: Duration, closed: &mut Vec<(Duration, String)>) -> Result<()> {
        let is_old = |opened: Instant| self.pace.life.is_some_and(|life| opened.elapsed() >= life);
        let reused = self.open.take().filter(|(_, _, opened)| !is_old(*opened));
        if let Some((server, mut stream, opened)) = reused {
            if exchange(&mut stream, server, self.pace.deadline)? {
                self.open = Some((server, stream, opened));
                return Ok(());
            }
            closed.push((at, format!("{server}: closed after {:.1} s", opened.elapsed().as_secs_f64())));
        }
        let server = *self.servers.get(self.next % self.servers.len()).context("a server")?;
        self.next += 1;
        let mut stream = TcpStream::connect_timeout(&server.into(), self.pace.deadline)
            .with_context(|| format!("connect to {server}"))?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        stream.set_write_timeout(Some(self.pace.deadline)).context("set the write deadline")?;
        ensure!(
            exchange(&mut stream, server, self.pace.deadline)?,
            "{server} closed a new connection without an answer"
        );
        self.open = Some((server, stream, Instant::now()));
        Ok(())
    }
}

/// One request and its answer; false if the server had closed the connection before.
fn exchange(stream: &mut TcpStream, server: SocketAddrV4, deadline: Duration) -> Result<bool> {
    let request = format!("GET / HTTP/1.1\r\nHost: {server}\r\n\r\n");
    match stream.write_all(request.as_bytes()) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
            return Ok(false);
        }
        Err(error) => return Err(error).with_context(|| format!("ask {server}")),
    }
    let Some(answer) = http::read_one(stream, deadline).with_context(|| format!("ask {server}"))? else {
        return Ok(false);
    };
    ensure!(answer.status == 200, "{server} answered {}", answer.status);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};

    use super::*;

    #[test]
    fn a_connection_that_the_server_closed_is_replaced_and_costs_no_request() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let SocketAddr::V4(server) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        // Answers two requests of each connection, then closes it.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                for _ in 0..2 {
                    let length = stream.read(&mut [0; 1024]).unwrap();
                    assert!(length > 0, "the client closed the connection");
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap();
                }
            }
        });
        let second = Duration::from_secs(1);
        let pace = Pace { connections: 1, pause: Duration::ZERO, life: None, deadline: second };
        let mut client = Client { servers: vec![server], next: 0, pace, begun: Instant::now(), open: None };
        let mut closed = Vec::new();
        for _ in 0..5 {
            client.ask(Duration::ZERO, &mut closed).unwrap();
        }
        assert_eq!(closed.len(), 2, "closed: {closed:?}");
    }
}

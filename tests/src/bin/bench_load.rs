//! Load for `cargo xtask bench peers`: a server that answers from memory, and its clients.
//!
//! A connection's first byte selects its kind: `r` for answers (128 bytes to each request of 64),
//! `d` for an endless download, `u` for an upload. One thread serves and one thread sends, so that
//! everything that is measured between them has the same ends.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const REQUEST_LEN: usize = 64;
const ANSWER_LEN: usize = 128;
const CHUNK_LEN: usize = 128 * 1024;
/// Not measured: the time in which neighbours are resolved and windows open.
const WARM_UP: Duration = Duration::from_millis(150);
/// The deadline of a connection.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Parser)]
struct Cli {
    #[arg(value_enum)]
    role: Role,
    /// The address to listen on, or to connect to
    address: SocketAddr,
    /// How long to measure
    #[arg(long, default_value_t = 1000)]
    ms: u64,
    /// Number of connections at a time
    #[arg(long, default_value_t = 32)]
    parallel: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Serve
    Serve,
    /// Open a new connection for each request
    New,
    /// Send requests over connections that stay open
    KeepAlive,
    /// Receive bytes from the server
    Down,
    /// Send bytes to the server
    Up,
}

/// The results of one client.
#[derive(Default)]
struct Seen {
    answers: u64,
    bytes: u64,
    failed: u64,
    times_us: Vec<u64>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    runtime.block_on(async {
        if cli.role == Role::Serve {
            return serve(cli.address).await;
        }
        ask(&cli).await
    })
}

async fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    println!("ready");
    loop {
        let (stream, _) = listener.accept().await.context("accept")?;
        tokio::spawn(async move {
            // A client that disconnects is finished.
            drop(answer(stream).await);
        });
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        b'r' => {
            let mut request = [0; REQUEST_LEN];
            stream.read_exact(&mut request[1..]).await?;
            loop {
                stream.write_all(&[b'a'; ANSWER_LEN]).await?;
                stream.read_exact(&mut request).await?;
            }
        }
        b'd' => {
            let chunk = vec![0; CHUNK_LEN];
            loop {
                stream.write_all(&chunk).await?;
            }
        }
        _ => {
            read_whole_chunks(&stream)?;
            let mut chunk = vec![0; CHUNK_LEN];
            while stream.read(&mut chunk).await? > 0 {}
            Ok(())
        }
    }
}

async fn ask(cli: &Cli) -> Result<()> {
    let from = Instant::now() + WARM_UP;
    let until = from + Duration::from_millis(cli.ms);
    let clients: Vec<_> = (0..cli.parallel)
        .map(|_| {
            let (role, address) = (cli.role, cli.address);
            tokio::spawn(async move {
                let mut seen = Seen::default();
                let work = client(role, address, from, until, &mut seen);
                // Ends bulk that stalls, and waits for answers that never come.
                let is_done = timeout(until - Instant::now() + PATIENCE, work).await;
                seen.failed += u64::from(!matches!(is_done, Ok(Ok(()))));
                seen
            })
        })
        .collect();
    let mut sum = Seen::default();
    for client in clients {
        let seen = client.await.context("a client panicked")?;
        sum.answers += seen.answers;
        sum.bytes += seen.bytes;
        sum.failed += seen.failed;
        sum.times_us.extend(seen.times_us);
    }
    sum.times_us.sort_unstable();
    let p99_us = sum.times_us.get(sum.times_us.len() * 99 / 100).copied().unwrap_or_default();
    println!(
        "{}",
        json!({"answers": sum.answers, "bytes": sum.bytes, "failed": sum.failed, "p99_us": p99_us, "ms": cli.ms})
    );
    Ok(())
}

async fn client(
    role: Role,
    address: SocketAddr,
    from: Instant,
    until: Instant,
    seen: &mut Seen,
) -> std::io::Result<()> {
    match role {
        Role::New => {
            while Instant::now() < until {
                let begun = Instant::now();
                let outcome = timeout(PATIENCE, async {
                    let mut stream = connect(address).await?;
                    request(&mut stream).await
                });
                let is_answered = matches!(outcome.await, Ok(Ok(())));
                note(seen, is_answered, begun, from, until);
            }
            Ok(())
        }
        Role::KeepAlive => {
            let mut stream = connect(address).await?;
            while Instant::now() < until {
                let begun = Instant::now();
                request(&mut stream).await?;
                note(seen, true, begun, from, until);
            }
            Ok(())
        }
        Role::Down => {
            let mut stream = connect(address).await?;
            stream.write_all(b"d").await?;
            read_whole_chunks(&stream)?;
            let mut chunk = vec![0; CHUNK_LEN];
            while Instant::now() < until {
                let length = stream.read(&mut chunk).await?;
                seen.bytes += if Instant::now() > from { length as u64 } else { 0 };
            }
            Ok(())
        }
        Role::Up | Role::Serve => {
            let mut stream = connect(address).await?;
            let chunk = vec![b'u'; CHUNK_LEN];
            while Instant::now() < until {
                let length = stream.write(&chunk).await?;
                seen.bytes += if Instant::now() > from { length as u64 } else { 0 };
            }
            Ok(())
        }
    }
}

/// Makes the kernel wake the reader once a whole chunk has come (`SO_RCVLOWAT`, socket(7)) or the
/// stream ends, and not for each packet: whether the reader sleeps between two packets is chance,
/// and makes a larger difference than what is measured.
fn read_whole_chunks(stream: &TcpStream) -> std::io::Result<()> {
    let least = libc::c_int::try_from(CHUNK_LEN).map_err(std::io::Error::other)?;
    let size = libc::socklen_t::try_from(size_of_val(&least)).map_err(std::io::Error::other)?;
    // SAFETY: the descriptor is open, and the option's value lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const least).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn request(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(&[b'r'; REQUEST_LEN]).await?;
    stream.read_exact(&mut [0; ANSWER_LEN]).await?;
    Ok(())
}

fn note(seen: &mut Seen, is_answered: bool, begun: Instant, from: Instant, until: Instant) {
    let now = Instant::now();
    if begun < from || (now > until && is_answered) {
        return;
    }
    if is_answered {
        seen.answers += 1;
        seen.times_us.push(u64::try_from((now - begun).as_micros()).unwrap_or(u64::MAX));
    } else {
        seen.failed += 1;
    }
}

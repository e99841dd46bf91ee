//! A small test server that names itself and its client: the lab's `whoami` image.
//!
//! HTTP (`/slow?ms=`, `/bytes?n=`, `/burn?ms=`, any other path describes the request; accepts a
//! PROXY header, version 2), TCP echo, UDP echo. One thread per connection with a small stack:
//! thousands of idle connections cost little, and no runtime distorts what is measured. It is
//! process 1 of its container, so it handles SIGTERM and SIGINT itself, by exiting at once.
//!
//! With `--reach` it is a client instead, whose first act is to try addresses.

#[path = "../whoami/echo.rs"]
mod echo;
#[path = "../whoami/http.rs"]
mod http;
#[path = "../whoami/identity.rs"]
mod identity;
#[path = "../whoami/proxied.rs"]
mod proxied;
#[path = "../whoami/reach.rs"]
mod reach;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Parser;

use identity::Identity;

/// Enough for a request's head and an answer; the default would reserve 2 MiB for each connection.
const STACK_BYTES: usize = 128 * 1024;

/// A test server that names itself and its client
#[derive(Debug, Parser)]
struct Options {
    /// Port of the HTTP server
    #[arg(long, env = "WHOAMI_HTTP", default_value_t = 80)]
    http: u16,
    /// Port of the TCP echo
    #[arg(long, env = "WHOAMI_TCP_ECHO", default_value_t = 7)]
    tcp_echo: u16,
    /// Port of the UDP echo, whose answers begin with a line with the client's address
    #[arg(long, env = "WHOAMI_UDP_ECHO", default_value_t = 9)]
    udp_echo: u16,
    /// Name of the task; the host name if unset
    #[arg(long, env = "WHOAMI_TASK")]
    task: Option<String>,
    /// Name of the node
    #[arg(long, env = "WHOAMI_NODE")]
    node: Option<String>,
    /// Try the servers at these addresses and exit, with 1 if any of them answers
    #[arg(long, value_delimiter = ',')]
    reach: Vec<Ipv4Addr>,
    /// With --reach: exit with 1 unless all of them answer
    #[arg(long, requires = "reach")]
    reach_all: bool,
}

fn main() -> Result<()> {
    end_on_signal()?;
    let options = Options::parse();
    if !options.reach.is_empty() {
        return reach(&options);
    }
    let identity = Arc::new(Identity::new(options.task, options.node));
    let http = listen(options.http)?;
    let tcp_echo = listen(options.tcp_echo)?;
    let udp_echo = bind_udp(options.udp_echo)?;
    println!(
        "task={} http={} tcp-echo={} udp-echo={}",
        identity.task, options.http, options.tcp_echo, options.udp_echo
    );

    let about = Arc::clone(&identity);
    let threads = [
        thread::spawn(move || accept(&http, &Arc::new(move |stream| http::serve(stream, &about)))),
        thread::spawn(move || accept(&tcp_echo, &Arc::new(echo::serve_tcp))),
        thread::spawn(move || echo::serve_udp(&udp_echo, &identity)),
    ];
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a server thread panicked"))?;
    }
    Ok(())
}

/// Tries the addresses; an error if another number of them answers than should.
fn reach(options: &Options) -> Result<()> {
    // A server that should answer may still be on its way.
    let tried_for = Duration::from_millis(if options.reach_all { 5_000 } else { 250 });
    let (answered, tried) = reach::all(&options.reach, options.http, options.udp_echo, tried_for);
    let expected = if options.reach_all { tried } else { 0 };
    if answered.len() == expected {
        return Ok(());
    }
    Err(anyhow!("expected {expected} answers of {tried}, saw {}: {}", answered.len(), answered.join("; ")))
}

/// Serves each connection on a thread of its own. An error of a connection ends that connection
/// only.
fn accept<F>(listener: &TcpListener, serve: &Arc<F>)
where
    F: Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
{
    loop {
        let accepted = listener.accept().and_then(|(stream, _)| {
            let serve = Arc::clone(serve);
            // A connection that breaks off needs no report.
            thread::Builder::new().stack_size(STACK_BYTES).spawn(move || serve(stream).ok())
        });
        if let Err(error) = accepted {
            eprintln!("cannot take a connection: {error}");
            // Out of descriptors or threads: wait until some connections have ended.
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// One socket for both families if the kernel has IPv6.
fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .with_context(|| format!("listen on TCP port {port}"))
}

fn bind_udp(port: u16) -> Result<UdpSocket> {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))
        .with_context(|| format!("listen on UDP port {port}"))
}

/// Installs signal handlers: the kernel ignores signals to process 1 that have none.
fn end_on_signal() -> Result<()> {
    extern "C" fn end(_signal: libc::c_int) {
        // SAFETY: _exit may be called from a signal handler; there is nothing to clean up.
        unsafe { libc::_exit(0) }
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler only calls _exit, which is safe to call from any handler.
        let before = unsafe { libc::signal(signal, end as *const () as libc::sighandler_t) };
        if before == libc::SIG_ERR {
            return Err(io::Error::last_os_error()).context("handle signals");
        }
    }
    Ok(())
}

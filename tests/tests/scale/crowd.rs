//! Tens of thousands of connections of which this process holds both ends: the client's in the client's namespace, the
//! server's in the task's.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::net::{AddressFamily, SocketType, bind, connect, listen, socket, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use xtask::lab::netns::Netns;

const WORD: [u8; 4] = *b"word";
const BACKLOG: i32 = 4096;
/// Threads that open connections, for each client address.
const OPENERS: usize = 2;

/// The connections.
pub(crate) struct Crowd {
    clients: Vec<TcpStream>,
    servers: Vec<TcpStream>,
}

impl Crowd {
    /// Opens `each` connections from every one of `addresses` to `server`; they are accepted on `port` in the network
    /// namespace of process `pid`.
    ///
    /// # Errors
    /// When one can't be opened or accepted.
    pub(crate) fn gather(
        client: &Netns,
        addresses: &[Ipv4Addr],
        each: usize,
        server: SocketAddrV4,
        pid: &str,
        port: u16,
    ) -> Result<Self> {
        let total = addresses.len() * each;
        allow_descriptors(total as u64 * 2 + 1000)?;
        let listener = listen_inside(pid, port)?;
        std::thread::scope(|scope| {
            let accepting = scope.spawn(|| accept(&listener, total));
            let openers: Vec<_> = addresses
                .iter()
                .flat_map(|address| (0..OPENERS).map(move |_| *address))
                .map(|address| scope.spawn(move || client.run(|| open(address, server, each / OPENERS))))
                .collect();
            let mut clients = Vec::with_capacity(total);
            for opener in openers {
                clients.extend(opener.join().map_err(|_| anyhow!("an opener panicked"))??);
            }
            let servers = accepting.join().map_err(|_| anyhow!("the acceptor panicked"))??;
            Ok(Self { clients, servers })
        })
    }

    /// How many connections there are.
    pub(crate) fn len(&self) -> usize {
        self.clients.len().min(self.servers.len())
    }

    /// Lets a word go through every connection, from the client and back.
    ///
    /// # Errors
    /// When one has lost it after `deadline`.
    pub(crate) fn speak(&mut self, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline;
        for stream in &mut self.clients {
            stream.write_all(&WORD).context("a client's word")?;
        }
        for stream in &mut self.servers {
            hear(stream, until).context("at the server")?;
            stream.write_all(&WORD).context("the server's word")?;
        }
        for stream in &mut self.clients {
            hear(stream, until).context("at the client")?;
        }
        Ok(())
    }
}

fn hear(stream: &mut TcpStream, until: Instant) -> Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    ensure!(!left.is_zero(), "the time is over");
    stream.set_read_timeout(Some(left))?;
    let mut word = [0; WORD.len()];
    stream.read_exact(&mut word)?;
    ensure!(word == WORD, "heard {word:?}");
    Ok(())
}

fn accept(listener: &TcpListener, total: usize) -> Result<Vec<TcpStream>> {
    (0..total)
        .map(|number| Ok(listener.accept().with_context(|| format!("accept connection {number}"))?.0))
        .collect()
}

fn open(address: Ipv4Addr, server: SocketAddrV4, count: usize) -> Result<Vec<TcpStream>> {
    (0..count)
        .map(|number| {
            let fd = socket(AddressFamily::INET, SocketType::STREAM, None).context("make a socket")?;
            bind(&fd, &SocketAddrV4::new(address, 0)).with_context(|| format!("bind {address}"))?;
            connect(&fd, &server).with_context(|| format!("connection {number} from {address}"))?;
            Ok(TcpStream::from(fd))
        })
        .collect()
}

fn listen_inside(pid: &str, port: u16) -> Result<TcpListener> {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).context("open the task's namespace")?;
    let inside = || -> Result<TcpListener> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context("enter the task's namespace")?;
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None).context("make a socket")?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        bind(&fd, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)).context("bind")?;
        listen(&fd, BACKLOG).context("listen")?;
        Ok(TcpListener::from(fd))
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
        .map_err(|_| anyhow!("the listener's thread panicked"))?
}

fn allow_descriptors(count: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        let maximum = limit.maximum.map(|maximum| maximum.max(count));
        setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum })
            .with_context(|| format!("allow {count} descriptors (needs root)"))?;
    }
    Ok(())
}

//! Processes that each hold both ends of thousands of connections: the client's in the client's
//! namespace, the server's in the task's. Several of them hold more connections than the file
//! descriptors of one process allow.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use mesh_lab::netns::Netns;
use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const WORD: [u8; 4] = *b"word";
const BACKLOG: i32 = 4096;
const DEADLINE: Duration = Duration::from_mins(1);
/// The time without a new connection after which no more are expected.
const QUIET: Duration = Duration::from_secs(20);
/// Printed by a process when all its connections have carried a word both ways.
const GATHERED: &str = "gathered";
/// The variable with a process's settings.
const PLACE_VAR: &str = "MESH_CROWD";

/// The settings of a process.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The client's namespace.
    pub(crate) client: String,
    /// The id of a process of the task.
    pub(crate) task: String,
    /// The address that the clients connect to.
    pub(crate) server: SocketAddrV4,
    /// The port in the task.
    pub(crate) port: u16,
    /// The number of connections.
    pub(crate) count: usize,
}

impl Place {
    /// The settings in the environment.
    ///
    /// # Errors
    /// They are missing or malformed.
    pub(crate) fn told() -> Result<Self> {
        let told = std::env::var(PLACE_VAR).with_context(|| format!("{PLACE_VAR} is not set"))?;
        let words: Vec<&str> = told.split(' ').collect();
        let [client, task, server, port, count] = words[..] else {
            return Err(anyhow!("{PLACE_VAR}={told}: expected five words"));
        };
        Ok(Self {
            client: client.to_owned(),
            task: task.to_owned(),
            server: server.parse()?,
            port: port.parse()?,
            count: count.parse()?,
        })
    }

    fn tell(&self) -> String {
        format!("{} {} {} {} {}", self.client, self.task, self.server, self.port, self.count)
    }
}

/// A process that holds connections.
pub(crate) struct Crowd {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Crowd {
    /// Starts such a process.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn gather(place: &Place) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--ignored", "--exact", "crowd", "--nocapture"])
            .env(PLACE_VAR, place.tell())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a process of the crowd")?;
        let said = BufReader::new(process.stdout.take().context("no stdout")?);
        Ok(Self { process, said })
    }

    /// Waits until its connections are established.
    ///
    /// # Errors
    /// It ends earlier.
    pub(crate) fn wait_gathered(&mut self) -> Result<()> {
        let mut line = String::new();
        while self.said.read_line(&mut line)? > 0 {
            if line.contains(GATHERED) {
                return Ok(());
            }
            line.clear();
        }
        Err(anyhow!("a process of the crowd ended: {}", self.process.wait()?))
    }

    /// Makes it use every connection once more, and end.
    ///
    /// # Errors
    /// A connection was lost.
    pub(crate) fn speak_again(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let mut rest = String::new();
        self.said.read_to_string(&mut rest)?;
        let status = self.process.wait()?;
        ensure!(status.success(), "a process of the crowd lost a connection: {rest}");
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // A process that has already ended can't be killed, and needn't be.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The work of such a process: opens the connections, says so, waits for the end of its input, and
/// uses the connections once more.
///
/// # Errors
/// A connection can't be opened, or is lost.
pub(crate) fn hold(place: &Place) -> Result<()> {
    let listener = listen_inside(&place.task, place.port)?;
    let (mut clients, mut servers) = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| accept(&listener, place.count));
        let clients = Netns::named(place.client.clone()).run(|| open(place.server, place.count))?;
        let servers = accepting.join().map_err(|_| anyhow!("the acceptor panicked"))??;
        Ok::<_, anyhow::Error>((clients, servers))
    })?;
    let lost = lost(&clients, &servers)?;
    ensure!(
        lost.is_empty(),
        "{} of {} connections never reached the server; the clients' ports: {lost:?}",
        lost.len(),
        place.count
    );
    speak(&mut clients, &mut servers).context("the first word")?;
    println!("{GATHERED}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    speak(&mut clients, &mut servers).context("a word after a while")
}

/// Sends a word through every connection, from the client and back.
fn speak(clients: &mut [TcpStream], servers: &mut [TcpStream]) -> Result<()> {
    let until = Instant::now() + DEADLINE;
    for stream in clients.iter_mut() {
        stream.write_all(&WORD).context("a client's word")?;
    }
    for stream in servers.iter_mut() {
        hear(stream, until).context("at the server")?;
        stream.write_all(&WORD).context("the server's word")?;
    }
    for stream in clients {
        hear(stream, until).context("at the client")?;
    }
    Ok(())
}

fn hear(stream: &mut TcpStream, until: Instant) -> Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    ensure!(!left.is_zero(), "the deadline is over");
    stream.set_read_timeout(Some(left))?;
    let mut word = [0; WORD.len()];
    stream.read_exact(&mut word)?;
    ensure!(word == WORD, "heard {word:?}");
    Ok(())
}

/// The clients' ports of connections that are established for the client only: the last packet of
/// the handshake was lost, and so was every repetition of the server's answer.
fn lost(clients: &[TcpStream], servers: &[TcpStream]) -> Result<BTreeSet<u16>> {
    let ports = |streams: &[TcpStream], end: fn(&TcpStream) -> std::io::Result<SocketAddr>| {
        streams.iter().map(|stream| Ok(end(stream)?.port())).collect::<Result<BTreeSet<u16>>>()
    };
    Ok(&ports(clients, TcpStream::local_addr)? - &ports(servers, TcpStream::peer_addr)?)
}

/// Accepts this many connections, or fewer if none arrives within the listener's deadline.
fn accept(listener: &TcpListener, count: usize) -> Result<Vec<TcpStream>> {
    let mut accepted = Vec::with_capacity(count);
    while accepted.len() < count {
        match listener.accept() {
            Ok((stream, _)) => accepted.push(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("accept a connection"),
        }
    }
    Ok(accepted)
}

fn open(server: SocketAddrV4, count: usize) -> Result<Vec<TcpStream>> {
    let one = |number| TcpStream::connect(server).with_context(|| format!("connection {number} to {server}"));
    (0..count).map(one).collect()
}

fn listen_inside(task: &str, port: u16) -> Result<TcpListener> {
    let namespace = File::open(format!("/proc/{task}/ns/net")).context("open the task's namespace")?;
    let inside = || -> Result<TcpListener> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context("enter the task's namespace")?;
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None).context("make a socket")?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        // accept(2) heeds it, too (socket(7)).
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(QUIET))?;
        bind(&fd, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)).context("bind")?;
        listen(&fd, BACKLOG).context("listen")?;
        Ok(TcpListener::from(fd))
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
        .map_err(|_| anyhow!("the listener's thread panicked"))?
}

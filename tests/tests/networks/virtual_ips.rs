//! Virtual IPs: the tasks that answer, and how fast connections are refused if there is none.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::cluster::eventually;
use mesh_tests::PATIENCE;

use crate::shop::Shop;
use crate::task::Way;

/// The longest time in which a virtual IP without a task refuses. The best of several tries counts,
/// as the machine may be busy.
const REFUSED_WITHIN: Duration = Duration::from_millis(5);
const TRIES: usize = 10;
/// The number of requests that reaches each of three tasks at least once by round robin.
const REQUESTS: usize = 12;
/// An arbitrary port: virtual IPs serve all ports.
const ANY_PORT: u16 = 4711;

/// A task of `echo` connects to `echo`: all of its tasks answer, the client itself too. The others
/// see the client task's own address; it sees itself as the virtual IP. UDP and ping work as well.
pub(crate) fn spread(shop: &Shop) -> Result<()> {
    let virtual_ip = shop.virtual_ip("echo", "back")?;
    let echoes = shop.tasks("echo")?;
    let expected: BTreeSet<&str> = echoes.values().map(|echo| echo.hostname.as_str()).collect();
    for asker in echoes.values() {
        let own = asker.address("shop_back")?;
        let mut seen = BTreeSet::new();
        for _ in 0..REQUESTS {
            let (task, client) = asker.whoami(virtual_ip)?;
            let expected = if task == asker.hostname { virtual_ip } else { own };
            ensure!(
                client.starts_with(&format!("{expected}:")),
                "{task} sees a client: expected {expected}, saw {client}"
            );
            seen.insert(task);
        }
        let seen: BTreeSet<&str> = seen.iter().map(String::as_str).collect();
        ensure!(seen == expected, "{} asked {virtual_ip}: expected {expected:?}, saw {seen:?}", asker.name);
        for way in [Way::Udp, Way::Icmp] {
            ensure!(
                asker.reaches(way, virtual_ip)?,
                "{virtual_ip} doesn't answer {} over {way:?}",
                asker.name
            );
        }
    }
    Ok(())
}

/// `idle` has a virtual IP and no task, so TCP and UDP are refused at once, until a task comes.
pub(crate) fn refuse_at_once(shop: &Shop) -> Result<()> {
    let virtual_ip = shop.virtual_ip("idle", "back")?;
    let asker = shop.tasks("echo")?.pop_first().context("no echo")?.1;
    crate::names::finds(&asker, "idle", &[virtual_ip])?;
    let fastest = asker.inside(|| {
        let tries: Result<Vec<Duration>> = (0..TRIES).map(|_| refused(virtual_ip)).collect();
        tries?.into_iter().min().context("no try")
    })?;
    println!("a virtual IP without a task refused after {fastest:?}");
    ensure!(fastest <= REFUSED_WITHIN, "refused after {fastest:?}, expected {REFUSED_WITHIN:?} at most");
    asker.inside(|| datagram_refused(virtual_ip))?;

    shop.docker.run(&["service", "scale", "--detach", "shop_idle=1"])?;
    shop.cluster.wait_running("shop_idle", 1, PATIENCE)?;
    let running = Instant::now();
    eventually("a task behind the virtual IP", PATIENCE, || asker.whoami(virtual_ip).map(drop))?;
    println!("served {:?} after docker showed the task as running", running.elapsed());
    shop.docker.run(&["service", "scale", "--detach", "shop_idle=0"])?;
    eventually("nobody behind the virtual IP again", PATIENCE, || {
        asker.inside(|| refused(virtual_ip)).map(drop)
    })
}

/// The time that a refusal takes; any other result is an error.
fn refused(address: Ipv4Addr) -> Result<Duration> {
    let begun = Instant::now();
    let server = SocketAddrV4::new(address, ANY_PORT);
    match TcpStream::connect_timeout(&server.into(), Duration::from_secs(2)) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(begun.elapsed()),
        Err(error) => bail!("{server}: expected connection refused, saw {error} after {:?}", begun.elapsed()),
        Ok(_) => bail!("{server}: expected connection refused, it was accepted"),
    }
}

fn datagram_refused(address: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("make a socket")?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).context("set the deadline")?;
    socket.connect(SocketAddrV4::new(address, ANY_PORT))?;
    socket.send(b"anyone?")?;
    match socket.recv(&mut [0; 64]) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => bail!("a datagram to {address}: expected port unreachable, saw {error}"),
        Ok(length) => bail!("a datagram to {address}: expected port unreachable, saw {length} bytes"),
    }
}

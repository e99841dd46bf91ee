//! Tests of ports that mesh itself or the host uses: mesh refuses its own by name, and leaves the
//! host's to their listeners, before and after a restart of the agent.
#![cfg(feature = "cluster")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::Part;
use mesh_lab::client::load::ask;
use mesh_lab::cluster::eventually;
use mesh_lab::component::Component;
use mesh_lab::netns::Netns;
use mesh_tests::{PATIENCE, Service, cluster, lab};

/// The greeting of the host's own server.
const GREETING: &str = "SSH-2.0-host\r\n";

#[test]
fn ports_of_mesh_itself_are_refused_by_name() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    for port in ["2377", "2379", "2380", "4799/udp", "4800", "9464", "9465"] {
        let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let published = format!("{number}:80/{protocol}");
        let arguments = ["service", "create", "--detach", "--name", "hog", "-p", &published, "whoami"];
        let Err(refusal) = docker.run(&arguments) else {
            docker.run(&["service", "rm", "hog"])?;
            bail!("{port} was given to a service");
        };
        let expected = format!("port '{number}/{protocol}' is needed by mesh itself");
        ensure!(format!("{refusal:#}").contains(&expected), "expected {expected:?}, saw {refusal:#}");
    }
    Ok(())
}

#[test]
fn a_port_of_the_host_stays_the_hosts_before_and_after_a_restart_of_its_agent() -> Result<()> {
    let cluster = cluster()?;
    let holder = cluster.record.nodes.last().context("no node")?;
    let other = cluster.record.nodes.first().context("no node")?;
    let host = HostServer::start(&Netns::named(&holder.netns), 2022)?;
    let service = Service::create(&cluster, "shadow", &["--replicas", "2", "-p", "2022:80", "nginx"])?;
    let (at_holder, at_other) = (SocketAddrV4::new(holder.ip, 2022), SocketAddrV4::new(other.ip, 2022));
    let hosts = |what: &str| {
        eventually(what, PATIENCE, || {
            let said = cluster.client().run(|| greeting(at_holder))?;
            ensure!(said == GREETING, "{at_holder} said {said:?}");
            Ok(())
        })
    };
    let services =
        |server| eventually("the service", PATIENCE, || cluster.client().run(|| ask(server, "/").map(drop)));
    hosts("the host's server to answer")?;
    services(at_other)?;
    let expected = format!("port 2022/tcp on {}: in use by another process", holder.name);
    eventually("the clash on the tasks", PATIENCE, || {
        let rows = cluster.docker()?.tasks(service.name())?;
        ensure!(rows.iter().any(|row| row.error.contains(&expected)), "tasks: {rows:#?}");
        Ok(())
    })?;

    restart_agent(&cluster, &holder.name, || Ok(()))?;
    for _ in 0..20 {
        let said = cluster.client().run(|| greeting(at_holder))?;
        ensure!(said == GREETING, "after the restart {at_holder} said {said:?}");
    }
    host.stop()?;
    services(at_holder)?;

    // While the agent is down, its programs still serve the port: a server that starts then gets no
    // connections until the next agent starts.
    let mut later = None;
    restart_agent(&cluster, &holder.name, || {
        later = Some(HostServer::start(&Netns::named(&holder.netns), 2022)?);
        Ok(())
    })?;
    hosts("the later server to answer")?;
    later.context("it was started")?.stop()?;
    services(at_holder)
}

fn restart_agent(
    cluster: &mesh_lab::cluster::Cluster,
    node: &str,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let agent = lab::PowerCut::of_part(cluster, node, Part::One(Component::Agent))?;
    meanwhile()?;
    agent.restore(cluster)
}

fn greeting(server: SocketAddrV4) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server.into(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut said = vec![0; GREETING.len()];
    stream.read_exact(&mut said).context("read the greeting")?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// A server on the host, which greets every client.
struct HostServer {
    stopping: Arc<AtomicBool>,
    serving: JoinHandle<()>,
    address: SocketAddrV4,
    netns: Netns,
}

impl HostServer {
    fn start(netns: &Netns, port: u16) -> Result<Self> {
        let listener =
            netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listen on the host"))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let serving = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A client that disconnects before the greeting is no error.
                let _greeted = stream.and_then(|mut stream| stream.write_all(GREETING.as_bytes()));
            }
        });
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        Ok(Self { stopping, serving, address, netns: netns.clone() })
    }

    fn stop(self) -> Result<()> {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the server from its wait for the next client.
        self.netns
            .run(|| TcpStream::connect(self.address).map(drop).context("connect to the host's server"))?;
        self.serving.join().map_err(|_| anyhow::anyhow!("the host's server panicked"))
    }
}

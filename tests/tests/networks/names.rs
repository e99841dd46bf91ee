//! Names that a task resolves, and names that it must not resolve.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::Part;
use mesh_lab::cluster::{Cluster, Docker};
use mesh_lab::component::Component;
use mesh_lab::record::NodeRecord;
use mesh_tests::lab::PowerCut;
use mesh_tests::{PATIENCE, Service, resolver};

use crate::dns::{self, NOERROR, NXDOMAIN, Question, Transport};
use crate::shop::{self, Network, Shop};
use crate::task::{self, Task, Way};

const BACK: &str = "shop_back";
/// The longest time without answers when an agent is killed and started again: resolvers wait for
/// about 5 s. The agent answers before it does anything slow, so a busy machine keeps it too.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// Each name of the database and of the tasks beside it resolves, for a task on the database's node
/// and for one on another node.
pub(crate) fn are_swarms(shop: &Shop) -> Result<()> {
    let database = shop.task("db")?;
    let virtual_ip = shop.virtual_ip("db", "back")?;
    let address = database.address(BACK)?;
    ensure!(virtual_ip != address, "the virtual IP of db is its task's address, {address}");
    for asker in shop.near_and_far("db")? {
        for name in ["db", "shop_db", "DB", "Shop_Db"] {
            finds(&asker, name, &[virtual_ip])?;
            finds(&asker, &format!("{name}.{BACK}"), &[virtual_ip])?;
        }
        let by_task = [database.name.as_str(), database.short_id(), database.hostname.as_str()];
        for name in ["tasks.db", "tasks.shop_db"].into_iter().chain(by_task) {
            finds(&asker, name, &[address])?;
            finds(&asker, &format!("{name}.{BACK}"), &[address])?;
        }
        let every: Vec<Ipv4Addr> =
            shop.tasks("echo")?.values().map(|echo| echo.address(BACK)).collect::<Result<_>>()?;
        finds(&asker, "tasks.echo", &every)?;
        has_no_ipv6(&asker, "db")?;
        has_no_ipv6(&asker, "tasks.db")?;
        is_called(&asker, address, &format!("{}.{BACK}", database.name))?;
        is_called(&asker, virtual_ip, &format!("shop_db.{BACK}"))?;
        over_tcp(&asker, "db", virtual_ip)?;
        finds_nothing(&asker, "nobody")?;
        for name in ["shop_db.1", "tasks.nobody", "example.org"] {
            is_foreign(&asker, name)?;
        }
    }
    Ok(())
}

/// A task resolves names of its own networks only. Other names are forwarded to the host's resolver
/// if they could exist outside of the cluster.
pub(crate) fn end_with_their_network(shop: &Shop) -> Result<()> {
    let web = shop.task("web")?;
    let database = shop.task("db")?;
    finds(&web, "php", &[shop.virtual_ip("php", "front")?])?;
    let mut strangers = shop.tasks("stranger")?;
    let stranger = strangers.remove(&database.node).context("no stranger beside the database")?;
    for asker in [&web, &stranger] {
        for name in ["db", "shop_db", "cache", database.short_id()] {
            finds_nothing(asker, name)?;
        }
        for name in [&format!("db.{BACK}"), "tasks.db", &database.name] {
            is_foreign(asker, name)?;
        }
        for address in [database.address(BACK)?, shop.virtual_ip("db", "back")?] {
            let reply = asker.ask(Question::Ptr(address))?;
            ensure!(reply.names.is_empty(), "{} knows {address}: {reply:?}", asker.name);
        }
    }
    // A task on both networks resolves names of each.
    let php = shop.task("php")?;
    finds(&php, "db", &[shop.virtual_ip("db", "back")?])?;
    finds(&php, "web", &[shop.virtual_ip("web", "front")?])
}

/// `getent hosts` in the PHP container uses the C library's resolver.
pub(crate) fn by_the_c_library(shop: &Shop) -> Result<()> {
    let php = shop.task("php")?;
    let engine = Docker::towards(&shop.cluster.node(&php.node)?.mesh_host);
    for name in ["db", "cache"] {
        let expected = shop.virtual_ip(name, "back")?.to_string();
        let said = engine.run(&["exec", &php.container, "getent", "hosts", name])?;
        let first = said.split_whitespace().next();
        ensure!(first == Some(&expected), "getent hosts {name}: expected {expected}, saw {said:?}");
    }
    engine.refused(&["exec", &php.container, "getent", "hosts", "nobody"]).map(drop)
}

/// Kills the agent under a task and starts it again: the virtual IP answers meanwhile, and a
/// question asked meanwhile is answered in time. Then kills the whole control plane.
pub(crate) fn outlive_the_agent(cluster: &Cluster) -> Result<()> {
    let network = Network::create(cluster, "lasting", &[])?;
    let create = |name, node: &str| {
        let here = format!("--constraint=node.hostname=={node}");
        let words = ["--detach", &here, "--network", network.name(), "whoami"];
        Service::create(cluster, name, &words)
    };
    let (server, client) = (create("lasting-server", "node-3")?, create("lasting-client", "node-2")?);
    for service in [&server, &client] {
        cluster.wait_running(service.name(), 1, PATIENCE)?;
    }
    let virtual_ip = shop::virtual_ip(&cluster.docker()?, server.name(), network.name())?;
    let asker = task::of_service(cluster, client.name())?.remove("node-2").context("no client on node-2")?;
    finds(&asker, server.name(), &[virtual_ip])?;

    let cut = PowerCut::of_part(cluster, "node-2", Part::One(Component::Agent))?;
    ensure!(asker.reaches(Way::Tcp, virtual_ip)?, "{virtual_ip} doesn't answer without the agent");
    let begun = Instant::now();
    let silence = std::thread::scope(|scope| {
        let asking = scope.spawn(|| asker.inside(|| until_answered(asker.resolver, server.name(), begun)));
        let restored = cut.restore(cluster);
        let silence = asking.join().unwrap_or_else(|_| bail!("the asking thread panicked"));
        restored.and(silence)
    })?;
    println!("names were silent for {silence:?}");
    ensure!(silence <= SILENCE_MAX, "expected an answer within {SILENCE_MAX:?}, it took {silence:?}");
    finds(&asker, server.name(), &[virtual_ip])?;
    outlive_the_control_plane(cluster, &asker, server.name(), virtual_ip)
}

/// Kills every manager's mesh-control and etcd: the name resolves as before, and the virtual IP
/// answers over each protocol.
fn outlive_the_control_plane(
    cluster: &Cluster,
    asker: &Task,
    name: &str,
    virtual_ip: Ipv4Addr,
) -> Result<()> {
    let managers = || cluster.record.nodes.iter().filter(|node| node.manager);
    let cut = |component| {
        let cut = |node: &NodeRecord| PowerCut::of_part(cluster, &node.name, Part::One(component));
        managers().map(cut).collect::<Result<Vec<_>>>()
    };
    let controls = cut(Component::Control)?;
    let stores = cut(Component::Etcd)?;
    finds(asker, name, &[virtual_ip])?;
    for way in Way::ALL {
        ensure!(
            asker.reaches(way, virtual_ip)?,
            "without a control plane, {virtual_ip} doesn't answer over {way:?}"
        );
    }
    // mesh-control starts only where its etcd answers.
    drop(stores);
    controls.into_iter().try_for_each(|control| control.restore(cluster))
}

fn until_answered(resolver: Ipv4Addr, name: &str, begun: Instant) -> Result<Duration> {
    let patience = Duration::from_millis(500);
    loop {
        match dns::ask(resolver, Question::A(name), Transport::Udp, patience) {
            Ok(reply) if reply.code == NOERROR && !reply.addresses.is_empty() => return Ok(begun.elapsed()),
            _ if begun.elapsed() > PATIENCE => bail!("{name} unanswered for {PATIENCE:?}"),
            Ok(reply) => bail!("expected an address or silence, saw {reply:?}"),
            Err(_) => {}
        }
    }
}

/// `name` resolves to these addresses, in any order.
pub(crate) fn finds(asker: &Task, name: &str, expected: &[Ipv4Addr]) -> Result<()> {
    let reply = asker.ask(Question::A(name))?;
    let seen: BTreeSet<_> = reply.addresses.iter().copied().collect();
    let is_right = reply.code == NOERROR
        && seen == expected.iter().copied().collect()
        && reply.addresses.len() == expected.len();
    ensure!(is_right, "{name} at {} on {}: expected {expected:?}, saw {reply:?}", asker.name, asker.node);
    Ok(())
}

fn finds_nothing(asker: &Task, name: &str) -> Result<()> {
    let reply = asker.ask(Question::A(name))?;
    let is_right = reply.code == NXDOMAIN && reply.records == 0;
    ensure!(is_right, "{name} at {} on {}: expected NXDOMAIN, saw {reply:?}", asker.name, asker.node);
    Ok(())
}

/// The name could exist outside of the cluster, so the host's resolver answers it.
fn is_foreign(asker: &Task, name: &str) -> Result<()> {
    let reply = asker.ask(Question::A(name))?;
    ensure!(
        reply.addresses == [resolver::ANSWER],
        "{name} at {} on {}: expected the host's resolver's {}, saw {reply:?}",
        asker.name,
        asker.node,
        resolver::ANSWER
    );
    Ok(())
}

fn has_no_ipv6(asker: &Task, name: &str) -> Result<()> {
    let reply = asker.ask(Question::Aaaa(name))?;
    let is_right = reply.code == NOERROR && reply.records == 0;
    ensure!(is_right, "AAAA of {name} at {}: expected no data, saw {reply:?}", asker.name);
    Ok(())
}

fn is_called(asker: &Task, address: Ipv4Addr, expected: &str) -> Result<()> {
    let reply = asker.ask(Question::Ptr(address))?;
    ensure!(
        reply.code == NOERROR && reply.names == [expected],
        "the name of {address} at {} on {}: expected {expected}, saw {reply:?}",
        asker.name,
        asker.node
    );
    Ok(())
}

fn over_tcp(asker: &Task, name: &str, expected: Ipv4Addr) -> Result<()> {
    let ask = || dns::ask(asker.resolver, Question::A(name), Transport::Tcp, dns::PATIENCE);
    let reply = asker.inside(ask)?;
    ensure!(
        reply.code == NOERROR && reply.addresses == [expected],
        "{name} over TCP at {}: expected {expected}, saw {reply:?}",
        asker.name
    );
    Ok(())
}

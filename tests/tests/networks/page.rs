//! The shop's page: it shows a word that PHP wrote to and read from its stores by name, on every
//! node, while tasks come, go and move.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::{Cluster, eventually};
use mesh_tests::PATIENCE;
use serde_json::Value;

use crate::shop::{DATABASE_PATIENCE, Shop};

pub(crate) const PORT: u16 = 8300;
/// Once this many answers in a row come from other tasks, nginx no longer uses a task.
const IN_A_ROW: usize = 6;

/// The page works through every node.
pub(crate) fn everywhere(shop: &Shop) -> Result<()> {
    eventually("the page through every node", DATABASE_PATIENCE, || {
        shop.cluster.everywhere(PORT).into_iter().try_for_each(|server| shows(shop, server, "first"))
    })
}

/// The page through `server` writes `word` to the database and to the cache, and reads it back.
fn shows(shop: &Shop, server: SocketAddrV4, word: &str) -> Result<()> {
    let text = shop.cluster.ask(server, &format!("/?word={word}"))?;
    let page: Value = serde_json::from_str(&text).with_context(|| format!("the page: {text}"))?;
    let client = shop.cluster.record.client.ip.to_string();
    ensure!(
        page["row"] == word && page["key"] == word && page["client"] == client.as_str(),
        "{server}: expected the row and the key `{word}` and the client {client}, saw {page}"
    );
    Ok(())
}

/// nginx resolves `tasks.who` again and again, and so follows a scale.
pub(crate) fn follows_a_scale(shop: &Shop) -> Result<()> {
    let server = SocketAddrV4::new(shop.cluster.record.nodes[0].ip, PORT);
    let asked = || -> Result<BTreeSet<String>> {
        let pages = (0..IN_A_ROW).map(|_| who(&shop.cluster, server));
        pages.collect()
    };
    let scale = |count: usize| -> Result<()> {
        shop.docker.run(&["service", "scale", "--detach", &format!("shop_who={count}")])?;
        shop.cluster.wait_running("shop_who", count, PATIENCE)?;
        eventually(&format!("nginx to ask {count} tasks"), PATIENCE, || {
            let seen = asked()?;
            ensure!(seen.len() == count, "nginx asked {seen:?}");
            Ok(())
        })
    };
    [1, 3, 1].into_iter().try_for_each(scale)
}

/// The host name of the task that answered nginx.
fn who(cluster: &Cluster, server: SocketAddrV4) -> Result<String> {
    let text = cluster.ask(server, "/who")?;
    let page: Value = serde_json::from_str(&text).with_context(|| format!("whoami's page: {text}"))?;
    page["hostname"].as_str().map(str::to_owned).with_context(|| format!("no hostname: {page}"))
}

/// After MariaDB's node is drained, the page works again through every node, with the same stack.
pub(crate) fn recovers_from_a_drain(shop: &Shop) -> Result<()> {
    let node = shop.task("db")?.node;
    let virtual_ip = shop.virtual_ip("db", "back")?;
    let drained = Drained::node(shop, &node)?;
    let moved = eventually("the database on another node", DATABASE_PATIENCE, || {
        let rows = shop.cluster.wait_running("shop_db", 1, PATIENCE)?;
        let now = &rows.first().context("no task of the database")?.node;
        ensure!(*now != node, "it is still on {node}");
        Ok(now.clone())
    })?;
    eventually("the page through every node again", DATABASE_PATIENCE, || {
        shop.cluster.everywhere(PORT).into_iter().try_for_each(|server| shows(shop, server, "second"))
    })?;
    println!("the database moved from {node} to {moved}");
    let kept = shop.virtual_ip("db", "back")?;
    ensure!(kept == virtual_ip, "the database's virtual IP: expected {virtual_ip} as before, saw {kept}");
    drop(drained);
    Ok(())
}

/// A drained node, which becomes active again when the check ends.
struct Drained<'a> {
    shop: &'a Shop,
    node: String,
}

impl<'a> Drained<'a> {
    fn node(shop: &'a Shop, node: &str) -> Result<Self> {
        let drained = Self { shop, node: node.to_owned() };
        drained.set("drain")?;
        Ok(drained)
    }

    fn set(&self, availability: &str) -> Result<()> {
        self.shop.docker.run(&["node", "update", "--availability", availability, &self.node]).map(drop)
    }
}

impl Drop for Drained<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.set("active") {
            eprintln!("make {} active again: {error:#}", self.node);
        }
    }
}

//! Tests that addresses which are added to a running node (keepalived, anycast) serve published
//! ports like its own: the task sees the client's address.
#![cfg(feature = "cluster")]

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::client::http;
use mesh_lab::cluster::{Cluster, eventually};
use mesh_lab::netns::Netns;
use mesh_tests::{PATIENCE, Service, cluster};

const VIRTUAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

/// An address on a node's loopback device, and the client's route to it; dropping this removes
/// both.
struct Virtual<'a> {
    cluster: &'a Cluster,
    node: &'a str,
    via: Ipv4Addr,
}

impl Virtual<'_> {
    fn change(&self, verb: &str) -> Result<()> {
        let address = format!("{VIRTUAL}/32");
        let netns = &self.cluster.node(self.node)?.netns;
        ip(netns, &["address", verb, &address, "dev", "lo"])?;
        let client = &self.cluster.record.client.netns;
        ip(client, &["route", verb, &address, "via", &self.via.to_string()])
    }
}

impl Drop for Virtual<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.change("del") {
            eprintln!("can't remove {VIRTUAL}: {error:#}");
        }
    }
}

fn ip(netns: &str, words: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(["-n", netns]).args(words).status().context("run ip")?;
    ensure!(status.success(), "ip -n {netns} {words:?}: {status}");
    Ok(())
}

#[test]
fn an_address_on_the_loopback_device_keeps_the_clients_address() -> Result<()> {
    let cluster = cluster()?;
    let is_kept = cluster.record.datapath != "userspace";
    let ports = ["--replicas", "3", "-p", "8094:80", "-p", "8094:9/udp", "whoami"];
    let _service = Service::create(&cluster, "anycast", &ports)?;
    let node = cluster.record.nodes.first().context("a node")?;
    let address = Virtual { cluster: &cluster, node: &node.name, via: node.ip };
    address.change("add")?;
    let server = SocketAddrV4::new(VIRTUAL, 8094);
    let client = cluster.record.client.ip.to_string();
    let five_seconds = Duration::from_secs(5).min(PATIENCE);
    eventually("the client's address by TCP", five_seconds, || {
        let page = Netns::run(&cluster.client(), || http::get(server, "/", http::DEADLINE))?.text();
        ensure!(!is_kept || page.contains(&format!("\"{client}")), "expected {client} in: {page}");
        Ok(())
    })?;
    eventually("the client's address by UDP", five_seconds, || {
        let answer = cluster.client().run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.send_to(b"who?", server)?;
            let mut answer = [0; 512];
            let (length, from) = socket.recv_from(&mut answer)?;
            ensure!(*from.ip().to_string() == VIRTUAL.to_string(), "answered by {from}");
            Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        })?;
        ensure!(!is_kept || answer.contains(&client), "expected {client} in: {answer}");
        Ok(())
    })
}

#[test]
fn settings_that_others_change_are_set_back() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        return Ok(());
    }
    let node = cluster.record.nodes.last().context("a node")?;
    let netns = Netns::named(&node.netns);
    let forwards =
        || netns.run(|| Ok(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim().to_owned()));
    netns.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").context("switch forwarding off"))?;
    eventually("forwarding to be on again", PATIENCE, || {
        ensure!(forwards()? == "1", "it is off");
        Ok(())
    })?;
    let flushed = Command::new("ip")
        .args(["netns", "exec", &node.netns, "nft", "delete", "table", "ip", "mesh"])
        .status()?;
    ensure!(flushed.success(), "delete the table of mesh: {flushed}");
    eventually("the firewall table to be there again", PATIENCE, || {
        let listed = Command::new("ip")
            .args(["netns", "exec", &node.netns, "nft", "list", "table", "ip", "mesh"])
            .output()?;
        let rules = String::from_utf8_lossy(&listed.stdout).into_owned();
        ensure!(rules.contains("notrack"), "listed: {rules}");
        Ok(())
    })?;
    ip(&node.netns, &["link", "delete", "mesh-vxlan0"])?;
    eventually("the tunnel device to be there again", PATIENCE, || {
        ip(&node.netns, &["link", "show", "dev", "mesh-vxlan0"])
    })?;
    eventually("all of it to be counted", PATIENCE, || {
        let metrics = cluster.metrics(node)?;
        for setting in ["net.ipv4.ip_forward", "nft table ip mesh", "device mesh-vxlan0"] {
            let series = format!("mesh_host_settings_restored_total{{setting=\"{setting}\"}}");
            ensure!(metrics.contains(&series), "no {series}");
        }
        Ok(())
    })
}

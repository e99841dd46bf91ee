//! Overlay networks that are removed with the test, and the virtual IPs of services on them.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use mesh_lab::cluster::{Cluster, Docker, eventually};
use serde_json::Value;

use crate::PATIENCE;

/// A service's virtual IP on a network, from `docker service inspect`.
///
/// # Errors
/// The service has none there.
pub fn virtual_ip(docker: &Docker, service: &str, network: &str) -> Result<Ipv4Addr> {
    let id = docker.run(&["network", "inspect", "--format", "{{.Id}}", network])?;
    let text = docker.run(&["service", "inspect", "--format", "{{json .Endpoint.VirtualIPs}}", service])?;
    let addresses: Value = serde_json::from_str(&text).context("understand Endpoint.VirtualIPs")?;
    let on_it = addresses.as_array().into_iter().flatten().find(|one| one["NetworkID"] == id.trim());
    let written = on_it.and_then(|one| one["Addr"].as_str());
    let (address, _) = written.and_then(|text| text.split_once('/')).with_context(|| {
        format!("expected {service}'s virtual IP on {network} with its prefix, saw {text}")
    })?;
    address.parse().with_context(|| format!("{address} is no address"))
}

/// An overlay network that is removed when the test ends.
#[derive(Debug)]
pub struct Network {
    name: &'static str,
    cluster: Cluster,
}

impl Network {
    /// `docker network create --driver overlay OPTIONS… NAME`.
    ///
    /// # Errors
    /// The CLI refuses it.
    pub fn create(cluster: &Cluster, name: &'static str, options: &[&str]) -> Result<Self> {
        let words = [&["network", "create", "--driver", "overlay"], options, &[name]].concat();
        cluster.docker()?.run(&words)?;
        Ok(Self { name, cluster: cluster.clone() })
    }

    /// The network's name.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let removed = eventually("the network's removal", PATIENCE, || {
            self.cluster.docker()?.run(&["network", "rm", self.name]).map(drop)
        });
        if let Err(error) = removed {
            eprintln!("remove network {}: {error:#}", self.name);
        }
    }
}

//! Everything that mesh adds to the node's network: the tunnel device, one nftables table, a few
//! settings.
//!
//! Invariants: everything is idempotent, has mesh's name, and is removed by [`remove`].
//!
//! * `meshw0`: the device of encrypted networks ([`crate::encryption`]).
//! * `mesh-vxlan0`: VXLAN in collect-metadata mode, without learning.
//! * nftables table `ip mesh`, see [`firewall`].
//! * `net.ipv4.ip_forward = 1` and `net.ipv6.conf.all.forwarding = 1` (with `accept_ra = 2` on
//!   uplinks where it was 1): XDP asks the kernel's FIB for a client's next hop, which answers only
//!   if forwarding is on.
//! * `net.ipv4.conf.mesh-vxlan0.rp_filter = 0`: packets out of the tunnel have clients' addresses
//!   as their source.

use std::io;
use std::path::Path;

use tracing::warn;

use super::firewall;
use super::netlink::{Link, Netlink, Vxlan};
use crate::datapath::error::DatapathError;
use crate::encryption;

/// Name of the tunnel device.
pub(crate) const TUNNEL_DEVICE: &str = "mesh-vxlan0";

/// Bytes that the tunnel puts in front of a packet: outer IPv4, UDP, VXLAN, inner Ethernet.
pub(crate) const TUNNEL_OVERHEAD: u32 = 50;

/// Finds the tunnel device; makes it, or corrects it, if need be.
///
/// # Errors
/// The kernel refuses the device, most likely because another VXLAN device has the port.
pub(crate) fn ensure_tunnel(
    netlink: &mut Netlink,
    port: u16,
    uplink_mtu: u32,
) -> Result<Link, DatapathError> {
    let mtu = uplink_mtu.saturating_sub(TUNNEL_OVERHEAD);
    match find(netlink)? {
        Some(link) if link.vxlan == Some(Vxlan::tunnel(port)) => {
            if link.mtu != mtu || !link.is_up || link.has_arp {
                netlink
                    .set_up(link.index, mtu)
                    .map_err(DatapathError::netlink(format!("bringing {TUNNEL_DEVICE} up")))?;
            }
            return Ok(link);
        }
        Some(other) => netlink
            .delete_link(other.index)
            .map_err(DatapathError::netlink(format!("replacing {TUNNEL_DEVICE} of other ports")))?,
        None => {}
    }
    netlink.add_vxlan(TUNNEL_DEVICE, port, mtu).map_err(DatapathError::netlink(format!(
        "creating {TUNNEL_DEVICE} on UDP port {port} (in use by another device? choose one with --vxlan-port)"
    )))?;
    set(&format!("net/ipv4/conf/{TUNNEL_DEVICE}/rp_filter"), "0");
    find(netlink)?.ok_or_else(|| {
        DatapathError::netlink(format!("finding {TUNNEL_DEVICE}"))(io::ErrorKind::NotFound.into())
    })
}

fn find(netlink: &mut Netlink) -> Result<Option<Link>, DatapathError> {
    let links = netlink.links().map_err(DatapathError::netlink("listing interfaces"))?;
    Ok(links.into_iter().find(|link| link.name == TUNNEL_DEVICE))
}

/// Finds the device of encrypted networks, if it is up and this agent reads it: an earlier agent
/// may have left it.
///
/// # Errors
/// The kernel refuses the query.
pub(crate) fn find_encryption(netlink: &mut Netlink) -> Result<Option<Link>, DatapathError> {
    Ok(find_device(netlink)?.filter(|link| link.is_up && link.has_carrier))
}

fn find_device(netlink: &mut Netlink) -> Result<Option<Link>, DatapathError> {
    let links = netlink.links().map_err(DatapathError::netlink("listing interfaces"))?;
    let is_ours = |link: &Link| encryption::is_device(&link.name, link.kind.as_deref());
    Ok(links.into_iter().find(is_ours))
}

/// Brings up a device of the agent's own that carries nothing of the host's, and needs no
/// addresses.
///
/// # Errors
/// The device is gone, or the kernel refuses the change.
pub(crate) fn bring_up(device: &str, mtu: u32) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let link = netlink.links()?.into_iter().find(|link| link.name == device);
    let link = link.ok_or(io::ErrorKind::NotFound)?;
    let ipv6 = format!("net/ipv6/conf/{device}/disable_ipv6");
    if Path::new("/proc/sys").join(&ipv6).exists() {
        set(&ipv6, "1");
    }
    netlink.set_up(link.index, mtu)
}

/// Puts settings in place. A failure is logged, and [`upkeep`](super::upkeep) tries again.
pub(crate) fn prepare(uplinks: &[Link]) {
    set("net/ipv4/ip_forward", "1");
    forward_ipv6(uplinks);
}

/// Lets the FIB answer for IPv6 too. A node that forwards ignores router advertisements unless
/// configured otherwise: an uplink that learns routes from them keeps doing so.
fn forward_ipv6(uplinks: &[Link]) {
    const FORWARDING: &str = "net/ipv6/conf/all/forwarding";
    let present = std::fs::read_to_string(Path::new("/proc/sys").join(FORWARDING));
    if !present.is_ok_and(|present| present.trim() == "0") {
        return;
    }
    for uplink in uplinks {
        let accepts = format!("net/ipv6/conf/{}/accept_ra", uplink.name);
        if std::fs::read_to_string(Path::new("/proc/sys").join(&accepts))
            .is_ok_and(|value| value.trim() == "1")
        {
            set(&accepts, "2");
        }
    }
    set(FORWARDING, "1");
}

/// Removes mesh's devices and the firewall tables; returns what there was. The settings stay, as
/// others may rely on them.
///
/// # Errors
/// The kernel refuses to delete a device.
pub(crate) fn remove() -> Result<Vec<String>, DatapathError> {
    let mut removed = remove_tunnel()?;
    let mut netlink = Netlink::open().map_err(DatapathError::netlink("opening a netlink socket"))?;
    if let Some(link) = find_device(&mut netlink)? {
        netlink
            .delete_link(link.index)
            .map_err(DatapathError::netlink(format!("deleting {}", encryption::DEVICE)))?;
        removed.push(format!("the interface {}", encryption::DEVICE));
    }
    Ok(removed)
}

/// Removes the tunnel device and the firewall tables; returns what there was.
///
/// # Errors
/// The kernel refuses to delete the device.
pub(crate) fn remove_tunnel() -> Result<Vec<String>, DatapathError> {
    let mut removed = Vec::new();
    let mut netlink = Netlink::open().map_err(DatapathError::netlink("opening a netlink socket"))?;
    if let Some(link) = find(&mut netlink)? {
        netlink
            .delete_link(link.index)
            .map_err(DatapathError::netlink(format!("deleting {TUNNEL_DEVICE}")))?;
        removed.push(format!("the interface {TUNNEL_DEVICE}"));
    }
    removed.extend(firewall::remove().iter().map(|table| format!("the nftables table `{table}`")));
    Ok(removed)
}

/// Sets a kernel setting of this network namespace, unless it has the value.
fn set(name: &str, value: &str) {
    let path = Path::new("/proc/sys").join(name);
    if std::fs::read_to_string(&path).is_ok_and(|present| present.trim() == value) {
        return;
    }
    if let Err(error) = std::fs::write(&path, value) {
        warn!(
            setting = name,
            value,
            error = mesh_runtime::error_chain(&error),
            "can't change a kernel setting: set it by hand"
        );
    }
}

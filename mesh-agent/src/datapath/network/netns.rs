//! Asks the kernel inside a task's network namespace, for the host's end of its veth pair among
//! others.
//!
//! Invariants: only a thread made for it enters another namespace, and it ends there; no thread of
//! the runtime ever does.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use mesh_ebpf::abi::Mac;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::netlink::{Link, Netlink, is_veth};
use crate::datapath::error::DatapathError;

/// A task's veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskCable {
    /// The host's end, in this namespace.
    pub(crate) host_end: Link,
    /// The MAC of the task's end.
    pub(crate) task_mac: Mac,
}

/// Finds the veth pair of the task whose process is `pid` and whose address is `address`.
///
/// # Errors
/// The process or its address is gone, or no veth connects it to this namespace.
pub(crate) fn find_cable(task: &str, pid: u32, address: Ipv4Addr) -> Result<TaskCable, DatapathError> {
    let failed = |reason: String, source| DatapathError::TaskLink { task: task.to_owned(), reason, source };
    let inside = ask_inside(pid, address)
        .map_err(|error| {
            failed(format!("can't look into the network namespace of process {pid}"), Some(error))
        })?
        .ok_or_else(|| {
            failed(format!("no interface of process {pid} has {address}: is it on the `mesh` network?"), None)
        })?;
    let peer = inside
        .peer
        .ok_or_else(|| failed(format!("{} of process {pid} is no virtual cable", inside.name), None))?;
    let links = Netlink::open()
        .and_then(|mut netlink| netlink.links())
        .map_err(|error| failed("can't list this node's interfaces".to_owned(), Some(error)))?;
    let host_end = links
        .into_iter()
        .find(|link| link.index == peer && is_veth(link))
        .ok_or_else(|| failed(format!("interface {peer} of this node is not its cable's other end"), None))?;
    Ok(TaskCable { host_end, task_mac: inside.mac })
}

/// The interface with this address in the namespace of a process.
fn ask_inside(pid: u32, address: Ipv4Addr) -> io::Result<Option<Link>> {
    visit(pid, move || {
        let mut netlink = Netlink::open()?;
        let owner = netlink.addresses()?.into_iter().find(|(_, found)| *found == address);
        let Some((ifindex, _)) = owner else { return Ok(None) };
        Ok(netlink.links()?.into_iter().find(|link| link.index == ifindex))
    })
}

/// Runs `work` on a thread of its own in the network namespace of a process.
///
/// # Errors
/// The process is gone, or `work` failed.
pub(crate) fn visit<T: Send + 'static>(
    pid: u32,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let visitor = std::thread::Builder::new().name("task-netns".to_owned()).spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    })?;
    visitor.join().map_err(|_| io::Error::other("the thread in the task's namespace failed"))?
}

//! Keeps a node's docker.sock open across restarts of its agent, as systemd does with a socket
//! unit.
//!
//! The keeper is a process that only holds the listening socket as its input. An agent that starts
//! gets a copy of it, passed as systemd passes sockets (`LISTEN_FDS`), so that the socket file
//! stays the same. A power cut ends the keeper and removes the file.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::cgroup;
use super::layout::NodeLayout;

/// The keeper's cgroup below the node's.
const GROUP: &str = "docker-socket";
/// The group that may use the socket beside root, as in the agent's `--socket-group`.
const SOCKET_GROUP: &str = "docker";
/// A script that joins the cgroup, then waits until it is killed. Argument: `cgroup.procs`.
const KEEP: &str = r#"echo $$ > "$1"; exec sleep infinity"#;

/// The node's listening docker.sock, from its keeper; the first call makes both.
pub(super) fn docker_socket(node: &NodeLayout) -> Result<OwnedFd> {
    match keeper(node) {
        Some(pid) => copy_input(pid).with_context(|| format!("take docker.sock from process {pid}")),
        None => begin(node).with_context(|| format!("open {}", node.mesh_socket().display())),
    }
}

fn begin(node: &NodeLayout) -> Result<OwnedFd> {
    let path = node.mesh_socket();
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context("remove what was there"),
        _ => {}
    }
    let listener = UnixListener::bind(&path).context("listen")?;
    if let Some(gid) = gid_of(SOCKET_GROUP, &fs::read_to_string("/etc/group").context("read /etc/group")?) {
        chown(&path, None, Some(gid)).context("give it to its group")?;
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).context("set its mode")?;
    let socket = OwnedFd::from(listener);
    let entrance = cgroup::entrance(&node.cgroup().join(GROUP))?;
    let keeper = Command::new("setsid")
        .args(["sh", "-ec", KEEP, "keeper"])
        .arg(entrance)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::from(socket.try_clone().context("share the socket")?))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start its keeper")?;
    fs::write(pid_file(node), keeper.id().to_string()).context("store its keeper's process id")?;
    Ok(socket)
}

/// The process that keeps the socket, if it is alive.
fn keeper(node: &NodeLayout) -> Option<u32> {
    let pid = fs::read_to_string(pid_file(node)).ok()?.parse().ok()?;
    cgroup::holds(&node.cgroup().join(GROUP), pid).then_some(pid)
}

fn pid_file(node: &NodeLayout) -> std::path::PathBuf {
    node.run_dir().join("docker-socket.pid")
}

fn copy_input(pid: u32) -> Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
    let process = pidfd_open(pid, PidfdFlags::empty()).context("find it")?;
    pidfd_getfd(process, 0, PidfdGetfdFlags::empty()).context("copy its input")
}

fn gid_of(group: &str, groups: &str) -> Option<u32> {
    let line = groups.lines().find(|line| line.split(':').next() == Some(group))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\ndocker2:x:5:\ndocker:x:998:a,b\n";
        assert_eq!(gid_of("docker", groups), Some(998));
        assert_eq!(gid_of("dock", groups), None);
    }
}

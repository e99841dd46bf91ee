//! Starts and kills the daemons of a node.
//!
//! A daemon has a session and a cgroup of its own, so that it outlives xtask and can be found
//! again; its output goes to a log file.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::cgroup;
use super::component::{CommandLine, Component};
use super::keeper;
use super::layout::NodeLayout;
use super::machine;

/// A script that joins the cgroup and raises the limit of open files, then becomes the daemon.
/// Arguments: `cgroup.procs`, command.
const BECOME: &str =
    r#"echo $$ > "$1"; shift; ulimit -n 1048576 2>/dev/null || ulimit -n "$(ulimit -Hn)"; exec "$@""#;

/// As [`BECOME`], but passes its input on as systemd passes a socket (sd_listen_fds(3)): each step
/// replaces the one before by exec, so the shell's process id is the daemon's.
const BECOME_WITH_SOCKET: &str = r#"exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1
echo $$ > "$1"; shift; ulimit -n 1048576 2>/dev/null || ulimit -n "$(ulimit -Hn)"; exec "$@""#;

/// The variables of our environment that a daemon gets: only those that don't change its behaviour,
/// except for its log level.
const KEPT_VARIABLES: [&str; 5] = ["PATH", "HOME", "LANG", "RUST_LOG", "RUST_BACKTRACE"];

/// How long a killed process may take to be reaped, and its children to end; one that lives on
/// isn't waited for longer.
const GONE_LIMIT: Duration = Duration::from_secs(3);

/// A daemon that was just started.
#[derive(Debug)]
pub(super) struct Started {
    component: Component,
    node: NodeLayout,
    child: Child,
}

impl Started {
    /// Its process id: the shell has become the daemon.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The component and its node, for messages.
    pub(super) fn title(&self) -> String {
        format!("{} on {}", self.component, self.node.name())
    }

    /// Fails if it has ended already, with the end of its log.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        let ended = self.child.try_wait().with_context(|| format!("look after {}", self.title()))?;
        if let Some(status) = ended {
            bail!("{} ended at once ({status}); {}", self.title(), self.log_tail());
        }
        Ok(())
    }

    /// The last lines of its log.
    pub(super) fn log_tail(&self) -> String {
        const LINES: usize = 15;
        let file = self.node.log_file(self.component);
        match fs::read(&file) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
                format!("the end of {}:\n  {tail}", file.display())
            }
            Err(e) => format!("its log {} can't be read: {e}", file.display()),
        }
    }
}

/// Starts a component on its node.
pub(super) fn start(component: Component, node: &NodeLayout, line: &CommandLine) -> Result<Started> {
    let entrance = cgroup::entrance(&node.cgroup().join(component.to_string()))?;
    let log = open_log(component, node)?;
    let errors = log.try_clone().context("share the log file")?;
    let (script, input) = match component {
        Component::Agent => (BECOME_WITH_SOCKET, Stdio::from(keeper::docker_socket(node)?)),
        _ => (BECOME, Stdio::null()),
    };
    let child = Command::new("setsid")
        .args(["sh", "-ec", script, "daemon"])
        .arg(entrance)
        .args(machine::entrance(node))
        .arg(&line.program)
        .args(&line.args)
        .env_clear()
        .envs(KEPT_VARIABLES.iter().filter_map(|name| Some((name, env::var_os(name)?))))
        // The settings of a mesh that is installed on this machine are not the lab's.
        .env("MESH_CONFIG", "/dev/null")
        .stdin(input)
        .stdout(log)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("start {component} on {}", node.name()))?;
    Ok(Started { component, node: node.clone(), child })
}

/// Kills a component's process with SIGKILL; its children live on, as after a crash, unless they
/// are set to die with their parent.
pub(super) fn kill(component: Component, node: &NodeLayout, pid: u32) -> Result<()> {
    if !is_alive(component, node, pid) {
        return Ok(());
    }
    let mut dying = children_of(pid);
    dying.push(pid);
    cgroup::kill_now(pid)?;
    cgroup::reap(pid);
    let deadline = Instant::now() + GONE_LIMIT;
    while Instant::now() < deadline && still_matters(component, node, pid, &dying) {
        thread::sleep(Duration::from_millis(5));
    }
    if is_alive(component, node, pid) {
        bail!("{component} on {} (process {pid}) is still there after SIGKILL", node.name());
    }
    Ok(())
}

/// Stops a process with SIGSTOP, or continues it.
pub(super) fn pause(pid: u32, stopped: bool) -> Result<()> {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
    let signal = if stopped { Signal::STOP } else { Signal::CONT };
    kill_process(target, signal).with_context(|| format!("send {signal:?} to process {pid}"))
}

/// An engine that starts takes the zombies of the one before, and of its children, for living
/// processes: they must be reaped. Of other daemons only the process itself matters.
fn still_matters(component: Component, node: &NodeLayout, pid: u32, dying: &[u32]) -> bool {
    match component {
        Component::Dockerd => dying.iter().any(|pid| Path::new("/proc").join(pid.to_string()).exists()),
        _ => is_alive(component, node, pid),
    }
}

/// The children of all threads of a process; none if it ends in the meantime.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// True if the process is alive and is that component: its id may belong to another process by now.
pub(super) fn is_alive(component: Component, node: &NodeLayout, pid: u32) -> bool {
    cgroup::holds(&node.cgroup().join(component.to_string()), pid)
}

fn open_log(component: Component, node: &NodeLayout) -> Result<File> {
    let path = node.log_file(component);
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}

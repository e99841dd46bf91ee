//! The unmodified `docker` command with one socket.
//!
//! Invariant: a command may take as long as its work does, but ends when its server is gone: a
//! socket may be open without a server behind it, such as one that systemd keeps for an agent.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;

use super::eventually;

/// How often the server of a running command is probed.
const LOOK: Duration = Duration::from_secs(2);
/// How long a server may be away during a command: an agent that restarts is back sooner.
const AWAY_MAX: Duration = Duration::from_secs(15);
/// Bytes that every HTTP server refuses by itself as a malformed request, whatever happens to valid
/// requests.
const NO_REQUEST: &[u8] = b"\0\r\n\r\n";

/// The docker CLI with its `DOCKER_HOST`.
#[derive(Debug, Clone)]
pub struct Docker {
    host: String,
}

/// A refusal by the CLI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its exit code.
    pub code: Option<i32>,
    /// Its standard error.
    pub message: String,
}

/// A line of `docker service ps`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskRow {
    /// The id in the column `ID`.
    #[serde(rename = "ID")]
    pub id: String,
    /// The name of its slot; the CLI draws history below it only in its own table.
    pub name: String,
    /// The node it is on, if any.
    pub node: String,
    /// What the column `DESIRED STATE` shows.
    pub desired_state: String,
    /// Its state and since when, as in `Running 3 seconds ago`.
    pub current_state: String,
    /// Why it failed.
    pub error: String,
}

impl TaskRow {
    /// Whether it is wanted and runs.
    pub fn is_running(&self) -> bool {
        self.desired_state == "Running" && self.current_state.starts_with("Running")
    }
}

impl Docker {
    /// The CLI with `host`, such as `unix:///run/mesh/docker.sock`.
    pub fn towards(host: &str) -> Self {
        Self { host: host.to_owned() }
    }

    /// The value of `DOCKER_HOST` for this node's socket.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The command with these arguments, for callers that need the process itself.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", &self.host).env_remove("DOCKER_CONTEXT").args(args).stdin(Stdio::null());
        command
    }

    /// Runs it and returns its standard output.
    ///
    /// # Errors
    /// It doesn't exit with 0; the message has its output.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } = self.output(args)?;
        if !status.success() {
            bail!(
                "`docker {}` failed ({status}): {}",
                args.join(" "),
                String::from_utf8_lossy(&stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    /// Runs a command that must be refused.
    ///
    /// # Errors
    /// It exits with 0.
    pub fn refused(&self, args: &[&str]) -> Result<Refusal> {
        let Output { status, stdout, stderr } = self.output(args)?;
        if status.success() {
            bail!(
                "expected `docker {}` to be refused, but it said: {}",
                args.join(" "),
                String::from_utf8_lossy(&stdout).trim()
            );
        }
        Ok(Refusal { code: status.code(), message: String::from_utf8_lossy(&stderr).trim().to_owned() })
    }

    /// The service's tasks with their history, as `docker service ps` lists them.
    ///
    /// # Errors
    /// The CLI fails or prints something else than its rows.
    pub fn tasks(&self, service: &str) -> Result<Vec<TaskRow>> {
        let listed = self.run(&["service", "ps", "--no-trunc", "--format", "{{json .}}", service])?;
        listed
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("a row of service ps: {line}")))
            .collect()
    }

    /// Waits until exactly `count` tasks of the service run, and returns their rows.
    ///
    /// # Errors
    /// They don't within `within`; the message has the last rows.
    pub fn wait_running(&self, service: &str, count: usize, within: Duration) -> Result<Vec<TaskRow>> {
        eventually(&format!("{count} running tasks of {service}"), within, || {
            let rows = self.tasks(service)?;
            let running: Vec<TaskRow> = rows.iter().filter(|row| row.is_running()).cloned().collect();
            let wanted = rows.iter().filter(|row| row.desired_state == "Running").count();
            ensure!(running.len() == count && wanted == count, "tasks: {rows:#?}");
            Ok(running)
        })
    }

    fn output(&self, args: &[&str]) -> Result<Output> {
        self.output_while_served(args, LOOK, AWAY_MAX)
    }

    /// Runs it to its end, or until its socket has not answered for `away_max`.
    fn output_while_served(&self, args: &[&str], look: Duration, away_max: Duration) -> Result<Output> {
        let words = || format!("`docker {}`", args.join(" "));
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("start {}", words()))?;
        // Before any wait reaps it: until then its process id can't be another process's.
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .with_context(|| format!("hold {}", words()))?;
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        let mut heard = Instant::now();
        loop {
            match ended.recv_timeout(look) {
                Ok(output) => return output.with_context(|| format!("wait for {}", words())),
                Err(RecvTimeoutError::Disconnected) => bail!("the thread that waits for {} ended", words()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.is_served(look) {
                heard = Instant::now();
            } else if heard.elapsed() >= away_max {
                pidfd_send_signal(&process, Signal::KILL).with_context(|| format!("end {}", words()))?;
                bail!(
                    "{} waits for nobody: nothing has answered at {} for {:?}; next: see whether its agent \
                     (or engine) runs, and its log",
                    words(),
                    self.host,
                    heard.elapsed()
                );
            }
        }
    }

    /// Whether a server answers at the socket within `limit`; true for a host that is no Unix
    /// socket, as that can't be probed.
    fn is_served(&self, limit: Duration) -> bool {
        let Some(path) = self.host.strip_prefix("unix://") else { return true };
        let ask = || -> std::io::Result<usize> {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            stream.write_all(NO_REQUEST)?;
            stream.read(&mut [0])
        };
        ask().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const LOOK: Duration = Duration::from_millis(100);

    #[test]
    fn a_command_at_a_socket_without_a_server_ends_with_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("docker.sock");
        let _kept_open = UnixListener::bind(&path).expect("a socket");
        let docker = Docker::towards(&format!("unix://{}", path.display()));
        let begun = Instant::now();
        let error = docker.output_while_served(&["ps"], LOOK, LOOK * 5).expect_err("no server answers");
        assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
        let said = format!("{error:#}");
        assert!(said.contains("nothing has answered at unix://") && said.contains("`docker ps`"), "{said}");
    }

    #[test]
    fn a_command_may_take_long_while_its_server_answers() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("docker.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let docker = Docker::towards(&format!("unix://{}", path.display()));
        let until = Instant::now() + LOOK * 15;
        // Answers a malformed request at once, and leaves the command without an answer for a
        // while.
        let server = std::thread::spawn(move || {
            let mut unanswered = Vec::new();
            while Instant::now() < until {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut first = [9];
                if stream.read(&mut first).is_ok_and(|length| length == 1) && first == [0] {
                    stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("it is taken");
                } else {
                    unanswered.push(stream);
                }
            }
        });
        let output = docker.output_while_served(&["ps"], LOOK, LOOK * 5).expect("it ends by itself");
        assert!(!output.status.success() && Instant::now() >= until, "the command ended early: {output:?}");
        server.join().expect("no panic");
    }
}

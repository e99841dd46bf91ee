//! The agent as a process that is told to read its settings again. It is in no cluster.

#![expect(clippy::expect_used, reason = "what can't be set up fails the test")]

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The longest wait.
const LIMIT: Duration = Duration::from_secs(20);

/// Ends the process however the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.kill().is_ok() {
            self.0.wait().expect("the end of a killed process");
        }
    }
}

/// Writes the settings file; the rest of what the agent has is in its directory.
fn write_settings(directory: &Path, more: &str) {
    let path = |name: &str| directory.join(name).display().to_string();
    let text = format!(
        "data-dir = '{}'\nsocket = '{}'\nsocket-group = ''\ncontrol-socket = '{}'\nengine = 'unix://{}'\n{more}",
        path("data"),
        path("docker.sock"),
        path("control.sock"),
        path("engine.sock"),
    );
    std::fs::write(directory.join("agent.toml"), text).expect("the file is written");
}

fn start(directory: &Path) -> Running {
    let notify = directory.join("notify");
    let systemd = UnixDatagram::bind(&notify).expect("a socket for systemd's part");
    systemd.set_read_timeout(Some(LIMIT)).expect("a limit");
    let child = Command::new(env!("CARGO_BIN_EXE_mesh-agent"))
        .arg("--config")
        .arg(directory.join("agent.toml"))
        .env("NOTIFY_SOCKET", &notify)
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(directory.join("log")).expect("a log"))
        .spawn()
        .expect("the agent starts");
    let running = Running(child);
    let mut said = [0; 512];
    loop {
        let length = systemd.recv(&mut said).expect("the agent is ready");
        if String::from_utf8_lossy(&said[..length]).lines().any(|line| line == "READY=1") {
            return running;
        }
    }
}

#[test]
fn a_reload_changes_the_level_of_the_log_and_names_what_needs_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    write_settings(directory, "log = 'error'\n");
    let running = start(directory);
    let said = |text: &str| {
        let log = std::fs::read_to_string(directory.join("log")).expect("the log is read");
        log.matches(text).count()
    };
    let reload = |more: &str, expected: &str| {
        write_settings(directory, more);
        let pid = running.0.id().to_string();
        let told = Command::new("kill").args(["-HUP", &pid]).status().expect("kill runs");
        assert!(told.success());
        let deadline = Instant::now() + LIMIT;
        while said(expected) == 0 {
            assert!(Instant::now() < deadline, "never saw {expected:?}");
            thread::sleep(Duration::from_millis(20));
        }
    };
    reload("log = 'info'\nvxlan-port = 5000\n", "a restart only settings=\"vxlan-port\"");
    assert_eq!(said("the settings were read again applied=\"log\""), 1);
    reload("log = 'error'\nvxlan-port = 70000\n", "those from before stay in force");
    assert_eq!(said("agent.toml: vxlan-port: "), 1, "the refusal names file and key");
    reload("log = 'info'\n", "the settings were read again applied=\"\"");
}

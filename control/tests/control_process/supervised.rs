//! The process as systemd sees it, and its settings file. etcd is away: the process waits for it.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use mesh_state::fixtures::EtcdProcess;
use tempfile::TempDir;

use crate::support::control_process::Manager;
use crate::support::eventually;

/// The longest wait for one message.
const LIMIT: Duration = Duration::from_secs(20);

/// A directory with `control.toml`; the ports are free ones.
fn settings(more: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let text = format!(
        "advertise = '127.0.0.1'\nname = 'm'\netcd = 'http://127.0.0.1:1'\nnode-listen = '127.0.0.1:0'\n\
         metrics-listen = '127.0.0.1:0'\ndata-dir = '{}'\nsocket = '{}'\n{more}",
        path("data"),
        path("control.sock")
    );
    std::fs::write(directory.path().join("control.toml"), text).unwrap();
    directory
}

fn mesh_control(directory: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
    command.arg("--config").arg(directory.path().join("control.toml")).stdin(Stdio::null());
    command
}

/// Ends the process if the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.kill().is_ok() {
            self.0.wait().unwrap();
        }
    }
}

/// Waits for a message with the line `wanted`.
fn hear(systemd: &UnixDatagram, wanted: &str) {
    let mut buffer = [0; 512];
    loop {
        let length = systemd.recv(&mut buffer).unwrap_or_else(|error| panic!("no {wanted}: {error}"));
        if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == wanted) {
            return;
        }
    }
}

#[test]
fn systemd_is_told_of_the_start_of_life_and_of_the_end() {
    let directory = settings("");
    let notify = directory.path().join("notify");
    let systemd = UnixDatagram::bind(&notify).unwrap();
    systemd.set_read_timeout(Some(LIMIT)).unwrap();
    let child = mesh_control(&directory)
        .env("NOTIFY_SOCKET", &notify)
        .env("WATCHDOG_USEC", "300000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    // Without etcd: a start that waits for it must not count as one that hangs.
    hear(&systemd, "READY=1");
    hear(&systemd, "WATCHDOG=1");
    hear(&systemd, "WATCHDOG=1");
    let asked = Command::new("kill").arg(running.0.id().to_string()).status().unwrap();
    assert!(asked.success());
    hear(&systemd, "STOPPING=1");
    assert!(running.0.wait().unwrap().success(), "a clean end");
}

/// Writes the settings file anew, and tells the process with SIGHUP.
fn reload(running: &Running, directory: &TempDir, log: &str, more: &str) {
    let text = std::fs::read_to_string(directory.path().join("control.toml")).unwrap();
    let kept = text.lines().filter(|line| !line.starts_with("log") && !line.starts_with("new"));
    let lines: Vec<String> =
        kept.map(str::to_owned).chain([format!("log = '{log}'"), more.to_owned()]).collect();
    std::fs::write(directory.path().join("control.toml"), lines.join("\n")).unwrap();
    let told = Command::new("kill").args(["-HUP", &running.0.id().to_string()]).status().unwrap();
    assert!(told.success());
}

const APPLIED: &str = "the settings were read again";
const RESTART: &str = "apply after a restart only settings=\"new-cluster\"";
const REFUSED: &str = "those from before stay in force";

#[tokio::test]
async fn a_reload_changes_the_level_of_the_log_and_names_what_needs_a_restart() {
    let directory = settings("log = 'error'\n");
    let (notify, log) = (directory.path().join("notify"), directory.path().join("log"));
    let systemd = UnixDatagram::bind(&notify).unwrap();
    systemd.set_read_timeout(Some(LIMIT)).unwrap();
    let child = mesh_control(&directory)
        .env("NOTIFY_SOCKET", &notify)
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let running = Running(child);
    hear(&systemd, "READY=1");
    let said = |text: &str| std::fs::read_to_string(&log).unwrap().matches(text).count();
    assert_eq!(said("INFO"), 0, "what a level of error shows");

    reload(&running, &directory, "info", "new-cluster = true");
    eventually("what needs a restart", async || (said(RESTART) == 1).then_some(())).await;
    assert_eq!((said(APPLIED), said("applied=\"log\"")), (1, 1));

    reload(&running, &directory, "warn", "new_cluster = true");
    eventually("a refusal", async || (said(REFUSED) == 1).then_some(())).await;
    assert_eq!(said("control.toml: new_cluster: no such key; the nearest is new-cluster"), 1);
    reload(&running, &directory, "loud,,=", "");
    eventually("a refusal of the level", async || (said(REFUSED) == 2).then_some(())).await;

    // The level is still info, and what needed a restart was taken back.
    reload(&running, &directory, "info", "");
    eventually("a reload without a change", async || (said(APPLIED) == 2).then_some(())).await;
    assert_eq!(said(RESTART), 1);
    reload(&running, &directory, "warn", "new-cluster = true");
    eventually("what needs a restart, again", async || (said(RESTART) == 2).then_some(())).await;
    assert_eq!(said(APPLIED), 2, "the level warn shows an info");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_reads_the_certificates_for_etcd_again() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let told = Command::new("kill").args(["-HUP", &manager.child.id().to_string()]).status().unwrap();
    assert!(told.success());
    eventually("a new connection to etcd", async || {
        manager.log().contains("the certificates for etcd were read again").then_some(())
    })
    .await;
    assert_eq!(manager.docker().get("/nodes").await.unwrap().0, 200);
}

fn checked(more: &str) -> Output {
    mesh_control(&settings(more)).arg("--check-config").output().unwrap()
}

#[test]
fn a_check_names_every_mistake_and_exits_with_1() {
    assert!(checked("").status.success());
    let output = checked("etcd_ca = 'x'\ndefault-addr-pool = 'wide'\n");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    for expected in
        ["control.toml: etcd_ca: no such key; the nearest is etcd-ca", "control.toml: default-addr-pool: "]
    {
        assert!(errors.contains(expected), "expected {expected:?} in:\n{errors}");
    }
    let output = checked("etcd-insecure = false\nlog = 'loud,,='\n");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), errors.contains("--log")), (Some(1), true), "{errors}");
    let missing = Command::new(env!("CARGO_BIN_EXE_mesh-control"))
        .args(["--check-config", "--config", "/dev/null", "--etcd", "http://127.0.0.1:1"])
        .output()
        .unwrap();
    let errors = String::from_utf8(missing.stderr).unwrap();
    assert_eq!((missing.status.code(), errors.contains("--advertise")), (Some(1), true), "{errors}");
}

#[test]
fn the_settings_in_force_are_printed_with_their_origins() {
    let directory = settings("etcd-user = 'u'\netcd-password-file = '/secret'\n");
    let output = mesh_control(&directory).args(["--print-config", "--name", "other"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for (line, origin) in
        [("name = \"other\"", "flag"), ("advertise = \"127.0.0.1\"", "file"), ("log = ", "default")]
    {
        let found = text.lines().find(|found| found.starts_with(line));
        assert!(
            found.is_some_and(|found| found.ends_with(origin)),
            "expected {line} from {origin} in:\n{text}"
        );
    }
}

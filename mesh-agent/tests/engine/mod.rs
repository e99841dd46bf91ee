//! A private Docker engine for one test: its own network and mount namespaces, its own directories,
//! gone with the test.
//!
//! Needs root. Without it a test says so and passes on a developer's machine; with `CI` set it
//! fails.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// An engine that runs, with the image `busybox:latest`.
pub struct Engine {
    directory: tempfile::TempDir,
    daemon: Option<Child>,
}

/// The engine, or nothing when the machine can't run one.
pub fn start() -> Option<Engine> {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root to start a Docker engine");
        eprintln!("skipped: needs root to start a Docker engine");
        return None;
    }
    let directory = tempfile::Builder::new().prefix("mesh-engine-").tempdir_in("/tmp").unwrap();
    let mut engine = Engine { directory, daemon: None };
    engine.boot();
    engine.import_busybox();
    Some(engine)
}

impl Engine {
    /// The engine's own socket.
    pub fn socket(&self) -> PathBuf {
        self.path("engine.sock")
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A directory on a tmpfs, for files of tasks; it goes with the engine.
    pub fn memory(&self) -> PathBuf {
        Path::new("/dev/shm").join(self.directory.path().file_name().unwrap_or_default())
    }

    /// Starts dockerd on this engine's directories and waits for its socket to answer.
    pub fn boot(&mut self) {
        let root = self.directory.path().display();
        let script = format!(
            "mount -t tmpfs tmpfs /run && ip link set lo up && exec dockerd --data-root {root}/data --exec-root {root}/exec \
             --pidfile {root}/pid -H unix://{root}/engine.sock --bridge=none --iptables=false --ip6tables=false"
        );
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let daemon = Command::new("setpriv")
            .args(["--pdeathsig=TERM", "unshare", "--net", "--mount", "sh", "-c", &script])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("start dockerd");
        self.daemon = Some(daemon);
        eventually("dockerd answers", || self.docker(&["version"]).status.success());
    }

    /// Asks dockerd to end, and waits for it.
    pub fn halt(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        daemon.wait().unwrap();
    }

    /// Runs the `docker` CLI on the engine's own socket.
    pub fn docker(&self, arguments: &[&str]) -> Output {
        docker(&self.socket(), arguments, "")
    }

    fn import_busybox(&self) {
        let root = self.path("rootfs");
        let script = format!(
            "mkdir -p {0}/bin {0}/tmp {0}/etc && cp /bin/busybox {0}/bin/ && for a in sh cat echo sleep env hostname true false \
             wc kill id mount test ip; do ln -s busybox {0}/bin/$a; done && tar -C {0} -c . | \
             docker -H unix://{1} import -c 'CMD [\"sh\"]' - busybox:latest",
            root.display(),
            self.socket().display()
        );
        let made = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(made.status.success(), "import busybox: {}", String::from_utf8_lossy(&made.stderr));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            let ids = self.docker(&["ps", "-aq"]);
            for id in String::from_utf8_lossy(&ids.stdout).split_whitespace() {
                self.docker(&["rm", "-f", id]);
            }
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("dockerd's last lines, newest first:\n{}", tail.join("\n"));
        }
        self.halt();
        if let Err(error) = std::fs::remove_dir_all(self.memory()) {
            // Most tests write none.
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "remove the files of tasks");
        }
    }
}

/// Runs the `docker` CLI on `socket` with `input` on its stdin.
pub fn docker(socket: &Path, arguments: &[&str], input: &str) -> Output {
    let mut client = Command::new("timeout")
        .args(["30", "docker", "-H", &format!("unix://{}", socket.display())])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run docker CLI");
    let written = client.stdin.take().unwrap().write_all(input.as_bytes());
    let output = client.wait_with_output().unwrap();
    if let Err(error) = written {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "write to docker {arguments:?}");
    }
    output
}

/// Waits up to 30 s for `holds`.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited 30 s in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a command wrote to stdout, trimmed.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What a command wrote to stderr, trimmed.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

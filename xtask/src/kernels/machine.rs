//! Boots a machine, and reads from its console how its jobs have ended.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A test binary that a machine runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    /// The binary's name, `/tests/NAME` in the machine.
    pub(super) name: &'static str,
    /// Its arguments, as a shell splits them.
    pub(super) arguments: &'static str,
}

/// A machine that is ready to boot.
#[derive(Debug)]
pub(super) struct Machine {
    /// The kernel's series.
    pub(super) name: &'static str,
    /// The kernel's image.
    pub(super) kernel: PathBuf,
    /// The initramfs, with everything that the jobs need.
    pub(super) initramfs: PathBuf,
    /// The file that takes what comes over the console.
    pub(super) log: PathBuf,
    /// Its memory, as qemu writes it.
    pub(super) memory: &'static str,
    /// Further arguments of qemu.
    pub(super) devices: Vec<String>,
    /// What is worth showing of the console's log once all jobs have passed.
    pub(super) shown: fn(&str) -> Vec<String>,
}

/// How the lines of the init script on the console begin.
pub(super) const MARK: &str = "mesh-vm:";
/// The end of the console's log that an error shows.
const SHOWN_LINES: usize = 60;

/// The machine's init script: it loads the modules, runs the jobs, and turns the machine off.
pub(super) fn init(modules: &[&str], jobs: &[Job]) -> String {
    let load = |name: &&str| format!("insmod /modules/{name}.ko || echo \"{MARK} can't load {name}\"\n");
    let loads = modules.iter().map(load).collect::<Vec<_>>().concat();
    let run = |Job { name, arguments }: &Job| {
        format!("/tests/{name} {arguments} </dev/null 2>&1; echo \"{MARK} {name} ended with $?\"\n")
    };
    let runs = jobs.iter().map(run).collect::<Vec<_>>().concat();
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/usr/sbin:/usr/bin:/bin HOME=/root CI=1\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs devtmpfs /dev\n\
         mount -t tmpfs tmpfs /run\n\
         mount -t tmpfs tmpfs /tmp\n\
         ln -s /run /var/run\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         {loads}\
         ip link set lo up\n\
         cd /root\n\
         echo \"{MARK} begun on $(uname -r)\"\n\
         {runs}\
         sync\n\
         echo o >/proc/sysrq-trigger\n\
         sleep 60\n"
    )
}

impl Machine {
    /// Boots it and waits until it is off.
    ///
    /// # Errors
    /// It isn't off in time, or a job did not end with 0; the error shows the end of its console's
    /// log.
    pub(super) fn run(&self, jobs: &[Job], limit: Duration) -> Result<()> {
        let begun = Instant::now();
        let mut child = self.boot()?;
        let is_off = wait(&mut child, limit)?;
        let log = fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        let log = String::from_utf8_lossy(&log).replace('\r', "");
        let failed = failed(&log, jobs);
        let (name, seconds) = (self.name, begun.elapsed().as_secs());
        if is_off && failed.is_empty() {
            for line in (self.shown)(&log) {
                println!("kernel {name}: {line}");
            }
            println!("kernel {name}: passed in {seconds} s");
            return Ok(());
        }
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        let why =
            if is_off { "these failed" } else { "it was turned off at the limit, before these had passed" };
        bail!(
            "kernel {name}, {seconds} s: {why}: {}\n{end}\nthe whole log: {}",
            failed.join(", "),
            self.log.display()
        )
    }

    fn boot(&self) -> Result<Child> {
        let log = File::create(&self.log).with_context(|| format!("write {}", self.log.display()))?;
        let errors = log.try_clone().with_context(|| format!("write {}", self.log.display()))?;
        Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2"])
            .args(["-m", self.memory])
            .args(&self.devices)
            .args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio", "-net", "none"])
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .context("start qemu-system-x86_64; `cargo xtask setup` installs it")
    }
}

/// Waits until the machine is off. Returns whether it was in time; else it is turned off.
fn wait(child: &mut Child, limit: Duration) -> Result<bool> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if child.try_wait().context("wait for qemu")?.is_some() {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(200));
    }
    child.kill().context("end qemu")?;
    child.wait().context("wait for qemu")?;
    Ok(false)
}

/// The names of jobs of which the log doesn't say that they ended with 0.
fn failed(log: &str, jobs: &[Job]) -> Vec<&'static str> {
    let passed = |job: &Job| {
        let line = format!("{MARK} {} ended with 0", job.name);
        log.lines().any(|seen| seen.trim_end() == line)
    };
    jobs.iter().filter(|job| !passed(job)).map(|job| job.name).collect()
}

/// The lines of a log that are worth showing: how many fixtures ran, and how far the verifier is
/// from its limit.
pub(super) fn figures(log: &str) -> Vec<String> {
    let is_figure = |line: &&str| line.starts_with("fixtures: ") || line.contains("test result:");
    let walked = |line: &str| {
        let count = line.strip_suffix(" instructions walked")?.rsplit_once(' ')?.1;
        count.parse::<u32>().ok()
    };
    let most = log.lines().filter_map(|line| Some((walked(line)?, line))).max();
    log.lines().filter(is_figure).chain(most.map(|(_, line)| line)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOBS: [Job; 2] =
        [Job { name: "programs", arguments: "--nocapture" }, Job { name: "walk", arguments: "" }];

    #[test]
    fn a_job_has_passed_only_if_the_console_says_so() {
        let log = "mesh-vm: begun on 6.1.0\nmesh-vm: programs ended with 0\nmesh-vm: walk ended with 101\n";
        assert_eq!(failed(log, &JOBS), ["walk"]);
        assert_eq!(failed("Kernel panic", &JOBS), ["programs", "walk"], "it never began");
        assert_eq!(failed(&log.replace("101", "0"), &JOBS), Vec::<&str>::new());
    }

    #[test]
    fn the_figures_are_the_fixtures_and_the_longest_program() {
        let log = "mesh_xdp: 77440 instructions walked\nmesh_uplink: 180803 instructions walked\n\
                   fixtures: 1200, of which the kernel differs on 0\nnoise\n";
        let expected =
            ["fixtures: 1200, of which the kernel differs on 0", "mesh_uplink: 180803 instructions walked"];
        assert_eq!(figures(log), expected);
    }

    #[test]
    fn the_init_script_loads_modules_before_it_runs_jobs() {
        let script = init(&["udp_tunnel", "vxlan"], &JOBS);
        let at = |text: &str| script.find(text).unwrap_or_else(|| panic!("{text} in {script}"));
        assert!(at("insmod /modules/udp_tunnel.ko") < at("insmod /modules/vxlan.ko"));
        assert!(at("insmod /modules/vxlan.ko") < at("/tests/programs --nocapture"));
        assert!(at("/tests/walk") < at("sysrq-trigger"), "it is turned off at the end");
    }
}

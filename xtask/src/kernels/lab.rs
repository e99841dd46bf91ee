//! A whole lab of three nodes in a machine: engines, etcd, a manager and agents of this checkout's
//! binaries, on a stock kernel.
//!
//! The machine sees this one's file system, read-only, through an overlay in its memory. So it has
//! every program that a lab needs, at the paths that it has here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mesh_checkout::command::Program;
use mesh_checkout::workspace;

use super::archive::Archive;
use super::contents;
use super::machine::{Job, MARK};
use super::modules;
use super::packages::Kernel;

/// What the machine runs once it has its root: makes the lab and asks each node.
const SCRIPT: &str = include_str!("lab.sh");
/// The tag of the share with this machine's file system.
pub(super) const SHARE: &str = "root";
/// The only job of such a machine.
pub(super) const JOB: Job = Job { name: "lab", arguments: "" };

/// The modules that the machine needs to reach its root. All others are loaded from there.
const WANTED: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Builds what runs in the lab.
///
/// # Errors
/// cargo fails; it has printed why.
pub(super) fn build() -> Result<()> {
    let build = |words: &[&str], flags: Option<&str>| {
        let program = Program::cargo().args(["build", "--quiet"]).args(words).current_dir(workspace::root());
        match flags {
            Some(flags) => program.env("RUSTFLAGS", flags).run_shown(),
            None => program.run_shown(),
        }
    };
    build(&["--bins", "--workspace"], None)?;
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let whoami = ["--package", "mesh-tests", "--bin", "whoami", "--target", &target];
    build(&whoami, Some("-C target-feature=+crt-static"))
}

/// The initramfs of a machine that goes on with this machine's file system as its root.
///
/// # Errors
/// A file can't be read or written, or a program is missing.
pub(super) fn gather(kernel: &Kernel, directory: &Path) -> Result<Vec<u8>> {
    let (modules_dir, release) = kernel.release()?;
    let base = base_of(&modules_dir).context("find the base of the modules")?;
    Program::new("depmod").arg("-b").arg(base).arg(&release).run().context("next: cargo xtask setup")?;
    let script = directory.join("lab.sh");
    fs::write(&script, SCRIPT).with_context(|| format!("write {}", script.display()))?;
    let mut archive = Archive::default();
    archive.device("/dev/console", (5, 1));
    for place in ["/proc", "/sys", "/lower", "/memory", "/new"] {
        archive.directory(place);
    }
    let modules = modules::gather(&modules_dir, WANTED)?;
    let names: Vec<&str> = modules.iter().map(|(name, _)| name.as_str()).collect();
    archive.file("/init", true, init(&names, &modules_dir, &release, &script).as_bytes());
    for (name, module) in &modules {
        archive.file(&format!("/modules/{name}.ko"), false, module);
    }
    archive.file("/bin/busybox", true, &contents::busybox()?);
    Ok(archive.finish())
}

/// The first script: mounts the root and goes on there.
fn init(modules: &[&str], modules_dir: &Path, release: &str, script: &Path) -> String {
    let load = |name: &&str| format!("insmod /modules/{name}.ko || echo \"{MARK} can't load {name}\"\n");
    let loads = modules.iter().map(load).collect::<Vec<_>>().concat();
    let (modules_dir, script) = (modules_dir.display(), script.display());
    let checkout = workspace::root().display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin\n\
         mount -t proc proc /proc\n\
         {loads}\
         mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose {SHARE} /lower\n\
         mount -t tmpfs -o size=100% memory /memory\n\
         mkdir /memory/upper /memory/work\n\
         mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work root /new\n\
         mount -t proc proc /new/proc\n\
         mount -t sysfs sysfs /new/sys\n\
         mount -t devtmpfs devtmpfs /new/dev\n\
         mkdir -p /new/dev/pts /new/dev/shm\n\
         mount -t devpts devpts /new/dev/pts\n\
         for place in dev/shm run tmp var/lib/mesh-lab lib/modules; do\n\
         mkdir -p /new/$place; mount -t tmpfs tmpfs /new/$place\n\
         done\n\
         ln -s {modules_dir} /new/lib/modules/{release}\n\
         mount -t cgroup2 cgroup2 /new/sys/fs/cgroup\n\
         mount -t bpf bpf /new/sys/fs/bpf\n\
         export CHECKOUT='{checkout}' PATH='{path}'\n\
         exec /bin/switch_root /new /bin/sh {script}\n"
    )
}

/// The arguments of qemu that share this machine's file system.
pub(super) fn share() -> [String; 2] {
    let options = "security_model=none,readonly=on,multidevs=remap";
    ["-virtfs".to_owned(), format!("local,path=/,mount_tag={SHARE},{options}")]
}

/// The lines of the console's log that say what the lab did.
pub(super) fn told(log: &str) -> Vec<String> {
    let lines = log.lines().filter_map(|line| line.trim_end().strip_prefix(MARK));
    lines.map(|line| line.trim().to_owned()).collect()
}

/// The directory below which modules are in `lib/modules`, as depmod wants it.
fn base_of(modules_dir: &Path) -> Option<PathBuf> {
    // …/lib/modules/RELEASE
    modules_dir.parent()?.parent()?.parent().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_mounted_before_it_is_entered() {
        let script =
            init(&["9pnet", "9p"], Path::new("/k/lib/modules/6.1.0"), "6.1.0", Path::new("/k/lab.sh"));
        let at = |text: &str| script.find(text).unwrap_or_else(|| panic!("{text} in {script}"));
        assert!(at("insmod /modules/9pnet.ko") < at("insmod /modules/9p.ko"));
        assert!(at("insmod /modules/9p.ko") < at("mount -t 9p"));
        assert!(
            at("ln -s /k/lib/modules/6.1.0 /new/lib/modules/6.1.0")
                < at("switch_root /new /bin/sh /k/lab.sh")
        );
    }

    #[test]
    fn what_a_lab_did_is_what_its_script_says() {
        let log = "noise\r\nmesh-vm: node-1 answers\r\n[ 1.0] mesh-vm: not this\nmesh-vm: lab ended with 0\n";
        assert_eq!(told(log), ["node-1 answers", "lab ended with 0"]);
    }

    #[test]
    fn the_base_of_modules_is_where_their_path_begins() {
        assert_eq!(base_of(Path::new("/k/usr/lib/modules/6.12")), Some(PathBuf::from("/k/usr")));
        assert_eq!(base_of(Path::new("/")), None);
    }
}

//! Installs the Debian packages that mesh is built, run and tested with.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::Program;

/// A package, and the program that replaces it if it is installed by other means.
struct Package {
    name: &'static str,
    replaced_by: Option<&'static str>,
}

const fn package(name: &'static str) -> Package {
    Package { name, replaced_by: None }
}

const fn package_unless(name: &'static str, program: &'static str) -> Package {
    Package { name, replaced_by: Some(program) }
}

const PACKAGES: &[Package] = &[
    // Kernel programs: a rustc with a prebuilt core for bpfel-unknown-none, and the LLVM that
    // bpf-linker links.
    package("rustc-web"),
    package("cargo-web"),
    package("libstd-rust-web-dev-bpf"),
    package("llvm-22-dev"),
    package("libpolly-22-dev"),
    // etcd-client compiles etcd's protocol.
    package_unless("protobuf-compiler", "protoc"),
    package("libprotobuf-dev"),
    // The cluster's components. Docker's own packages would conflict with Debian's.
    package_unless("docker.io", "dockerd"),
    package_unless("etcd-server", "etcd"),
    package_unless("etcd-client", "etcdctl"),
    // The contents of the lab's images.
    package("nginx-light"),
    package("busybox-static"),
    // Applications that cluster tests run; no service of theirs is started here.
    package("mariadb-server-core"),
    package("mariadb-client-core"),
    package("docker-registry"),
    package("php8.2-fpm"),
    package("php8.2-mysql"),
    package("php8.2-redis"),
    package("redis-server"),
    // A client of docker.sock that the networks test runs.
    package("docker-compose"),
    // Namespaces, links and tools to inspect them.
    package("iproute2"),
    package("iptables"),
    package("nftables"),
    package("ethtool"),
    package("bpftool"),
    package("util-linux"),
    package("procps"),
    package("tar"),
    package("curl"),
    package("jq"),
    // `cargo xtask kernels` boots Debian's kernels, some of whose modules are compressed.
    package("qemu-system-x86"),
    package("kmod"),
    package("xz-utils"),
    // The load balancers that `cargo xtask bench peers` compares mesh with.
    package("haproxy"),
    package("libnginx-mod-stream"),
    // `cargo xtask soak clocks` sets its lab's clocks by it.
    package("libfaketime"),
    // systemd-analyze checks our units, systemd runs on machines of its own on which the packages
    // are installed, and dpkg-deb and strip make them; no service is started on this machine.
    package("systemd"),
    package("dpkg-dev"),
    // promtool checks our metrics.
    package_unless("prometheus", "promtool"),
];

/// Installs the packages that are missing.
///
/// # Errors
/// apt-get is missing or fails, or we aren't root.
pub(super) fn ensure() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!(
            "packages are missing: {list}\nnext: run `cargo xtask setup` as root, or `apt-get install {list}`"
        );
    }
    println!("setup: installing {list}");
    let _quiet = NoServices::declare()?;
    apt_get(&["update", "--quiet=2"])?;
    let mut install = vec!["install", "--quiet=2", "--yes", "--no-install-recommends"];
    install.extend(&missing);
    apt_get(&install)
}

/// The missing packages, by one query; a package that another program replaces isn't missing.
fn missing() -> Result<Vec<&'static str>> {
    // dpkg-query exits with 1 if it doesn't know one of them, and still lists the others.
    let listed = Program::new("sh")
        .args([
            "-c",
            r#"dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true"#,
        ])
        .arg("dpkg-query")
        .args(PACKAGES.iter().map(|p| p.name))
        .output()
        .context("ask dpkg for installed packages (mesh is developed on Debian)")?;
    let installed = installed(&listed);
    Ok(PACKAGES
        .iter()
        .filter(|p| !installed.contains(p.name) && p.replaced_by.is_none_or(|name| in_path(name).is_none()))
        .map(|p| p.name)
        .collect())
}

fn installed(listed: &str) -> BTreeSet<&str> {
    listed.lines().filter_map(|line| line.strip_prefix("installed ")).collect()
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

fn apt_get(args: &[&str]) -> Result<()> {
    Program::new("apt-get")
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run_shown()
        .context(
            "next: see that the machine reaches its Debian mirror (`apt-get update`), \
             that no other apt holds the lock, then run `cargo xtask setup` again",
        )
}

/// A `policy-rc.d` that answers 101, so that Debian starts no service when a package is installed.
/// One that exists already is left as it is; ours is removed with this value.
struct NoServices {
    ours: bool,
}

impl NoServices {
    const PATH: &'static str = "/usr/sbin/policy-rc.d";

    fn declare() -> Result<Self> {
        let path = Path::new(Self::PATH);
        if path.exists() {
            return Ok(Self { ours: false });
        }
        let write = || -> io::Result<()> {
            fs::write(path, "#!/bin/sh\nexit 101\n")?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        };
        write().with_context(|| format!("write {}, so that packages start no services", Self::PATH))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(Self::PATH)
        {
            eprintln!("setup: remove {} by hand: {error}", Self::PATH);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let seen =
            installed("installed curl\nconfig-files nginx-light\nnot-installed etcd-server\ninstalled tar\n");
        assert_eq!(seen, BTreeSet::from(["curl", "tar"]), "removed and unknown packages are missing");
    }

    #[test]
    fn no_package_is_named_twice() {
        let names: BTreeSet<_> = PACKAGES.iter().map(|p| p.name).collect();
        assert_eq!(names.len(), PACKAGES.len(), "expected each package once");
    }
}

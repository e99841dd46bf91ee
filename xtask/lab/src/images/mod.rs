//! The images that every engine of a lab gets: there is no registry, so they are made from files of
//! this machine.
//!
//! One archive holds them all, in the format of `docker save`, and every engine loads the same one:
//! so an image has the same id on every node, as if it had been pulled, and shared layers are
//! unpacked once. Real applications, which only some tests need, are made on request ([`give`]).

mod applications;
mod archive;
mod rootfs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mesh_checkout::command::Program;
use mesh_checkout::workspace;

pub use self::applications::Application;
use self::archive::{Archive, Config};
use super::component::unix_url;
use super::layout::NodeLayout;
use crate::artifacts::Binaries;

const NGINX_TAGS: [&str; 3] = ["latest", "1.10", "1.11"];
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the archive of all images and returns its path. It takes a fraction of a second, so
/// nothing is cached that could be stale; `whoami` must have been built.
pub(super) fn make(binaries: &Binaries, lab: &str) -> Result<PathBuf> {
    let directory = workspace::target_dir().join("lab-images").join(lab);
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    let roots = directory.join("roots");
    let mut archive = Archive::new(directory.join("archive"))?;

    let busybox = archive.layer(&rootfs::busybox(&roots.join("busybox"))?)?;
    archive.image(
        "busybox:latest",
        &[&busybox],
        &Config { cmd: vec!["sh"], env: vec![PATH], ..Config::default() },
    )?;

    let nginx = archive.layer(&rootfs::nginx(&roots.join("nginx"))?)?;
    for tag in NGINX_TAGS {
        let page = archive.layer(&rootfs::nginx_page(&roots.join(format!("nginx-{tag}")), tag)?)?;
        let config = Config {
            cmd: vec!["nginx", "-g", "daemon off;"],
            env: vec![PATH],
            ports: vec!["80/tcp"],
            stop_signal: Some("SIGQUIT"),
            ..Config::default()
        };
        archive.image(&format!("nginx:{tag}"), &[&busybox, &nginx, &page], &config)?;
    }

    let whoami = archive.layer(&rootfs::whoami(&roots.join("whoami"), binaries.whoami())?)?;
    let config =
        Config { entrypoint: vec!["/whoami"], ports: vec!["80/tcp", "7/tcp", "9/udp"], ..Config::default() };
    archive.image("whoami:latest", &[&whoami], &config)?;

    archive.finish(&directory.join("images.tar"))
}

/// Makes an application's image and loads it into these nodes' engines. It takes a few seconds, so
/// nothing is cached.
pub(super) fn give(application: Application, nodes: &[NodeLayout], lab: &str) -> Result<()> {
    let directory = workspace::target_dir().join("lab-images").join(format!("{lab}-{application:?}"));
    let archive = applications::make(application, &directory)?;
    let given = std::thread::scope(|scope| {
        let loads: Vec<_> = nodes.iter().map(|node| scope.spawn(|| load(node, &archive))).collect();
        loads.into_iter().try_for_each(|one| {
            one.join().unwrap_or_else(|_| Err(anyhow::anyhow!("loading an image panicked")))
        })
    });
    fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))?;
    given
}

/// Loads the images into a node's engine, which must be ready.
pub(super) fn load(node: &NodeLayout, archive: &Path) -> Result<()> {
    Program::new("docker")
        .args(["--host", &unix_url(&node.engine_socket()), "load", "--quiet", "--input"])
        .arg(archive)
        .without_env("DOCKER_CONTEXT")
        .run()
        .with_context(|| format!("give the images to {}", node.name()))
}

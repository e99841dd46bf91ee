//! The files of each image, from Debian's packages on this machine.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use mesh_checkout::command::Program;

const NGINX: &str = "/usr/sbin/nginx";
const BUSYBOX: &str = "/bin/busybox";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// Logs to stdout, with the client's address first, as nginx' own image does.
const NGINX_CONF: &str = "\
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 16384; }
http {
    default_type text/plain;
    types { text/html html; }
    access_log /dev/stdout combined;
    keepalive_timeout 65;
    server {
        listen 80 default_server backlog=4096;
        root /usr/share/nginx/html;
        add_header X-Task $hostname always;
    }
}
";

/// A shell and its tools: busybox-static under all its names.
pub(super) fn busybox(root: &Path) -> Result<PathBuf> {
    install(Path::new(BUSYBOX), &root.join("bin/busybox"))?;
    let applets = Program::new(BUSYBOX).arg("--list").output()?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        let link = root.join("bin").join(applet);
        symlink("busybox", &link).with_context(|| format!("link {}", link.display()))?;
    }
    write(root, "etc/passwd", PASSWD)?;
    write(root, "etc/group", GROUP)?;
    make_dir(root, "root")?;
    make_open_dir(root, "tmp")?;
    Ok(root.to_owned())
}

/// Debian's nginx with its libraries; a layer on top of busybox.
pub(super) fn nginx(root: &Path) -> Result<PathBuf> {
    program(root, Path::new(NGINX))?;
    write(root, "etc/nginx/nginx.conf", NGINX_CONF)?;
    ["run", "var/log/nginx", "var/lib/nginx"].iter().try_for_each(|directory| make_dir(root, directory))?;
    Ok(root.to_owned())
}

/// A program with its libraries, at the paths that they have on this machine.
pub(super) fn program(root: &Path, program: &Path) -> Result<()> {
    let place = |file: &Path| root.join(file.strip_prefix("/").unwrap_or(file));
    install(program, &place(program))?;
    let libraries = Program::new("ldd").arg(program).output()?;
    libraries_of(&libraries).try_for_each(|library| install(library, &place(library)))
}

/// A page that shows the image's tag.
pub(super) fn nginx_page(root: &Path, tag: &str) -> Result<PathBuf> {
    let page = format!("<!DOCTYPE html>\n<title>nginx:{tag}</title>\n<h1>Welcome to nginx:{tag}</h1>\n");
    write(root, "usr/share/nginx/html/index.html", &page)?;
    Ok(root.to_owned())
}

/// The test server, which is static and needs no other file.
pub(super) fn whoami(root: &Path, binary: &Path) -> Result<PathBuf> {
    let linked = Program::new("ldd").arg(binary).succeeds();
    if linked && !is_static(binary)? {
        bail!("{} isn't statically linked, so it can't be an image by itself", binary.display());
    }
    install(binary, &root.join("whoami"))?;
    Ok(root.to_owned())
}

fn is_static(binary: &Path) -> Result<bool> {
    Ok(libraries_of(&Program::new("ldd").arg(binary).output()?).next().is_none())
}

/// The absolute paths in the output of `ldd`: `libz.so.1 => /lib/…/libz.so.1 (0x…)` and the
/// loader's own line.
fn libraries_of(ldd: &str) -> impl Iterator<Item = &Path> {
    ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).map(Path::new)
}

/// Copies a program or library, following links, to the path by which it is looked up.
pub(super) fn install(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    mark_executable(to)
}

pub(super) fn mark_executable(file: &Path) -> Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("mark {}", file.display()))
}

/// A directory that every user of the image may write to.
pub(super) fn make_open_dir(root: &Path, name: &str) -> Result<()> {
    make_dir(root, name)?;
    fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o1777))
        .with_context(|| format!("open up {name}"))
}

pub(super) fn write(root: &Path, name: &str, text: &str) -> Result<()> {
    let file = root.join(name);
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}

fn make_dir(root: &Path, name: &str) -> Result<()> {
    let directory = root.join(name);
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f9c03054000)\n\
                   \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f9c02d51000)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f9c03056000)\n";
        let seen: Vec<&Path> = libraries_of(ldd).collect();
        let expected = ["/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"].map(Path::new);
        assert_eq!(seen, expected, "the library and the loader, not the kernel's vdso");
        assert_eq!(libraries_of("\tstatically linked\n").count(), 0, "a static program needs none");
    }
}

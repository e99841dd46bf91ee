//! The pins of maps and links: `DIR/<abi hash>/{maps,links,tasks}/`.
//!
//! Invariants: a pinned map is used only by programs of the same layouts, as the layouts' hash is
//! in its path. Links of another hash are found too, so that a new version can take them over
//! without a gap. Only root can open a pin: whoever opens one can read and write the map.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mesh_ebpf::abi::ABI_HASH;
use rustix::mount::MountFlags;
use tracing::warn;

use super::error::DatapathError;

/// `f_type` of a BPF file system, from linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// The directories of one agent.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    root: PathBuf,
    current: PathBuf,
}

impl Pins {
    /// The paths below `root`; touches nothing.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), current: root.join(format!("{ABI_HASH:016x}")) }
    }

    /// Makes the directories, and mounts a BPF file system at the root unless it is on one. Those
    /// that mesh makes get mode 0700; a mount point that somebody else made at the root keeps its
    /// mode.
    ///
    /// # Errors
    /// A directory or the mount is refused.
    pub(super) fn prepare(&self) -> Result<(), DatapathError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DatapathError::Bpffs { path, source }
        };
        std::fs::create_dir_all(&self.root).map_err(failed(&self.root))?;
        if !is_bpffs(&self.root).map_err(failed(&self.root))? {
            rustix::mount::mount("bpf", &self.root, "bpf", MountFlags::empty(), Some(c"mode=0700"))
                .map_err(|error| failed(&self.root)(error.into()))?;
        }
        if !is_mount_point(&self.root).map_err(failed(&self.root))? {
            make_private(&self.root).map_err(failed(&self.root))?;
        }
        for path in [
            self.current.clone(),
            self.current.join("maps"),
            self.current.join("links"),
            self.current.join("tasks"),
        ] {
            std::fs::create_dir_all(&path).map_err(failed(&path))?;
        }
        make_private(&self.current).map_err(failed(&self.current))
    }

    /// A map's pin.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.current.join("maps").join(name)
    }

    /// The pin of the link that attaches a program to an interface of the node.
    pub(super) fn link(&self, interface: &str, hook: &str) -> PathBuf {
        self.current.join("links").join(file_name(&format!("{interface}-{hook}")))
    }

    /// The pin of the link that attaches a task's program.
    pub(super) fn task(&self, task: &str) -> PathBuf {
        self.current.join("tasks").join(file_name(task))
    }

    /// The pin of the link that attaches a program to a container's host-side veth, for a veth
    /// whose task isn't known.
    pub(super) fn veth(&self, ifindex: u32) -> PathBuf {
        self.task(&format!("veth{ifindex}"))
    }

    /// A pin of this version by its name: `links/eth0-tc`, `tasks/<task>`.
    pub(super) fn named(&self, name: &str) -> PathBuf {
        self.current.join(name)
    }

    /// The name of a pin of this version, the same in every version.
    pub(super) fn name(&self, pin: &Path) -> String {
        pin.strip_prefix(&self.current).unwrap_or(pin).to_string_lossy().into_owned()
    }

    /// The pins of links on containers' veths, of every version.
    pub(super) fn tasks(&self) -> Vec<PathBuf> {
        let versions = std::iter::once(self.current.clone()).chain(self.others());
        versions.flat_map(|version| entries(&version.join("tasks"))).collect()
    }

    /// The directories of links' pins, tasks' included.
    pub(super) fn links(&self) -> Vec<PathBuf> {
        ["links", "tasks"].iter().flat_map(|directory| entries(&self.current.join(directory))).collect()
    }

    /// The same pin as another version of mesh would have made it.
    pub(super) fn elsewhere(&self, pin: &Path) -> Option<PathBuf> {
        let relative = pin.strip_prefix(&self.current).ok()?;
        self.others().into_iter().map(|other| other.join(relative)).find(|pin| pin.exists())
    }

    /// Directories of other versions.
    pub(super) fn others(&self) -> Vec<PathBuf> {
        let mut others = versions(&self.root);
        others.retain(|path| *path != self.current);
        others
    }

    /// Removes what other versions left, once no task of theirs is attached any more.
    pub(super) fn forget_others(&self, is_attached: impl Fn(&Path) -> bool) {
        for other in self.others() {
            if entries(&other.join("tasks")).iter().any(|pin| is_attached(pin)) {
                continue;
            }
            if let Err(error) = std::fs::remove_dir_all(&other) {
                warn!(pins = %other.display(), error = mesh_runtime::error_chain(&error), "can't remove what another version of mesh left");
            }
        }
    }

    /// Removes every pin, of all versions, and the mount if it is mesh's. Returns the directories
    /// of the versions.
    ///
    /// # Errors
    /// Something can't be removed.
    pub(super) fn remove(&self) -> Result<Vec<PathBuf>, DatapathError> {
        let failed = |source| DatapathError::Bpffs { path: self.root.clone(), source };
        let mut removed = Vec::new();
        if !self.root.exists() {
            return Ok(removed);
        }
        if is_bpffs(&self.root).map_err(failed)? {
            for path in versions(&self.root) {
                std::fs::remove_dir_all(&path).map_err(failed)?;
                removed.push(path);
            }
            if is_mount_point(&self.root).map_err(failed)? {
                rustix::mount::unmount(&self.root, rustix::mount::UnmountFlags::DETACH)
                    .map_err(|error| failed(error.into()))?;
            }
        }
        match std::fs::remove_dir(&self.root) {
            // Somebody else's mount point: the directory is theirs.
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(removed),
            result => result.map(|()| removed).map_err(failed),
        }
    }
}

/// BPF file systems reserve the dot.
fn file_name(name: &str) -> String {
    name.replace('.', "%").replace('/', "_")
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}

/// The directories that versions of mesh made: a file system may have entries of its own at its
/// root.
fn versions(root: &Path) -> Vec<PathBuf> {
    let is_version = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let mut versions = entries(root);
    versions.retain(is_version);
    versions
}

/// Removes others' permissions on a directory.
fn make_private(directory: &Path) -> io::Result<()> {
    const PRIVATE: u32 = 0o700;
    if std::fs::metadata(directory)?.permissions().mode() & 0o777 == PRIVATE {
        return Ok(());
    }
    std::fs::set_permissions(directory, Permissions::from_mode(PRIVATE))
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(u32::try_from(rustix::fs::statfs(path)?.f_type).is_ok_and(|kind| kind == BPF_FS_MAGIC))
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else { return Ok(true) };
    Ok(rustix::fs::stat(path)?.st_dev != rustix::fs::stat(parent)?.st_dev)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_lie_under_the_hash_and_have_no_dots() {
        let pins = Pins::new(Path::new("/sys/fs/bpf/mesh"));
        let hash = format!("{ABI_HASH:016x}");
        assert_eq!(pins.map("SLOTS"), PathBuf::from(format!("/sys/fs/bpf/mesh/{hash}/maps/SLOTS")));
        let link = pins.link("eth0.100", "tc");
        let name = link.file_name().and_then(|name| name.to_str());
        assert_eq!(name, Some("eth0%100-tc"), "BPF file systems refuse dots");
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("it exists").permissions().mode() & 0o777
    }

    #[test]
    fn nobody_but_root_gets_to_a_pin() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "CI must run the privileged tests as root");
            eprintln!("skipped: this test needs root");
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let own = Pins::new(&directory.path().join("own"));
        own.prepare().expect("it is mounted");
        assert_eq!([mode(&own.root), mode(&own.current)], [0o700; 2], "a mount of mesh's own");
        own.remove().expect("it is unmounted");

        let shared = directory.path().join("shared");
        std::fs::create_dir(&shared).expect("a directory");
        rustix::mount::mount("bpf", &shared, "bpf", MountFlags::empty(), Some(c"mode=1777"))
            .expect("a mount");
        let below = Pins::new(&shared.join("mesh"));
        std::fs::create_dir(&below.root).expect("an earlier agent's directory");
        std::fs::set_permissions(&below.root, Permissions::from_mode(0o755)).expect("with its mode");
        let at = Pins::new(&shared);
        let prepared = below.prepare().and_then(|()| at.prepare());
        let modes =
            prepared.map(|()| [mode(&below.root), mode(&below.current), mode(&shared), mode(&at.current)]);
        let removed = below.remove();
        rustix::mount::unmount(&shared, rustix::mount::UnmountFlags::DETACH).expect("it is unmounted");
        assert_eq!(modes.expect("it is prepared"), [0o700, 0o700, 0o777, 0o700], "on a mount of others");
        removed.expect("what is mesh's own goes");
    }
}

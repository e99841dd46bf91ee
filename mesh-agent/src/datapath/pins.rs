//! Where maps and links are pinned: `DIR/<abi hash>/{maps,links,tasks}/`.
//!
//! Invariants: a pinned map is only ever met by programs of the same layouts, as the layouts' hash is in its path. Links of another
//! hash are found too, so that a new version can take them over without a gap.

use std::io;
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

    /// Makes the directories, and mounts a BPF file system at the root if it lies on none.
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
        for directory in ["maps", "links", "tasks"] {
            let path = self.current.join(directory);
            std::fs::create_dir_all(&path).map_err(failed(&path))?;
        }
        Ok(())
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

    /// The pins that hold links, tasks' included.
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
                warn!(pins = %other.display(), %error, "can't remove what another version of mesh left");
            }
        }
    }

    /// Removes every pin, of all versions, and the mount if there is one of our own.
    ///
    /// # Errors
    /// Something can't be removed.
    pub(super) fn remove(&self) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Bpffs { path: self.root.clone(), source };
        if !self.root.exists() {
            return Ok(());
        }
        if is_bpffs(&self.root).map_err(failed)? {
            for path in versions(&self.root) {
                std::fs::remove_dir_all(&path).map_err(failed)?;
            }
            if is_mount_point(&self.root).map_err(failed)? {
                rustix::mount::unmount(&self.root, rustix::mount::UnmountFlags::DETACH)
                    .map_err(|error| failed(error.into()))?;
            }
        }
        match std::fs::remove_dir(&self.root) {
            // Somebody else's mount point: the directory is theirs.
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(()),
            result => result.map_err(failed),
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

/// The directories that versions of mesh made: a file system may have entries of its own at its root.
fn versions(root: &Path) -> Vec<PathBuf> {
    let is_version = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let mut versions = entries(root);
    versions.retain(is_version);
    versions
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
}

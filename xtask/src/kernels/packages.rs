//! Gets the newest kernel of a series from Debian's mirror, once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mesh_checkout::command::Program;

/// An unpacked kernel package.
#[derive(Debug)]
pub(super) struct Kernel {
    directory: PathBuf,
}

impl Kernel {
    /// The newest kernel of this series, below `directory`. One that is there already does when
    /// the mirror is out of reach.
    pub(super) fn get(series: &str, directory: &Path) -> Result<Self> {
        let Some(package) = newest(series) else {
            let unpacked = unpacked(series, directory)?;
            return unpacked.with_context(|| {
                format!(
                    "find a kernel {series}: apt knows none; next: see that the sources of apt have Debian 12 \
                     (bookworm and bookworm-security), and run `apt-get update`"
                )
            });
        };
        let kernel = Self { directory: directory.join(&package) };
        if kernel.image().is_err() {
            println!("kernels: downloading {package}");
            kernel.download(&package)?;
        }
        Ok(kernel)
    }

    fn download(&self, package: &str) -> Result<()> {
        let partial = self.directory.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
        }
        fs::create_dir_all(&partial).with_context(|| format!("make {}", partial.display()))?;
        Program::new("apt-get")
            .args(["--quiet=2", "-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(&partial)
            .run()
            .context("next: run `apt-get update`, and see that the machine reaches its Debian mirror")?;
        let archive = only(&partial, |_| true)?;
        Program::new("dpkg").arg("-x").arg(&archive).arg(&partial).run()?;
        fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
        fs::rename(&partial, &self.directory)
            .with_context(|| format!("rename {} to {}", partial.display(), self.directory.display()))
    }

    /// The kernel's image.
    pub(super) fn image(&self) -> Result<PathBuf> {
        only(&self.directory.join("boot"), |name| name.starts_with("vmlinuz-"))
    }

    /// The directory of its modules, and the kernel's release, which is that directory's name.
    pub(super) fn release(&self) -> Result<(PathBuf, String)> {
        let modules = self.modules()?;
        let release = modules.file_name().and_then(|name| name.to_str()).context("a kernel's release")?;
        Ok((modules.clone(), release.to_owned()))
    }

    /// The directory of its modules.
    pub(super) fn modules(&self) -> Result<PathBuf> {
        // Without a link from /lib to /usr/lib, a package has them in one of the two.
        let below = [self.directory.join("lib/modules"), self.directory.join("usr/lib/modules")];
        let found = below.iter().find(|directory| directory.is_dir());
        only(found.context("find the modules of the kernel's package")?, |_| true)
    }
}

/// The only entry of a directory that is `wanted`.
fn only(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_wanted = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted);
    paths.find(is_wanted).with_context(|| format!("find the file in {}", directory.display()))
}

/// The package that Debian's metapackages name for this series.
fn newest(series: &str) -> Option<String> {
    // The first is that of the release itself, the second that of a newer series in bookworm.
    for metapackage in ["linux-image-amd64".to_owned(), format!("linux-image-{series}-amd64")] {
        let listed = Program::new("apt-cache").args(["depends", &metapackage]).output();
        let Ok(listed) = listed else { continue };
        if let Some(package) = named(&listed, series) {
            return Some(package.to_owned());
        }
    }
    None
}

/// The package of this series in the output of `apt-cache depends`.
fn named<'a>(listed: &'a str, series: &str) -> Option<&'a str> {
    let prefix = format!("linux-image-{series}.");
    listed.split_whitespace().find(|word| word.starts_with(&prefix))
}

/// The newest unpacked kernel of a series.
fn unpacked(series: &str, directory: &Path) -> Result<Option<Kernel>> {
    let prefix = format!("linux-image-{series}.");
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    let kernels = entries.filter_map(|entry| Some(Kernel { directory: entry.ok()?.path() }));
    let is_whole = |kernel: &Kernel| {
        let name = kernel.directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&prefix) && kernel.image().is_ok()
    };
    Ok(kernels.filter(is_whole).max_by(|one, other| one.directory.cmp(&other.directory)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_not_taken_for_another() {
        let listed = "linux-image-amd64\n  Depends: linux-image-6.1.0-55-amd64\n";
        assert_eq!(named(listed, "6.1"), Some("linux-image-6.1.0-55-amd64"));
        assert_eq!(named(listed, "6.12"), None);
        let listed = "linux-image-6.12-amd64\n  Depends: linux-image-6.12.117+deb12-amd64\n";
        assert_eq!(named(listed, "6.1"), None);
        assert_eq!(named(listed, "6.12"), Some("linux-image-6.12.117+deb12-amd64"));
    }

    #[test]
    fn without_a_mirror_the_newest_unpacked_kernel_does() {
        let directory = tempfile::tempdir().unwrap();
        assert!(unpacked("6.1", directory.path()).unwrap().is_none());
        for (name, is_whole) in
            [("linux-image-6.1.0-54-amd64", true), ("linux-image-6.1.0-55-amd64", false), ("6.1.log", false)]
        {
            fs::create_dir_all(directory.path().join(name).join("boot")).unwrap();
            if is_whole {
                fs::write(directory.path().join(name).join("boot/vmlinuz-6.1"), "").unwrap();
            }
        }
        let found = unpacked("6.1", directory.path()).unwrap().unwrap();
        assert!(found.directory.ends_with("linux-image-6.1.0-54-amd64"), "{found:?}");
    }
}

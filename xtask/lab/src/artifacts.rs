//! Builds the binaries of a lab, and knows their paths.
//!
//! The agent's own build script compiles the kernel programs.

use std::path::{Path, PathBuf};

use anyhow::Result;

use mesh_checkout::command::Program;
use mesh_checkout::workspace;

/// The binaries of one build.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
    whoami: PathBuf,
}

impl Binaries {
    /// The paths at which [`build`] puts them, whether or not they have been built.
    pub fn expected() -> Self {
        let target = workspace::target_dir();
        Self {
            directory: target.join("debug"),
            whoami: target.join(static_target()).join("debug").join("whoami"),
        }
    }

    /// The directory of all of them but `whoami`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The program `mesh-agent`.
    pub fn agent(&self) -> PathBuf {
        self.directory.join("mesh-agent")
    }

    /// The program `mesh-control`.
    pub fn control(&self) -> PathBuf {
        self.directory.join("mesh-control")
    }

    /// The operator's command `mesh`.
    pub fn mesh(&self) -> PathBuf {
        self.directory.join("mesh")
    }

    /// The test server, statically linked so that it makes an image by itself.
    pub fn whoami(&self) -> &Path {
        &self.whoami
    }
}

/// Builds all binaries of a lab, in the dev profile. With `MESH_LAB_PREBUILT` set they are there
/// already, on a machine that can't build.
///
/// # Errors
/// cargo fails; it has printed why.
pub fn build() -> Result<Binaries> {
    if std::env::var_os("MESH_LAB_PREBUILT").is_some() {
        return Ok(Binaries::expected());
    }
    Program::cargo()
        .args(["build", "--quiet", "--bins", "--workspace"])
        .current_dir(workspace::root())
        .run_shown()?;
    build_whoami()?;
    Ok(Binaries::expected())
}

/// Builds only the test server, which is all that a bare lab needs.
///
/// # Errors
/// As for [`build`].
pub fn build_whoami() -> Result<Binaries> {
    // With --target, the flags apply neither to build scripts nor to the artifacts of ordinary
    // builds.
    Program::cargo()
        .args([
            "build",
            "--quiet",
            "--package",
            "mesh-tests",
            "--bin",
            "whoami",
            "--target",
            &static_target(),
        ])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(workspace::root())
        .run_shown()?;
    Ok(Binaries::expected())
}

fn static_target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

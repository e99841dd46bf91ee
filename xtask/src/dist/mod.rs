//! `cargo xtask dist`: makes the Debian packages mesh-agent, mesh-control and mesh.
//!
//! The binaries write their own manual pages and completions. Everything that is not in the
//! checkout is put into `target/dist/stage`, where the packages' metadata (`package.metadata.deb`)
//! expects it. Each package that is made is checked ([`listing`]).

mod listing;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use mesh_checkout::command::Program;
use mesh_checkout::{setup, workspace};

use listing::Listing;

/// Arguments of `cargo xtask dist`.
#[derive(Debug, Args)]
pub struct DistArgs {
    /// The build to package. `dev` is what the tests build: quick, for trying packages out
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
}

/// A build profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Optimised, for machines that serve
    Release,
    /// As the tests build it
    Dev,
}

impl Profile {
    /// Its directory in cargo's target directory.
    fn directory(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "debug",
        }
    }
}

/// A package: its name, its crate, and the variant of the crate's metadata.
struct Package {
    name: &'static str,
    krate: &'static str,
    variant: Option<&'static str>,
    /// Files that it must have.
    files: &'static [&'static str],
    /// Its maintainer scripts.
    scripts: &'static [&'static str],
}

const PACKAGES: [Package; 3] = [
    Package {
        name: "mesh-agent",
        krate: "mesh-agent",
        variant: None,
        files: &[
            "usr/sbin/mesh-agent",
            "etc/mesh/agent.toml",
            "usr/lib/systemd/system/mesh-agent.service",
            "usr/share/man/man1/mesh-agent.1.gz",
        ],
        scripts: &["postinst", "prerm", "postrm"],
    },
    Package {
        name: "mesh-control",
        krate: "mesh-control",
        variant: None,
        files: &[
            "usr/sbin/mesh-control",
            "etc/mesh/control.toml",
            "usr/lib/systemd/system/mesh-control.service",
            "usr/share/man/man1/mesh-control.1.gz",
        ],
        scripts: &["postinst", "prerm", "postrm"],
    },
    Package {
        name: "mesh",
        krate: "mesh-control",
        variant: Some("cli"),
        files: &[
            "usr/bin/mesh",
            "usr/share/bash-completion/completions/mesh",
            "usr/share/zsh/vendor-completions/_mesh",
            "usr/share/fish/vendor_completions.d/mesh.fish",
            "usr/share/man/man1/mesh.1.gz",
            "usr/share/man/man1/mesh-check.1.gz",
            "usr/share/man/man1/mesh-status.1.gz",
        ],
        scripts: &["postinst"],
    },
];

const BINARIES: [&str; 3] = ["mesh-agent", "mesh-control", "mesh"];

/// Makes the packages and prints their paths.
///
/// # Errors
/// Something can't be built, or a package is not as it must be.
pub fn run(args: &DistArgs) -> Result<()> {
    setup::ensure()?;
    make(args.profile)
}

/// Makes and checks the packages from binaries of `profile`.
pub(crate) fn make(profile: Profile) -> Result<()> {
    setup::cargo_deb::ensure()?;
    build(profile)?;
    let output = workspace::root().join("target/dist");
    let stage = output.join("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("clear {}", stage.display()))?;
    }
    fs::create_dir_all(stage.join("completions")).with_context(|| format!("make {}", stage.display()))?;
    for name in BINARIES {
        let built = workspace::target_dir().join(profile.directory()).join(name);
        // The symbols of functions stay: backtraces in logs name them.
        Program::new("strip").arg("--strip-debug").arg("-o").arg(stage.join(name)).arg(built).run()?;
    }
    write_pages(&stage)?;
    for package in &PACKAGES {
        let file = pack(package, &output)?;
        let found = check(package, &file)?;
        ensure!(found.is_empty(), "{}: {}", file.display(), found.join("; "));
    }
    Ok(())
}

/// With the features of the whole workspace, as for tests: see [`crate::nested`].
fn build(profile: Profile) -> Result<()> {
    let mut cargo = Program::cargo().args(["build", "--quiet", "--workspace"]);
    if profile == Profile::Release {
        cargo = cargo.arg("--release");
    }
    cargo.args(BINARIES.iter().flat_map(|name| ["--bin", name])).current_dir(workspace::root()).run_shown()
}

/// Lets the binaries write their manual pages, and `mesh` its completions.
fn write_pages(stage: &Path) -> Result<()> {
    let pages = |name: &str| stage.join("man").join(name);
    for (binary, name) in [("mesh-agent", "agent"), ("mesh-control", "control")] {
        let daemon = Program::new(stage.join(binary)).env("MESH_CONFIG", "/dev/null");
        daemon.arg("--write-man-pages").arg(pages(name)).run()?;
    }
    Program::new(stage.join("mesh")).arg("man-pages").arg(pages("cli")).run()?;
    for (shell, file) in [("bash", "mesh.bash"), ("zsh", "_mesh"), ("fish", "mesh.fish")] {
        let text = Program::new(stage.join("mesh")).args(["completions", shell]).output()?;
        let path = stage.join("completions").join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Makes a package; returns its file.
fn pack(package: &Package, output: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let file = output.join(format!("{}_{version}_{}.deb", package.name, architecture()?));
    Program::cargo()
        .args(["deb", "--no-build", "--no-strip", "--fast", "--quiet", "--package", package.krate])
        .args(package.variant.iter().flat_map(|variant| ["--variant", variant]))
        .arg("--output")
        .arg(&file)
        .current_dir(workspace::root())
        .run_shown()
        .with_context(|| format!("make the package {}", package.name))?;
    Ok(file)
}

fn architecture() -> Result<String> {
    Ok(Program::new("dpkg").arg("--print-architecture").output()?.trim().to_owned())
}

/// What is wrong with a package.
fn check(package: &Package, file: &Path) -> Result<Vec<String>> {
    let contents = Program::new("dpkg-deb").arg("--contents").arg(file).output()?;
    let Some(contents) = Listing::parse(&contents) else {
        bail!("dpkg-deb lists {} in an unknown form", file.display())
    };
    let unpacked = file.with_extension("control");
    let _absent = fs::remove_dir_all(&unpacked);
    Program::new("dpkg-deb").arg("--control").arg(file).arg(&unpacked).run()?;
    let mut found = contents.findings(package.files);
    let conffiles = fs::read_to_string(unpacked.join("conffiles")).unwrap_or_default();
    found.extend(contents.not_kept(&conffiles));
    for script in package.scripts {
        if !Program::new("sh").arg("-n").arg(unpacked.join(script)).succeeds() {
            found.push(format!("the maintainer script {script} is missing or no shell script"));
        }
    }
    fs::remove_dir_all(&unpacked).with_context(|| format!("remove {}", unpacked.display()))?;
    Ok(found)
}

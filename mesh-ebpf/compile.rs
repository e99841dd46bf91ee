//! Compiles the kernel programs of this package from source: part of `mesh-agent`'s build script,
//! and of `cargo xtask bench`.
//!
//! The programs need their own toolchain: Debian's `rustc-web` (with a prebuilt `core` for the
//! target) and `bpf-linker` against the same LLVM. `cargo xtask setup` installs both; nothing is
//! downloaded here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Debian's toolchain for web and eBPF targets.
const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const LINKER: &str = "bpf-linker";
const TARGET: &str = "bpfel-unknown-none";
/// Atomic read-modify-write instructions need the third generation; BTF is what names map types to
/// people and tools.
const RUSTFLAGS: &str = "-C target-cpu=v3 -C linker=bpf-linker -C link-arg=--btf";
/// Variables that cargo sets for the calling build script, and that the inner build must not see.
const OUTER_BUILD: [&str; 9] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTUP_TOOLCHAIN",
    "TARGET",
];
/// What the user should do if the toolchain is missing.
const SETUP: &str = "Run `cargo xtask setup`, which installs the Debian packages rustc-web, cargo-web and \
                     libstd-rust-web-dev-bpf, and bpf-linker";

/// Compiles the package in `programs`, below `target_dir`; returns where `objects` are then.
pub(crate) fn compile(programs: &Path, target_dir: &Path, objects: &[&str]) -> Result<Vec<PathBuf>, String> {
    let path = search_path()?;
    check_toolchain(&path)?;
    let mut cargo = Command::new(CARGO);
    for name in OUTER_BUILD {
        cargo.env_remove(name);
    }
    let status = cargo
        .current_dir(programs)
        .env("PATH", path)
        .env("RUSTC", RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", RUSTFLAGS)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--bins",
            "--profile",
            "bpf",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(target_dir)
        .status()
        .map_err(|error| format!("{CARGO} can't be started: {error}. {SETUP}"))?;
    if !status.success() {
        return Err(format!(
            "the kernel programs don't compile ({status}), see above. If the target is missing: {SETUP}"
        ));
    }
    let compiled = |object| {
        let path = target_dir.join(TARGET).join("bpf").join(object);
        fs::metadata(&path)
            .map_err(|error| format!("the object {} can't be read: {error}", path.display()))?;
        Ok(path)
    };
    objects.iter().map(compiled).collect()
}

/// `PATH` with the directory that `cargo install` puts the linker into.
fn search_path() -> Result<std::ffi::OsString, String> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = home.map(|home| home.join("bin")).into_iter().chain(env::split_paths(&path));
    env::join_paths(directories).map_err(|error| format!("PATH can't be extended: {error}"))
}

/// Names what is missing before the compiler does so less clearly.
fn check_toolchain(path: &std::ffi::OsStr) -> Result<(), String> {
    let mut missing: Vec<&str> =
        [CARGO, RUSTC].into_iter().filter(|tool| !Path::new(tool).exists()).collect();
    if !env::split_paths(path).any(|directory| directory.join(LINKER).exists()) {
        missing.push(LINKER);
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("the toolchain for kernel programs is incomplete, missing: {}. {SETUP}", missing.join(", ")))
}

//! Compiles the kernel programs of `mesh-ebpf` from source, and tells the crate where the objects are:
//! `env!("MESH_PROGRAMS_OBJECT")` for the data plane, `env!("MESH_PASS_OBJECT")` for the far ends of veth uplinks.
//!
//! The programs need their own toolchain: Debian's `rustc-web` (with a prebuilt `core` for the target) and
//! `bpf-linker` against the same LLVM. `cargo xtask setup` installs both; nothing is downloaded here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// Debian's toolchain for web and eBPF targets.
const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const LINKER: &str = "bpf-linker";
const TARGET: &str = "bpfel-unknown-none";
/// Atomic read-modify-write instructions need the third generation; BTF is what names map types to people and tools.
const RUSTFLAGS: &str = "-C target-cpu=v3 -C linker=bpf-linker -C link-arg=--btf";
/// Objects, and the variables that tell where they are.
const OBJECTS: [(&str, &str); 2] =
    [("mesh-programs", "MESH_PROGRAMS_OBJECT"), ("mesh-pass", "MESH_PASS_OBJECT")];
/// What cargo sets for this script, and the inner build must not see.
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

fn main() -> Result<(), String> {
    let programs = variable("CARGO_MANIFEST_DIR")?.join("../mesh-ebpf");
    for source in ["src", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", programs.join(source).display());
    }
    let path = search_path()?;
    check_toolchain(&path)?;
    let target_dir = variable("OUT_DIR")?.join("bpf");
    compile(&programs, &target_dir, &path)?;
    for (object, variable) in OBJECTS {
        let object = target_dir.join(TARGET).join("bpf").join(object);
        println!("cargo::rustc-env={variable}={}", object.display());
    }
    println!("cargo::rustc-env=MESH_RUSTC={}", compiler_version()?);
    println!("cargo::rerun-if-env-changed=MESH_REVISION");
    Ok(())
}

/// The version of the compiler of this crate, for `mesh_build_info`.
fn compiler_version() -> Result<String, String> {
    let output = Command::new(variable("RUSTC")?)
        .arg("--version")
        .output()
        .map_err(|error| format!("rustc can't be asked for its version: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.split_whitespace().nth(1).unwrap_or("unknown").to_owned())
}

/// A path that cargo passes in a variable.
fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("{name} is not set: run this through cargo"))
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

/// The next step, whatever went wrong.
const SETUP: &str = "Run `cargo xtask setup`, which installs the Debian packages rustc-web, cargo-web and \
                     libstd-rust-web-dev-bpf, and bpf-linker";

/// Compiles the programs.
fn compile(programs: &Path, target_dir: &Path, path: &std::ffi::OsStr) -> Result<(), String> {
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
        .args(["build", "--locked", "--bins", "--profile", "bpf", "--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .status()
        .map_err(|error| format!("{CARGO} can't be started: {error}. {SETUP}"))?;
    if !status.success() {
        return Err(format!(
            "the kernel programs don't compile ({status}), see above. If the target is missing: {SETUP}"
        ));
    }
    check_objects(target_dir).map_err(|error| format!("a compiled object can't be read: {error}"))
}

/// The objects are there.
fn check_objects(target_dir: &Path) -> io::Result<()> {
    for (object, _) in OBJECTS {
        fs::metadata(target_dir.join(TARGET).join("bpf").join(object))?;
    }
    Ok(())
}

//! Compiles the kernel programs of `mesh-ebpf` from source, and tells the crate where the objects are:
//! `env!("MESH_PROGRAMS_OBJECT")` for the data plane, `env!("MESH_PASS_OBJECT")` for the far ends of veth uplinks, and
//! `env!("MESH_FROM_TUNNEL_OBJECT")` for tests of the tunnel's hook.

#[path = "../mesh-ebpf/compile.rs"]
mod compile;

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Objects, and the variables that tell where they are.
const OBJECTS: [(&str, &str); 3] = [
    ("mesh-programs", "MESH_PROGRAMS_OBJECT"),
    ("mesh-pass", "MESH_PASS_OBJECT"),
    ("mesh-from-tunnel", "MESH_FROM_TUNNEL_OBJECT"),
];

fn main() -> Result<(), String> {
    let programs = variable("CARGO_MANIFEST_DIR")?.join("../mesh-ebpf");
    for source in ["src", "Cargo.toml", "compile.rs"] {
        println!("cargo::rerun-if-changed={}", programs.join(source).display());
    }
    let objects =
        compile::compile(&programs, &variable("OUT_DIR")?.join("bpf"), &OBJECTS.map(|(object, _)| object))?;
    for (object, (_, variable)) in objects.iter().zip(OBJECTS) {
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

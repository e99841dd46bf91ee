//! Compiles the kernel programs of `mesh-ebpf` from source, and passes the objects' paths to the
//! crate: `env!("MESH_PROGRAMS_OBJECT")` for the data plane, `env!("MESH_PASS_OBJECT")` for the far
//! ends of veth uplinks, and `env!("MESH_FROM_TUNNEL_OBJECT")` for tests of the tunnel's hook.

#[path = "../mesh-ebpf/compile.rs"]
mod compile;

use std::env;
use std::path::PathBuf;

/// Objects, and the variables with their paths.
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
    Ok(())
}

/// A path that cargo passes in a variable.
fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("{name} is not set: run this through cargo"))
}

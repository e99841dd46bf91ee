//! Generates the gRPC code of the protocol between managers and agents, and gives the crate the
//! version of its compiler.

use std::env;
use std::error::Error;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/mesh.proto");
    println!("cargo:rerun-if-env-changed=MESH_REVISION");
    println!("cargo:rustc-env=MESH_RUSTC={}", compiler_version()?);
    tonic_prost_build::configure().compile_protos(&["proto/mesh.proto"], &["proto"])?;
    Ok(())
}

/// The version of the compiler of this crate.
fn compiler_version() -> Result<String, Box<dyn Error>> {
    let compiler = env::var_os("RUSTC").ok_or("RUSTC is not set: run this through cargo")?;
    let said = Command::new(compiler).arg("--version").output()?.stdout;
    Ok(String::from_utf8_lossy(&said).split_whitespace().nth(1).unwrap_or("unknown").to_owned())
}

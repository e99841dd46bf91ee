//! Generates the gRPC code of the wire between control and agents.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/mesh.proto");
    tonic_prost_build::configure().compile_protos(&["proto/mesh.proto"], &["proto"])?;
    Ok(())
}

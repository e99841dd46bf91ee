//! The kernel programs, compiled as by the agent's build script, and the programs that measurements
//! need beside them.

#[path = "../../../mesh-ebpf/compile.rs"]
mod compile;

use std::fs;

use anyhow::{Context, Result, anyhow};

use mesh_checkout::workspace;

/// Compiled objects.
#[derive(Debug)]
pub(super) struct Objects {
    /// The data plane.
    pub(super) programs: Vec<u8>,
    /// The source of frames, the bare XDP_TX, and the sink.
    pub(super) generator: Vec<u8>,
    /// An XDP program that passes everything.
    pub(super) pass: Vec<u8>,
}

/// Compiles them, if anything has changed since the last time.
pub(super) fn compile() -> Result<Objects> {
    let target_dir = workspace::target_dir().join("bench/bpf");
    let names = ["mesh-programs", "mesh-bench", "mesh-pass"];
    let paths = compile::compile(&workspace::root().join("mesh-ebpf"), &target_dir, &names)
        .map_err(|message| anyhow!(message))?;
    let mut objects = Vec::new();
    for path in paths {
        objects.push(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
    }
    let [programs, generator, pass] =
        <[Vec<u8>; 3]>::try_from(objects).map_err(|_| anyhow!("three objects were asked for"))?;
    Ok(Objects { programs, generator, pass })
}

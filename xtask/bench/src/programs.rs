//! Programs of loaded objects, by name.

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};
use aya::programs::{SchedClassifier, Xdp};
use mesh_ebpf::abi::{Edge, names};

/// Loads these tail-call targets of the hooks' programs. Their array loses them when it is dropped.
pub(super) fn edges(object: &mut Ebpf, wanted: &[Edge]) -> Result<ProgramArray<MapData>> {
    let map = object.take_map(names::EDGES).ok_or_else(|| anyhow!("no map {}", names::EDGES))?;
    let mut edges = ProgramArray::try_from(map).context(names::EDGES)?;
    for edge in wanted {
        let program = classifier(object, edge.program())?;
        edges.set(*edge as u32, program.fd().context(edge.program())?, 0).context(names::EDGES)?;
    }
    Ok(edges)
}

/// A TC program, loaded.
pub(super) fn classifier<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = object.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))?;
    let classifier: &mut SchedClassifier = program.try_into().with_context(|| name.to_owned())?;
    classifier.load().with_context(|| format!("load {name}"))?;
    Ok(classifier)
}

/// An XDP program.
pub(super) fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = object.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))?;
    program.try_into().with_context(|| format!("{name} as an XDP program"))
}

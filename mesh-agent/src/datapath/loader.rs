//! Loads the embedded programs onto pinned maps.
//!
//! Invariants: maps that are pinned already are used with their contents; programs are always this
//! binary's.

use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::{SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use mesh_ebpf::abi::{Edge, names};
use mesh_ebpf::flow_table::{Cells, cell_count, factors, homes_for};
use mesh_runtime::heap;

use super::config::TableSizes;
use super::error::DatapathError;
use super::flow_map::FlowMap;
use super::pins::Pins;

/// The programs, compiled by this crate's build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MESH_PROGRAMS_OBJECT"));

/// Loads the object; creates and pins the maps that don't exist yet.
///
/// # Errors
/// The kernel refuses the object, a map or a program.
pub(super) fn load(pins: &Pins, sizes: TableSizes) -> Result<Ebpf, DatapathError> {
    let mut ebpf = make_maps(pins, sizes)?;
    for program in [
        names::PROGRAM_EGRESS,
        names::PROGRAM_DEVICE,
        names::PROGRAM_UPLINK,
        names::PROGRAM_TUNNEL,
        names::PROGRAM_TASK,
        names::PROGRAM_OVERLAY,
        names::PROGRAM_DECRYPTED,
    ] {
        classifier(&mut ebpf, program)?
            .load()
            .map_err(|source| DatapathError::Program { program, source: Box::new(source) })?;
    }
    load_edges(&mut ebpf, pins)?;
    // The kernel's type information and the object took some 25 MB for a moment.
    heap::trim();
    Ok(ebpf)
}

/// Creates and pins the maps that don't exist yet; loads no program.
///
/// # Errors
/// The kernel refuses the object or a map.
pub(super) fn make_maps(pins: &Pins, sizes: TableSizes) -> Result<Ebpf, DatapathError> {
    let mut loader = EbpfLoader::new();
    for map in names::MAPS {
        loader.map_pin_path(map, pins.map(map));
    }
    loader.map_max_entries(names::NAT_HALF_OPEN, sizes.half_open);
    loader.map_max_entries(names::NAT_ESTABLISHED, sizes.established);
    let (homes, seed) = if pins.map(names::FLOWS).exists() {
        let flows = FlowMap::open(pins)?;
        (flows.homes(), flows.seed())
    } else {
        (homes_for(sizes.flows()), rand::random())
    };
    loader.map_max_entries(names::FLOWS, cell_count(homes));
    loader.override_global(names::FLOW_HOMES, &homes, true);
    let factors = factors(seed);
    loader.override_global(names::FLOW_FACTORS, &factors[..], true);
    let ebpf = loader.load(OBJECT).map_err(|error| DatapathError::Load(Box::new(error)))?;
    FlowMap::open(pins)?.set_seed(seed);
    Ok(ebpf)
}

/// Loads the programs to which the hooks' programs tail-call, and puts each into the pinned program
/// array, in one step in the place of an earlier agent's: that agent's hooks tail-call these until
/// the hooks are replaced.
fn load_edges(ebpf: &mut Ebpf, pins: &Pins) -> Result<(), DatapathError> {
    let mut edges: ProgramArray<MapData> = open(pins, names::EDGES)?;
    for edge in Edge::ALL {
        let program = edge.program();
        let failed = |source| DatapathError::Program { program, source: Box::new(source) };
        let classifier = classifier(ebpf, program)?;
        classifier.load().map_err(failed)?;
        edges
            .set(edge as u32, classifier.fd().map_err(failed)?, 0)
            .map_err(|error| DatapathError::map(names::EDGES, "update", error))?;
    }
    Ok(())
}

/// A TC program of the object.
pub(super) fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    program: &'static str,
) -> Result<&'a mut SchedClassifier, DatapathError> {
    let found = ebpf.program_mut(program).ok_or_else(|| missing(program))?;
    found.try_into().map_err(|source| DatapathError::Program { program, source: Box::new(source) })
}

/// The XDP program, loaded on first use: kernels and nodes that run TC only need not accept it.
pub(super) fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, DatapathError> {
    let program = names::PROGRAM_XDP;
    let failed = |source| DatapathError::Program { program, source: Box::new(source) };
    let found = ebpf.program_mut(program).ok_or_else(|| missing(program))?;
    let xdp: &mut Xdp = found.try_into().map_err(failed)?;
    if xdp.fd().is_err() {
        xdp.load().map_err(failed)?;
    }
    Ok(xdp)
}

fn missing(program: &'static str) -> DatapathError {
    let source = Box::new(aya::programs::ProgramError::NotLoaded);
    DatapathError::Program { program, source }
}

/// Opens a pinned map as `M`.
///
/// # Errors
/// It isn't pinned, or is of another kind or size.
pub(super) fn open<M>(pins: &Pins, map: &'static str) -> Result<M, DatapathError>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let failed = |source| DatapathError::Map { map, source: Box::new(source) };
    let data = MapData::from_pin(pins.map(map)).map_err(failed)?;
    Map::from_map_data(data).and_then(M::try_from).map_err(failed)
}

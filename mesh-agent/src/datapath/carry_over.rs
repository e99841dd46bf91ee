//! Copies the state of another version of mesh before its programs are replaced: flows, and the
//! indexes and ids that flows hold.
//!
//! Entries are copied unchanged (flows to their places in the new table), so only between maps
//! whose keys and values have the same sizes; for other maps the log says what is lost. The old
//! programs run until the links are swapped: flows that begin in that moment are missed.

use std::io;
use std::path::Path;

use aya::maps::MapData;
use mesh_ebpf::abi::names;
use tracing::{info, warn};

use super::flow_map::FlowMap;
use super::pins::Pins;
use super::syscall::{for_each_raw, update_raw};

/// The tables that flows refer to (indexes of addresses, ids of backends), and those that serve
/// until the mesh table comes.
const TABLES: [&str; 7] = [
    names::ADDRESSES,
    names::NODES,
    names::PEERS,
    names::BACKENDS,
    names::SLOTS,
    names::ALLOWED,
    names::SERVICES,
];

/// The flow tables.
const FLOWS: [&str; 3] = [names::FLOWS, names::NAT_HALF_OPEN, names::NAT_ESTABLISHED];

/// Counters of userspace, and the entries of users' networks. Other versions may not have them.
const OTHERS: [&str; 6] =
    [names::EVICTIONS, names::LINKS, names::ENDPOINTS, names::VIRTUAL_IPS, names::ISOLATED, names::SUBNETS6];

/// Copies what can be copied from every other version whose programs still run. Failures are only
/// logged: the node serves all the same.
pub(super) fn carry_over(pins: &Pins) {
    for other in pins.others() {
        let maps = other.join("maps");
        let fits = |map: &str| is_alike(&maps.join(map), &pins.map(map));
        if let Some(map) = TABLES.iter().find(|map| !fits(map)) {
            warn!(
                pins = %other.display(),
                map,
                "another version of mesh ran here, whose tables are of another kind: its connections are lost"
            );
            continue;
        }
        let mut copied = 0;
        let others = OTHERS.iter().filter(|map| fits(map));
        for map in TABLES.iter().chain(&FLOWS).chain(others) {
            if !fits(map) {
                warn!(map, "this version keeps flows in another way: connections of the other one are lost");
                continue;
            }
            let copy = if *map == names::FLOWS { copy_flows } else { copy };
            match copy(&maps.join(map), &pins.map(map)) {
                Ok(entries) => copied += entries,
                Err(error) => warn!(
                    map,
                    error = mesh_runtime::error_chain(&error),
                    "can't take over the state of another version of mesh"
                ),
            }
        }
        info!(pins = %other.display(), entries = copied, "took over from another version of mesh");
    }
}

/// Whether both are pinned maps with keys and values of the same sizes.
fn is_alike(from: &Path, to: &Path) -> bool {
    let sizes = |path: &Path| {
        let info = MapData::from_pin(path).ok()?.info().ok()?;
        Some((info.key_size(), info.value_size()))
    };
    sizes(from).is_some_and(|from| sizes(to) == Some(from))
}

/// Copies flows; returns how many.
fn copy_flows(from: &Path, to: &Path) -> io::Result<u64> {
    let (from, to) = (FlowMap::from_pin(from)?, FlowMap::from_pin(to)?);
    Ok(to.take_over(&from))
}

/// Copies the entries that are not all zeros; returns how many.
fn copy(from: &Path, to: &Path) -> io::Result<u64> {
    let open = |path: &Path| MapData::from_pin(path).map_err(io::Error::other);
    let (from, to) = (open(from)?, open(to)?);
    let info = from.info().map_err(io::Error::other)?;
    let sizes = (info.key_size() as usize, info.value_size() as usize);
    let (mut copied, mut result) = (0, Ok(()));
    for_each_raw(from.fd(), sizes, |key, value| {
        // Arrays are full of zeros, which mean no entry.
        if result.is_ok() && value.iter().any(|byte| *byte != 0) {
            result = update_raw(to.fd(), key, value);
            copied += 1;
        }
    })?;
    result.map(|()| copied)
}

//! Measures the memory of a flow: the kernel's own figure for each flow table, divided by the
//! table's size.
//!
//! The tables allocate their memory when they are made, so the figure holds whether they are full
//! or not, and no load is needed.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, anyhow};
use aya::EbpfLoader;
use aya::maps::{Map, MapData};
use mesh_ebpf::abi::names;
use mesh_ebpf::flow_table::{cell_count, homes_for, room_of};

use super::{objects, report};

/// The sizes of the established and half-open tables: the defaults, and the largest that is usual.
const SIZES: [(u32, u32); 2] =
    [(names::ESTABLISHED_MAX, names::HALF_OPEN_MAX), (1_000_000, names::HALF_OPEN_MAX)];

/// The tables, with the nodes that need them.
const TABLES: [(&str, &str); 3] = [
    (names::FLOWS, "ingress node"),
    (names::NAT_ESTABLISHED, "the task's node"),
    (names::NAT_HALF_OPEN, "the task's node"),
];

/// The memory of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    table: &'static str,
    role: &'static str,
    entries: u32,
    bytes: u64,
}

/// Measures, prints, and writes the report unless `quick`.
pub(super) fn run(quick: bool) -> Result<()> {
    let programs = objects::compile()?.programs;
    let mut taken = Vec::new();
    for (established, half_open) in SIZES {
        taken.extend(measure(&programs, established, half_open)?);
    }
    let text = table(&taken);
    println!("{text}");
    if !quick {
        report::write("memory", &section(&text), &[])?;
    }
    Ok(())
}

fn measure(programs: &[u8], established: u32, half_open: u32) -> Result<Vec<Taken>> {
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(names::NAT_ESTABLISHED, established);
    loader.map_max_entries(names::NAT_HALF_OPEN, half_open);
    loader.map_max_entries(names::FLOWS, cell_count(homes_for(established + half_open)));
    let object = loader.load(programs).context("make the data plane's maps")?;
    let one = |(table, role): (&'static str, &'static str)| {
        let Some(Map::LruHashMap(data) | Map::Array(data)) = object.map(table) else {
            return Err(anyhow!("no table {table} in the object"));
        };
        let entries = data.info().context("ask for the table's size")?.max_entries();
        let entries = if table == names::FLOWS { room_of(entries) } else { entries };
        Ok(Taken { table, role, entries, bytes: memory(data)? })
    };
    TABLES.into_iter().map(one).collect()
}

/// The bytes that the kernel has allocated for a map, from the descriptor's fdinfo.
fn memory(map: &MapData) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    memlock(&text).with_context(|| format!("no memlock in {path}: {text}"))
}

fn memlock(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}

fn table(taken: &[Taken]) -> String {
    let mut text = String::from("| table | where | room for | MiB | bytes a flow |\n|---|---|---|---|---|\n");
    for Taken { table, role, entries, bytes } in taken {
        let [entries_f, bytes_f] = [f64::from(*entries), float(*bytes)];
        // Writing to a String can't fail.
        _ = writeln!(
            text,
            "| `{table}` | {role} | {entries} | {:.1} | {:.0} |",
            bytes_f / f64::from(1 << 20),
            bytes_f / entries_f
        );
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "sizes of maps are far below 2^53")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

/// The section of the report.
fn section(table: &str) -> String {
    format!(
        "## What remembering a flow takes\n\n\
         `cargo xtask bench memory`: what the kernel says it has taken for each table (`memlock` of the map's descriptor), by the flows \
         that it has room for; hash buckets, links and lists included, and of `FLOWS` two cells a flow. The tables take all of it when \
         they are made. A connection stands in the table of its ingress node and in one of its task's node, which may be the same \
         machine.\n\n\
         {table}\n\
         Not shown: connections of the userspace proxy, which cost two sockets and, while both ends keep up, no buffer.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figure_is_parsed_and_divided() {
        let fdinfo = "pos:\t0\nmap_type:\t9\nmax_entries:\t1000\nmemlock:\t128000\nmap_id:\t7\n";
        assert_eq!(memlock(fdinfo), Some(128_000));
        assert_eq!(memlock("pos:\t0\n"), None);
        let taken = Taken { table: "T", role: "here", entries: 1000, bytes: 128_000 };
        assert!(table(&[taken]).ends_with("| `T` | here | 1000 | 0.1 | 128 |\n"), "{}", table(&[taken]));
    }
}

//! The generation that the maps follow, as recorded in the maps themselves: an agent's memory and
//! its disk may be older.

use mesh_ebpf::abi::Config;

use crate::view::NodeView;

/// The generation of a view as the maps record it: its low 32 bits.
pub(super) fn generation_of(view: &NodeView) -> u32 {
    u32::try_from(view.generation & u64::from(u32::MAX)).unwrap_or_default()
}

/// Whether maps with this configuration follow a newer table than that of `generation`.
pub fn is_ahead(config: &Config, generation: u64) -> bool {
    // Tables that are compared here are close in time: their distance is far below half of the
    // range of 32 bits.
    let ahead = u64::from(config.generation).wrapping_sub(generation) & u64::from(u32::MAX);
    (1..1 << 31).contains(&ahead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_ahead_of_older_tables_only() {
        const WRAP: u64 = 1 << 32;
        for (maps, table, expected) in [
            (0, 0, false),
            (7, 7, false),
            (7, 6, true),
            (7, 8, false),
            (0, 9, false),
            (3, WRAP + 3, false),
            (3, WRAP + 2, true),
            (3, WRAP + 4, false),
            (2, WRAP - 1, true),
            (u32::MAX, WRAP, false),
        ] {
            let config = Config { generation: maps, ..Config::default() };
            assert_eq!(is_ahead(&config, table), expected, "maps of {maps}, table of {table}");
        }
    }
}

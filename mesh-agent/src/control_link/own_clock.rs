//! Moments that a manager tells by its clock, by this node's.

use mesh_state::proto::MeshTable;

/// When the newest change in a table was committed, by the clock of this node that says `now_ms`: as long ago as it was by the
/// manager's clock when it sent the table. An older manager doesn't say when that was, and is taken at its word.
pub(super) fn committed_ms(table: &MeshTable, now_ms: i64) -> i64 {
    match table.sent_unix_ms {
        0 => table.committed_unix_ms,
        sent => now_ms.saturating_sub(sent.saturating_sub(table.committed_unix_ms).max(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_as_old_as_its_manager_says_whatever_the_clocks() {
        let table = |committed_unix_ms, sent_unix_ms| MeshTable {
            committed_unix_ms,
            sent_unix_ms,
            ..MeshTable::default()
        };
        for now in [1_000_i64, 900_000, 5_000_000] {
            assert_eq!(committed_ms(&table(899_970, 900_000), now), now - 30, "now {now}");
        }
        assert_eq!(committed_ms(&table(500, 400), 1_000), 1_000, "the manager's clock was put back between");
        assert_eq!(committed_ms(&table(500, 0), 1_000), 500, "an older manager");
        assert_eq!(committed_ms(&table(i64::MIN, i64::MAX), 0), -i64::MAX, "nonsense does no harm");
    }
}

//! Converts times on a manager's clock to this node's clock.

use mesh_state::proto::MeshTable;

/// When the newest change in a table was committed, on this node's clock, which reads `now_ms`. The
/// change's age is taken from the manager's clock, as it was when the manager sent the table. An
/// older manager doesn't say when it sent the table: then its time is used unconverted.
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

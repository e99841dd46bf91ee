//! Spans of time for people, as `docker ps` writes them.

use chrono::{DateTime, Utc};

/// How long ago a moment is: `3 seconds`, `2 hours`. A moment that is to come counts as now.
pub(crate) fn ago(now: DateTime<Utc>, since: DateTime<Utc>) -> String {
    let seconds = (now - since).num_seconds().max(0);
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    if count == 1 { format!("1 {unit}") } else { format!("{count} {unit}s") }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn the_unit_grows_with_the_span() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(30);
        for (seconds, expected) in [
            (-5, "0 seconds"),
            (1, "1 second"),
            (119, "119 seconds"),
            (120, "2 minutes"),
            (7_200, "2 hours"),
            (864_000, "10 days"),
        ] {
            assert_eq!(ago(now, now - TimeDelta::seconds(seconds)), expected, "{seconds} s");
        }
    }
}

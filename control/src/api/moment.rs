//! Parses moments as Docker's clients send them: Unix seconds with a fraction of up to nine digits;
//! for some filters also RFC 3339, or a duration before now.

use chrono::{DateTime, TimeDelta};
use mesh_state::Timestamp;
use mesh_state::lb::go_duration;

use super::error::ApiError;

const NANOSECONDS: i64 = 1_000_000_000;

/// Unix time in nanoseconds; `None` if the text is empty.
///
/// # Errors
/// [`ApiError::BadRequest`] that names the parameter.
pub(crate) fn parse(parameter: &str, text: &str) -> Result<Option<i64>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let nanoseconds = || {
        if fraction.len() > 9 || !digits(fraction) {
            return None;
        }
        let part: i64 = format!("{fraction:0<9}").parse().ok()?;
        seconds.parse::<i64>().ok()?.checked_mul(NANOSECONDS)?.checked_add(part)
    };
    let refused = || {
        let message =
            format!("invalid value for \"{parameter}\": \"{text}\" is not a Unix time (seconds.nanoseconds)");
        ApiError::BadRequest(message)
    };
    nanoseconds().map(Some).ok_or_else(refused)
}

/// The moment of a filter such as `until`: Unix seconds, RFC 3339, or a duration before `now`.
pub(crate) fn ago(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(Some(nanoseconds)) = parse("until", text) {
        return Some(DateTime::from_timestamp_nanos(nanoseconds));
    }
    if let Ok(moment) = DateTime::parse_from_rfc3339(text) {
        return Some(moment.to_utc());
    }
    now.checked_sub_signed(TimeDelta::from_std(go_duration(text)?).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_say_when_or_how_long_ago() {
        let now = DateTime::from_timestamp_nanos(10_000 * NANOSECONDS);
        for (text, expected) in [
            ("9000", Some(9_000)),
            ("1h30m", Some(4_600)),
            ("1970-01-01T01:00:00Z", Some(3_600)),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(ago(text, now).map(|moment| moment.timestamp()), expected, "until={text}");
        }
    }

    #[test]
    fn moments_are_read_to_the_nanosecond() {
        for (text, expected) in [
            ("", None),
            ("17", Some(17_000_000_000)),
            ("1.5", Some(1_500_000_000)),
            ("1700000000.000000042", Some(1_700_000_000_000_000_042)),
        ] {
            assert_eq!(parse("since", text).unwrap(), expected, "reading {text:?}");
        }
        for bad in ["x", "1.x", "1.0000000001", "99999999999999999999", "1.-5", "2024-01-01"] {
            let error = parse("since", bad).unwrap_err().to_string();
            assert!(error.contains("\"since\""), "{bad:?} was answered {error}");
        }
    }
}

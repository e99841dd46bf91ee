//! Parses the values of labels: durations, networks, weights and the source of a task's load. Pure.
//!
//! Invariant: a value that is accepted means exactly what it says; nothing is rounded, cut or
//! guessed.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;

use super::choice::one_of;
use super::{LabelError, LoadHttp};

/// The most networks in one allow-list.
const NETWORKS_MAX: usize = 256;
/// The heaviest weight that a label may give.
const WEIGHT_MAX: u32 = 1000;
/// The most bytes of the path of `mesh.lb.load-http`.
const PATH_BYTES_MAX: usize = 1024;

/// A label as the user set it, for error messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    /// The label's key.
    pub(super) key: &'a str,
    /// The label's value, as the user wrote it.
    pub(super) value: &'a str,
}

impl Given<'_> {
    fn must_be(self, good: impl Into<String>) -> LabelError {
        LabelError::Value { key: self.key.to_owned(), value: self.value.to_owned(), good: good.into() }
    }

    /// `true` or `false`.
    pub(super) fn switch(self) -> Result<bool, LabelError> {
        match self.value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(one_of(self.key, self.value, &["true", "false"])),
        }
    }

    /// Whole seconds between two bounds, in Go's form of durations; `range` is the bounds in words.
    pub(super) fn seconds(self, least: u32, most: u32, range: &str) -> Result<u32, LabelError> {
        let whole = go_duration(self.value).filter(|duration| duration.subsec_nanos() == 0);
        whole
            .and_then(|duration| u32::try_from(duration.as_secs()).ok())
            .filter(|seconds| (least..=most).contains(seconds))
            .ok_or_else(|| self.must_be(format!("a duration of whole seconds from {range}, such as 1m30s")))
    }

    /// Reads the value as a weight.
    pub(super) fn weight(self) -> Result<NonZeroU32, LabelError> {
        whole_number(self.value)
            .and_then(|number| u32::try_from(number).ok())
            .and_then(NonZeroU32::new)
            .filter(|weight| weight.get() <= WEIGHT_MAX)
            .ok_or_else(|| self.must_be(format!("a whole number from 1 to {WEIGHT_MAX}")))
    }

    /// Networks and addresses, separated by commas; duplicates are removed.
    pub(super) fn networks(self) -> Result<Vec<IpNet>, LabelError> {
        let mut networks: Vec<IpNet> = Vec::new();
        for text in self.value.split(',').map(str::trim) {
            let network = self.network(text)?;
            if !networks.contains(&network) {
                networks.push(network);
            }
        }
        if networks.len() > NETWORKS_MAX {
            return Err(self.must_be(format!("at most {NETWORKS_MAX} networks")));
        }
        Ok(networks)
    }

    fn network(self, text: &str) -> Result<IpNet, LabelError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(IpNet::from(address));
        }
        let network: IpNet = text
            .parse()
            .map_err(|_| self.must_be("networks (10.0.0.0/8, fd00::/8) or addresses, separated by commas"))?;
        if network.trunc() != network {
            return Err(LabelError::HostBits {
                key: self.key.to_owned(),
                given: text.to_owned(),
                network: network.trunc(),
            });
        }
        Ok(network)
    }

    /// `PORT/PATH` in the task.
    pub(super) fn load_http(self) -> Result<LoadHttp, LabelError> {
        let read = || {
            let at = self.value.find('/')?;
            let (port, path) = self.value.split_at(at);
            let port = u16::try_from(whole_number(port)?).ok().filter(|port| *port != 0)?;
            let plain = path.len() <= PATH_BYTES_MAX && path.bytes().all(|byte| byte.is_ascii_graphic());
            (plain && !path.contains('#')).then(|| LoadHttp { port, path: path.to_owned() })
        };
        read().ok_or_else(|| self.must_be("PORT/PATH of an HTTP GET in the task, such as 8080/load"))
    }
}

/// A number of decimal digits without a sign and without leading zeros.
pub(super) fn whole_number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// A duration as Go writes it: numbers with units (`h`, `m`, `s`, `ms`, `us`, `ns`), fractions
/// allowed, without a sign.
///
/// ```
/// use std::time::Duration;
///
/// use mesh_state::lb::go_duration;
///
/// assert_eq!(go_duration("1m30s"), Some(Duration::from_secs(90)));
/// assert_eq!(go_duration("90"), None, "a number needs its unit");
/// ```
pub fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let unit_at = rest.find(|letter: char| letter != '.' && !letter.is_ascii_digit())?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end =
            tail.find(|letter: char| letter == '.' || letter.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        total = total.checked_add(nanoseconds(number, unit)?)?;
        rest = next;
    }
    (!text.is_empty()).then(|| Duration::from_nanos(total))
}

fn nanoseconds(number: &str, unit: &str) -> Option<u64> {
    let unit: u64 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.bytes() {
        // Digits below a nanosecond must be zeros, so that nothing is rounded.
        if !digit.is_ascii_digit() || (!place.is_multiple_of(10) && digit != b'0') {
            return None;
        }
        place /= 10;
        total = total.checked_add(u64::from(digit - b'0').checked_mul(place)?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed_as_go_does() {
        let cases: [(&str, Option<u64>); 16] = [
            ("30s", Some(30_000)),
            ("2h", Some(7_200_000)),
            ("1m30s", Some(90_000)),
            ("1h0m0s", Some(3_600_000)),
            ("1.5h", Some(5_400_000)),
            (".5s", Some(500)),
            ("2.s", Some(2_000)),
            ("1500ms", Some(1_500)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("30", None),
            ("1d", None),
            ("-1s", None),
            ("s", None),
            ("9999999999999h", None),
        ];
        for (text, milliseconds) in cases {
            let expected = milliseconds.map(Duration::from_millis);
            assert_eq!(go_duration(text), expected, "{text:?} as a duration");
        }
    }
}

//! The values of all settings, and what a change of them means for a daemon that runs. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use clap::{ArgMatches, Command};
use toml::Value;

use super::effective::{Passwords, value};
use super::keys::keys;

/// The values of a daemon's settings by their keys; `None` if a setting is not set. `Debug` shows
/// the keys only, as a URL may have a password in it.
#[derive(Clone, PartialEq, Default)]
pub struct Values(BTreeMap<String, Option<Value>>);

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<K: Into<String>> FromIterator<(K, Option<Value>)> for Values {
    fn from_iter<I: IntoIterator<Item = (K, Option<Value>)>>(values: I) -> Self {
        Self(values.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

/// What new values mean for a daemon that runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// The keys of new values that apply at once.
    pub applied: Vec<String>,
    /// The keys of new values that apply after a restart.
    pub needs_restart: Vec<String>,
}

impl Values {
    /// The values of `command` as it was called.
    pub(super) fn of(command: &Command, matches: &ArgMatches) -> Self {
        keys(command).map(|(key, flag)| (key, value(flag, matches, Passwords::Shown))).collect()
    }

    /// The text of a value; `None` if it is not set, or no text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_ref()?.as_str()
    }

    /// What it means to a daemon with these values in force that others were `read`, if those of
    /// the keys in `live` can change while it runs.
    pub fn change(&self, read: &Self, live: &[&str]) -> Change {
        let keys: BTreeSet<&String> = self.0.keys().chain(read.0.keys()).collect();
        let changed = keys.into_iter().filter(|key| self.0.get(*key) != read.0.get(*key)).cloned();
        let (applied, needs_restart) = changed.partition(|key| live.contains(&key.as_str()));
        Change { applied, needs_restart }
    }

    /// Takes the values of these keys from `read`.
    pub fn take(&mut self, read: &Self, keys: &[String]) {
        for key in keys {
            match read.0.get(key) {
                Some(value) => drop(self.0.insert(key.clone(), value.clone())),
                None => drop(self.0.remove(key)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values<const N: usize>(values: [(&str, Option<&str>); N]) -> Values {
        values.map(|(key, text)| (key, text.map(|text| Value::String(text.to_owned())))).into_iter().collect()
    }

    fn change(applied: &[&str], needs_restart: &[&str]) -> Change {
        let owned = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        Change { applied: owned(applied), needs_restart: owned(needs_restart) }
    }

    #[test]
    fn a_change_applies_at_once_or_after_a_restart() {
        let live = ["log", "not-set"];
        let in_force = values([("log", Some("info")), ("name", Some("a")), ("socket", None)]);
        let cases = [
            ([("log", Some("info")), ("name", Some("a")), ("socket", None)], change(&[], &[])),
            ([("log", Some("debug")), ("name", Some("a")), ("socket", None)], change(&["log"], &[])),
            ([("log", None), ("name", Some("a")), ("socket", None)], change(&["log"], &[])),
            (
                [("log", Some("info")), ("name", None), ("socket", Some("/s"))],
                change(&[], &["name", "socket"]),
            ),
            ([("log", Some("warn")), ("name", Some("b")), ("socket", None)], change(&["log"], &["name"])),
        ];
        for (read, expected) in cases {
            assert_eq!(in_force.change(&values(read), &live), expected, "{read:?}");
        }
        let fewer = values([("log", Some("info")), ("socket", None)]);
        assert_eq!(in_force.change(&fewer, &live), change(&[], &["name"]), "a key that is gone");
    }

    #[test]
    fn what_needs_a_restart_is_told_until_it_is_taken_back() {
        let mut in_force = values([("log", Some("info")), ("name", Some("a"))]);
        let read = values([("log", Some("debug")), ("name", Some("b"))]);
        for expected in [change(&["log"], &["name"]), change(&[], &["name"])] {
            let seen = in_force.change(&read, &["log"]);
            assert_eq!(seen, expected);
            in_force.take(&read, &seen.applied);
        }
        let back = values([("log", Some("debug")), ("name", Some("a"))]);
        assert_eq!(in_force.change(&back, &["log"]), change(&[], &[]));
        assert_eq!(in_force.text("log"), Some("debug"));
    }

    #[test]
    fn a_password_is_not_shown() {
        let secret = values([("etcd", Some("https://me:pass@10.0.0.1:2379"))]);
        assert_eq!(format!("{secret:?}"), "{\"etcd\"}");
    }
}

//! The settings in force as TOML, each with its origin. Pure.

use std::any::TypeId;
use std::ffi::OsStr;
use std::fmt::Write as _;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use toml::Value;

use super::keys::{is_list, is_switch, keys};

/// A file of settings that has the same effect as `matches`, but for what is secret in it: names
/// and passwords in URLs.
pub(super) fn toml(command: &Command, matches: &ArgMatches, is_from_file: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    for (name, flag) in keys(command).filter(|(_, flag)| !flag.is_hide_set()) {
        let id = flag.get_id().as_str();
        let origin = match matches.value_source(id) {
            _ if is_from_file(id) => "file".to_owned(),
            Some(ValueSource::CommandLine) => "flag".to_owned(),
            Some(ValueSource::EnvVariable) => {
                flag.get_env().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
            }
            _ => "default".to_owned(),
        };
        let line = match value(flag, matches, Passwords::Hidden) {
            Some(value) => format!("{name} = {value}"),
            None => format!("# {name} is not set"),
        };
        // Writing to a string can't fail.
        let _infallible = writeln!(text, "{line:<55} # {origin}");
    }
    text
}

/// What to do with names and passwords in URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passwords {
    Hidden,
    Shown,
}

/// The value of a flag; `None` if it is not set.
pub(super) fn value(flag: &Arg, matches: &ArgMatches, passwords: Passwords) -> Option<Value> {
    let id = flag.get_id().as_str();
    if is_switch(flag) {
        return Some(Value::Boolean(matches.get_flag(id)));
    }
    let given = matches.get_raw(id).into_iter().flatten();
    let text = |raw: &OsStr| match passwords {
        Passwords::Hidden => without_password(&raw.to_string_lossy()),
        Passwords::Shown => raw.to_string_lossy().into_owned(),
    };
    let mut values: Vec<Value> = given.map(|raw| scalar(flag, text(raw))).collect();
    if is_list(flag) { Some(Value::Array(values)) } else { values.pop() }
}

/// A whole number where the flag takes one, else a string.
fn scalar(flag: &Arg, text: String) -> Value {
    let kind = flag.get_value_parser().type_id();
    let numbers = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()];
    match text.parse() {
        Ok(number) if numbers.iter().any(|number| kind == *number) => Value::Integer(number),
        _ => Value::String(text),
    }
}

/// A URL without the user and the password in it; any other text as it is.
fn without_password(text: &str) -> String {
    let hidden = || {
        let (scheme, rest) = text.split_once("://")?;
        let authority = rest.split('/').next()?;
        let (user, _) = authority.rsplit_once('@')?;
        Some(format!("{scheme}://***{}", &rest[user.len()..]))
    };
    hidden().unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_not_shown() {
        for (text, expected) in [
            ("https://me:pass@word@10.0.0.1:2379/x", "https://***@10.0.0.1:2379/x"),
            ("https://10.0.0.1:2379/a@b", "https://10.0.0.1:2379/a@b"),
            ("unix:///var/run/docker.sock", "unix:///var/run/docker.sock"),
            ("a@b", "a@b"),
        ] {
            assert_eq!(without_password(text), expected);
        }
    }
}

//! What a settings file says, as command-line flags. Pure.

use std::fmt;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command};
use toml::Value;

/// Flags that are no settings.
const NO_KEYS: [&str; 6] = ["help", "version", "config", "print-config", "check-config", "write-man-pages"];

/// A mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key as the file spells it.
    pub key: String,
    /// What is wrong with it or its value.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

/// A key of a file, as flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The flag's id in clap.
    pub(super) id: String,
    /// The flag, once for each value.
    pub(super) words: Vec<String>,
}

/// The flags of `command` that are settings, with their names, which are the keys.
pub(super) fn keys(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    command
        .get_arguments()
        .filter_map(|flag| Some((flag.get_long()?, flag)))
        .filter(|(name, _)| !NO_KEYS.contains(name))
}

/// Whether a flag takes no value.
pub(super) fn is_switch(flag: &Arg) -> bool {
    matches!(flag.get_action(), ArgAction::SetTrue)
}

/// Whether a flag takes several values.
pub(super) fn is_list(flag: &Arg) -> bool {
    matches!(flag.get_action(), ArgAction::Append) || flag.get_value_delimiter().is_some()
}

/// Every setting in `table`, or every mistake in it.
pub(super) fn settings(command: &Command, table: &toml::Table) -> Result<Vec<Setting>, Vec<Fault>> {
    let probe = command.clone().mut_args(|flag| flag.required(false).env(None::<&'static str>));
    let (mut settings, mut faults) = (Vec::new(), Vec::new());
    for (key, value) in table {
        match setting(command, &probe, key, value) {
            Ok(setting) => settings.push(setting),
            Err(problem) => faults.push(Fault { key: key.clone(), problem }),
        }
    }
    if faults.is_empty() { Ok(settings) } else { Err(faults) }
}

fn setting(command: &Command, probe: &Command, key: &str, value: &Value) -> Result<Setting, String> {
    let Some((_, flag)) = keys(command).find(|(name, _)| *name == key) else {
        return Err(unknown(command, key));
    };
    let words = words(key, flag, value)?;
    let line = std::iter::once(command.get_name()).chain(words.iter().map(String::as_str));
    match probe.clone().try_get_matches_from(line) {
        // Whether flags fit together is seen once all of them are there.
        Err(error) if error.kind() != ErrorKind::MissingRequiredArgument => Err(reason(&error)),
        _ => Ok(Setting { id: flag.get_id().to_string(), words }),
    }
}

fn unknown(command: &Command, key: &str) -> String {
    let spelled = key.to_lowercase().replace('_', "-");
    let distance = |name: &str| strsim::damerau_levenshtein(name, &spelled);
    keys(command)
        .filter(|(_, flag)| !flag.is_hide_set())
        .map(|(name, _)| name)
        .min_by_key(|name| distance(name))
        .map_or_else(|| "no such key".to_owned(), |nearest| format!("no such key; the nearest is {nearest}"))
}

/// The flag with the value, once for each value of a list.
fn words(key: &str, flag: &Arg, value: &Value) -> Result<Vec<String>, String> {
    if is_switch(flag) {
        return match value {
            Value::Boolean(true) => Ok(vec![format!("--{key}")]),
            Value::Boolean(false) => Ok(Vec::new()),
            _ => Err("expected true or false".to_owned()),
        };
    }
    let word = |value: &Value| match value {
        Value::String(text) => Ok(format!("--{key}={text}")),
        Value::Integer(number) => Ok(format!("--{key}={number}")),
        _ if is_list(flag) => Err("expected a string, or a list of strings".to_owned()),
        _ => Err("expected a string or a whole number".to_owned()),
    };
    match value {
        Value::Array(values) if is_list(flag) => values.iter().map(word).collect(),
        single => Ok(vec![word(single)?]),
    }
}

/// What clap says about a bad value, on one line and without advice about usage.
fn reason(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let about = text.strip_prefix("error: ").unwrap_or(&text).lines().map(str::trim);
    about
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

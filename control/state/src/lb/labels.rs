//! The service labels `mesh.lb.*`: one row gives a label's key, default, allowed values and parser.
//!
//! Everything that lists labels uses this table: the parser of specs, its errors, `mesh service
//! show`, and the README, which a test compares with [`markdown`].

use std::num::NonZeroU32;

use super::value::{Given, whole_number};
use super::{LabelError, LbSettings, Policy};

/// The longest slow start and the longest drain, seconds: an hour.
const HOUR_S: u32 = 3600;
/// The longest idle timeout, seconds: a week.
const WEEK_S: u32 = 7 * 24 * HOUR_S;

/// A label of services that belongs to mesh.
#[derive(Debug, Clone, Copy)]
pub struct ServiceLabel {
    /// The label's key, as users write it.
    pub key: &'static str,
    /// The value without the label, as `mesh service show` prints it.
    pub default: &'static str,
    /// The allowed values and their meaning, in Markdown.
    pub help: fn() -> String,
    /// Parses a value into the settings.
    pub(super) read: fn(&mut LbSettings, Given<'_>) -> Result<(), LabelError>,
}

macro_rules! service_labels {
    ($(
        $(#[$doc:meta])*
        $name:ident = $key:literal, default $default:literal,
        help $help:expr,
        read |$settings:ident, $given:ident| $read:expr;
    )*) => {
        $(
            $(#[$doc])*
            pub const $name: &str = $key;
        )*

        /// All labels of services, in the order in which they are listed.
        pub const SERVICE_LABELS: &[ServiceLabel] = &[$(
            ServiceLabel {
                key: $key,
                default: $default,
                help: || $help.into(),
                read: |$settings, $given| {
                    $read;
                    Ok(())
                },
            },
        )*];
    };
}

service_labels! {
    /// Chooses the selection policy.
    POLICY_LABEL = "mesh.lb.policy", default "round-robin",
    help in_prose(Policy::ALL.iter().map(|policy| policy.as_str())),
    read |settings, given| settings.policy = given.value.parse()?;

    /// Chooses how packets travel.
    MODE_LABEL = "mesh.lb.mode", default "tunnel",
    help "`tunnel`, `dsr` (the task's node answers the client directly) or `proxy` (PROXY protocol v2 \
          towards the task; TCP only)",
    read |settings, given| settings.mode = given.value.parse()?;

    /// Makes nodes prefer their own tasks.
    PREFER_LOCAL_LABEL = "mesh.lb.prefer-local", default "false",
    help "`true`: a node prefers its own tasks",
    read |settings, given| settings.prefer_local = given.switch()?;

    /// Lets a new task's weight rise slowly.
    SLOW_START_LABEL = "mesh.lb.slow-start", default "0s",
    help "time in which a new task's weight rises to its full value, such as `30s`; at most `1h`",
    read |settings, given| settings.slow_start_s = given.seconds(0, HOUR_S, "0s to 1h")?;

    /// Lists the networks whose clients may connect.
    ALLOW_LABEL = "mesh.lb.allow", default "all",
    help "networks and addresses whose clients may connect: `10.0.0.0/8,fd00::/8,192.0.2.7`",
    read |settings, given| settings.allow = given.networks()?;

    /// Ends TCP connections that are idle for this long.
    IDLE_TIMEOUT_LABEL = "mesh.lb.idle-timeout", default "2h",
    help "time after which an idle TCP connection ends, from `1s` to `168h`",
    read |settings, given| {
        settings.idle_timeout_s = NonZeroU32::new(given.seconds(1, WEEK_S, "1s to 168h")?);
    };

    /// Gives the live connections of a stopping task time to end.
    DRAIN_TIMEOUT_LABEL = "mesh.lb.drain-timeout", default "30s",
    help "time that the live connections of a task that is to stop have to end, from `0s` to `1h`",
    read |settings, given| settings.drain_timeout_s = Some(given.seconds(0, HOUR_S, "0s to 1h")?);

    /// Names the endpoint at which tasks report their own load.
    LOAD_HTTP_LABEL = "mesh.lb.load-http", default "none",
    help "`PORT/PATH` where each task reports its own load, a number from 0 (idle) to 1",
    read |settings, given| settings.load_http = Some(given.load_http()?);

    /// Weighs a service's tasks or, on a node, the tasks there. With `.SLOT` after it, one task.
    WEIGHT_LABEL = "mesh.lb.weight", default "1",
    help "weight of each task, from 1 to 1000; `mesh.lb.weight.SLOT` is that of a single one",
    read |settings, given| settings.weight = Some(given.weight()?);
}

impl LbSettings {
    /// Parses one label.
    pub(super) fn read(&mut self, given: Given<'_>) -> Result<(), LabelError> {
        if let Some(label) = SERVICE_LABELS.iter().find(|label| label.key == given.key) {
            return (label.read)(self, given);
        }
        let slot = weighed_slot(given.key)
            .ok_or_else(|| LabelError::Unknown { key: given.key.to_owned(), good: keys() })?;
        self.slot_weights.insert(slot, given.weight()?);
        Ok(())
    }
}

/// The slot in a key of the form `mesh.lb.weight.SLOT`; slots count from 1.
fn weighed_slot(key: &str) -> Option<u64> {
    let slot = key.strip_prefix(WEIGHT_LABEL)?.strip_prefix('.')?;
    whole_number(slot).filter(|slot| *slot != 0)
}

/// All keys in a sentence.
fn keys() -> String {
    let keys: Vec<&str> = SERVICE_LABELS.iter().map(|label| label.key).collect();
    format!("{} and {WEIGHT_LABEL}.SLOT", keys.join(", "))
}

/// Values in a sentence of Markdown: `a`, `b` or `c`.
fn in_prose<'a>(values: impl Iterator<Item = &'a str>) -> String {
    let values: Vec<String> = values.map(|value| format!("`{value}`")).collect();
    match values.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// The table of labels as the README shows it.
pub fn markdown() -> String {
    let row =
        |label: &ServiceLabel| format!("| `{}` | `{}` | {} |\n", label.key, label.default, (label.help)());
    let rows: String = SERVICE_LABELS.iter().map(row).collect();
    format!("| label | default | values |\n|---|---|---|\n{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_shows_this_table() {
        let readme = include_str!("../../../../README.md");
        assert!(readme.contains(&markdown()), "the README's table of labels must be:\n{}", markdown());
    }

    #[test]
    fn every_default_equals_the_settings_without_labels() {
        for label in SERVICE_LABELS.iter().filter(|label| !matches!(label.default, "all" | "none")) {
            let mut settings = LbSettings::default();
            let given = Given { key: label.key, value: label.default };
            settings.read(given).unwrap_or_else(|error| panic!("{}: {error}", label.key));
            let said =
                (settings.idle_timeout_s.take(), settings.drain_timeout_s.take(), settings.weight.take());
            let unsaid = (NonZeroU32::new(7200), Some(30), NonZeroU32::new(1));
            assert!(said.0.is_none() || said.0 == unsaid.0, "{}: {said:?}", label.key);
            assert!(said.1.is_none() || said.1 == unsaid.1, "{}: {said:?}", label.key);
            assert!(said.2.is_none() || said.2 == unsaid.2, "{}: {said:?}", label.key);
            assert_eq!(settings, LbSettings::default(), "{}={}", label.key, label.default);
        }
    }

    #[test]
    fn an_unknown_label_is_answered_by_all_keys() {
        let mut settings = LbSettings::default();
        let error = settings.read(Given { key: "mesh.lb.polcy", value: "random" }).unwrap_err().to_string();
        for label in SERVICE_LABELS {
            assert!(error.contains(label.key), "{} is not in: {error}", label.key);
        }
    }
}

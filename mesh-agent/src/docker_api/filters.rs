//! Query strings and Docker's `filters` parameter. Pure.
//!
//! Invariant: a query that is not changed keeps its bytes.

use std::collections::BTreeMap;

use hyper::Uri;
use serde_json::{Map, Value};

/// The label of every task's container.
const TASK_LABEL: &str = "com.docker.swarm.task";

/// A call's query: key-value pairs in their order, still percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// The query of `uri`; empty if it has none.
    pub(super) fn of(uri: &Uri) -> Self {
        let pairs = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Self { pairs }
    }

    /// The decoded value of `key`.
    pub(super) fn value(&self, key: &str) -> Option<String> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| percent_decode(value))
    }

    /// The values of one filter, in either of Docker's spellings (`{"k":{"v":true}}`,
    /// `{"k":["v"]}`).
    pub(super) fn filter(&self, name: &str) -> Option<Vec<String>> {
        self.filters().and_then(|filters| filters.get(name).map(filter_values))
    }

    /// Replaces the filter `is-task=true` by the label of tasks' containers. No label expresses
    /// `is-task=false`: the filter is dropped, and the caller must filter the answer.
    #[must_use]
    pub(super) fn with_task_filter_as_label(&self, wanted: bool) -> Self {
        let mut filters = self.filters().unwrap_or_default();
        filters.remove("is-task");
        if wanted {
            add(&mut filters, "label", TASK_LABEL);
        }
        self.with_filters(filters)
    }

    /// Adds the filter `name`; `None` if the query has that filter already, or its filters can't be
    /// parsed.
    pub(super) fn with_filter(&self, name: &str, value: &str) -> Option<Self> {
        let mut filters = if self.value("filters").is_none_or(|text| text.is_empty()) {
            Map::default()
        } else {
            self.filters()?
        };
        if filters.contains_key(name) {
            return None;
        }
        add(&mut filters, name, value);
        Some(self.with_filters(filters))
    }

    fn with_filters(&self, filters: Map<String, Value>) -> Self {
        let mut query = self.without("filters");
        query.pairs.push(("filters".to_owned(), percent_encode(&Value::Object(filters).to_string())));
        query
    }

    /// The same query without a key.
    #[must_use]
    pub(super) fn without(&self, key: &str) -> Self {
        Self { pairs: self.pairs.iter().filter(|(name, _)| name != key).cloned().collect() }
    }

    /// The query as it is written behind `?`.
    pub(super) fn encoded(&self) -> String {
        let pairs: Vec<String> = self.pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join("&")
    }

    fn filters(&self) -> Option<Map<String, Value>> {
        serde_json::from_str(&self.value("filters")?).ok()
    }
}

/// Adds a value to a filter.
fn add(filters: &mut Map<String, Value>, name: &str, value: &str) {
    let mut values: BTreeMap<String, Value> = filters
        .get(name)
        .map(filter_values)
        .unwrap_or_default()
        .into_iter()
        .map(|value| (value, true.into()))
        .collect();
    values.insert(value.to_owned(), true.into());
    filters.insert(name.to_owned(), values.into_iter().collect::<Map<_, _>>().into());
}

/// Whether a container of `docker ps` belongs to a task.
pub(super) fn is_task_container(container: &Value) -> bool {
    container.get("Labels").is_some_and(is_task)
}

/// Whether a container with these labels belongs to a task.
pub(super) fn is_task(labels: &Value) -> bool {
    labels.get(TASK_LABEL).is_some()
}

fn filter_values(filter: &Value) -> Vec<String> {
    match filter {
        Value::Object(values) => {
            values.iter().filter(|(_, on)| **on != Value::Bool(false)).map(|(v, _)| v.clone()).collect()
        }
        Value::Array(values) => values.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

pub(super) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = |at: usize| tail.get(at).and_then(|&byte| char::from(byte).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                rest = &tail[2..];
            }
            (b'+', ..) => {
                bytes.push(b' ');
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn percent_encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else if write!(encoded, "%{byte:02X}").is_err() {
            // Writing to a String can't fail.
            return encoded;
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(filters: &str) -> Query {
        let uri: Uri =
            format!("/containers/json?all=1&filters={}&size=0", percent_encode(filters)).parse().unwrap();
        Query::of(&uri)
    }

    #[test]
    fn both_spellings_of_filters_are_read() {
        assert_eq!(query(r#"{"is-task":["true"]}"#).filter("is-task"), Some(vec!["true".to_owned()]));
        assert_eq!(query(r#"{"is-task":{"true":true}}"#).filter("is-task"), Some(vec!["true".to_owned()]));
        assert_eq!(query(r#"{"label":["a"]}"#).filter("is-task"), None);
        assert_eq!(query("nonsense").filter("is-task"), None);
    }

    #[test]
    fn is_task_becomes_a_label_and_the_rest_stays() {
        let rewritten = query(r#"{"is-task":["true"],"label":["a=b c"],"status":["exited"]}"#)
            .with_task_filter_as_label(true);
        assert_eq!(rewritten.filter("is-task"), None);
        assert_eq!(rewritten.filter("label"), Some(vec!["a=b c".to_owned(), TASK_LABEL.to_owned()]));
        assert_eq!(rewritten.filter("status"), Some(vec!["exited".to_owned()]));
        assert_eq!(rewritten.value("all").as_deref(), Some("1"));
        assert_eq!(rewritten.value("size").as_deref(), Some("0"));
        assert_eq!(query(r#"{"is-task":["false"]}"#).with_task_filter_as_label(false).filter("label"), None);
    }

    #[test]
    fn a_filter_is_added_to_those_that_can_be_read() {
        let added = |text: &str| query(text).with_filter("label!", "b").map(|query| query.filter("label!"));
        assert_eq!(added(r#"{"until":["1h"]}"#), Some(Some(vec!["b".to_owned()])));
        assert_eq!(added(r#"{"label!":["a"]}"#), None, "several leave out only what has all of them");
        assert_eq!(added("nonsense"), None);
        let bare = Query::of(&"/networks/prune".parse().unwrap()).with_filter("label!", "b");
        assert_eq!(bare.and_then(|query| query.filter("label!")), Some(vec!["b".to_owned()]));
    }

    proptest::proptest! {
        #[test]
        fn encoding_is_undone_by_decoding(text in ".*") {
            proptest::prop_assert_eq!(percent_decode(&percent_encode(&text)), text);
        }
    }
}

//! The `filters` parameter: `{"key":{"value":true}}` or the older `{"key":["value"]}`.
//!
//! Invariant: an unknown key is refused, never ignored.

use std::collections::BTreeMap;

use mesh_state::spec::Labels;
use serde::Deserialize;

use super::error::ApiError;

/// The filters of a request: key to accepted values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filters(BTreeMap<String, Vec<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    Set(BTreeMap<String, bool>),
    List(Vec<String>),
}

impl Filters {
    /// Parses the parameter; a missing or empty one filters nothing.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] for malformed JSON and for a key that is not in `known`.
    pub(crate) fn parse(text: Option<&str>, known: &[&str]) -> Result<Self, ApiError> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Self::default()) };
        let parsed: BTreeMap<String, Values> = serde_json::from_str(text)
            .map_err(|error| ApiError::BadRequest(format!("invalid filters: {error}")))?;
        if let Some(unknown) = parsed.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(ApiError::BadRequest(format!("Invalid filter '{unknown}'")));
        }
        Ok(Self(
            parsed
                .into_iter()
                .map(|(key, values)| match values {
                    Values::Set(set) => (key, set.into_keys().collect()),
                    Values::List(list) => (key, list),
                })
                .collect(),
        ))
    }

    /// The values of `key`.
    pub(crate) fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether `key` is given and true.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.values(key).iter().any(|value| matches!(value.as_str(), "true" | "1"))
    }

    /// Whether `key` is missing or one of its values passes `test`.
    pub(crate) fn any(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        let values = self.values(key);
        values.is_empty() || values.iter().any(|value| test(value))
    }

    /// Whether `labels` has every `key=value` or `key` of `filter`.
    pub(crate) fn labels(&self, filter: &str, labels: &Labels) -> bool {
        self.values(filter).iter().all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|have| have == value),
            None => labels.contains_key(wanted),
        })
    }

    /// Whether `filter` is missing, or `labels` lacks one of its `key=value` or `key`: as in
    /// Docker, this filter excludes what has all of them.
    pub(crate) fn lacks_labels(&self, filter: &str, labels: &Labels) -> bool {
        self.values(filter).is_empty() || !self.labels(filter, labels)
    }

    /// The values of `key`, each parsed by `read`.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] that names the first value that can't be parsed.
    pub(crate) fn parsed<T>(&self, key: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, ApiError> {
        self.values(key)
            .iter()
            .map(|value| {
                read(value).ok_or_else(|| ApiError::BadRequest(format!("Invalid {key} filter: '{value}'")))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 3] = ["name", "label", "_up-to-date"];

    fn parse(text: &str) -> Filters {
        Filters::parse(Some(text), &KNOWN).unwrap()
    }

    #[test]
    fn both_spellings_mean_the_same() {
        assert_eq!(parse(r#"{"name":{"web":true,"db":true}}"#), parse(r#"{"name":["db","web"]}"#));
        assert_eq!(Filters::parse(None, &KNOWN).unwrap(), parse(""));
    }

    #[test]
    fn a_filter_that_is_not_known_or_not_json_is_refused() {
        for (text, expected) in [
            (r#"{"foo":["x"]}"#, "Invalid filter 'foo'"),
            ("{", "invalid filters: "),
            (r#"{"name":"web"}"#, "invalid filters: "),
        ] {
            let error = Filters::parse(Some(text), &KNOWN).unwrap_err();
            assert!(error.to_string().starts_with(expected), "expected {expected:?} for {text}, saw {error}");
        }
    }

    #[test]
    fn labels_match_by_key_or_by_key_and_value_and_all_must() {
        let labels: Labels = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())].into();
        for (text, expected) in [
            (r#"{"label":["a"]}"#, true),
            (r#"{"label":["a=1","b"]}"#, true),
            (r#"{"label":["a=1","c"]}"#, false),
            (r#"{"label":["a=2"]}"#, false),
            (r#"{"label":["b="]}"#, true),
        ] {
            assert_eq!(parse(text).labels("label", &labels), expected, "filtering by {text}");
        }
        for (text, expected) in [
            ("{}", true),
            (r#"{"label":["c"]}"#, true),
            (r#"{"label":["c","a=1"]}"#, true),
            (r#"{"label":["a=1"]}"#, false),
        ] {
            assert_eq!(parse(text).lacks_labels("label", &labels), expected, "leaving out by {text}");
        }
    }

    #[test]
    fn a_flag_is_on_only_when_it_is_true() {
        assert!(parse(r#"{"_up-to-date":{"true":true}}"#).flag("_up-to-date"));
        assert!(!parse(r#"{"_up-to-date":["false"]}"#).flag("_up-to-date"));
        assert!(!parse("{}").flag("_up-to-date"));
    }
}

//! JSON as Go's decoder understands it, where that differs from serde's.
//!
//! Go takes `NetworkMode`, `networkmode` and even `networKMode` (with a Kelvin sign) for one field,
//! and lets a later key of an object add to an earlier one. A body that is read here in one way and
//! by the engine in another could pass a check that the engine's reading fails. So field names are
//! compared as Go compares them, and a body that has one field twice is refused: no client sends
//! one. Also which values Go takes for absent ones ([`is_zero`]).

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses one JSON value. An object with the same key twice is an error.
///
/// # Errors
/// It isn't JSON, or an object has a key twice.
pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Strict.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Whether Go takes a key for the field `name`, which is in ASCII.
pub fn is_field(key: &str, name: &str) -> bool {
    key.chars().map(folded).eq(name.chars().map(folded))
}

/// The second of two keys that Go takes for the same field; `None` if every field comes once. The
/// object must be one with fields, not a map of the user's.
pub fn repeated(object: &Map<String, Value>) -> Option<&str> {
    let mut seen = BTreeSet::new();
    object.keys().find(|key| !seen.insert(key.chars().map(folded).collect::<String>())).map(String::as_str)
}

/// Whether a field with this value is the same to Go as a field that is left out: `null`, `false`,
/// `0`, an empty text or list, and an object all of whose fields are so.
///
/// Objects are read as structs. A map of the user's ([`is_empty_map`]) with one key is not empty,
/// whatever the key's value is: JSON does not say which of both an object is, the field does.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

/// Whether a map of the user's with this value, such as labels, is the same to Go as one that is
/// left out.
pub fn is_empty_map(value: &Value) -> bool {
    match value {
        Value::Object(entries) => entries.is_empty(),
        other => is_zero(other),
    }
}

/// ASCII letters in lower case, and the two other letters that Unicode folds to such.
fn folded(letter: char) -> char {
    match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    }
}

/// Builds a [`Value`], and refuses repeated keys.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if all.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key} comes twice")));
            }
            let value = entries.next_value_seed(Self)?;
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_that_comes_twice_is_refused_at_every_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":[{"b":{},"b":null}]}"#, r#"{"a":1,"\u0061":2}"#] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("comes twice"), "{text}: {error}");
        }
        assert!(parse(b"{} {}").is_err(), "what follows the value is read by nobody");
        let apart = parse(br#"{"a":{"x":1},"b":{"x":1},"A":2}"#).unwrap();
        assert_eq!(repeated(apart.as_object().unwrap()), Some("a"), "Go takes a and A for one field");
    }

    #[test]
    fn fields_are_compared_as_go_compares_them() {
        for key in ["NetworkMode", "networkmode", "NETWOR\u{212a}MODE"] {
            assert!(is_field(key, "NetworkMode"), "{key}");
        }
        assert!(is_field("Aliase\u{17f}", "Aliases"));
        assert!(!is_field("NetworkModes", "NetworkMode"));
        let object = json!({"HostConfig": 1, "Ho\u{17f}tConfig": 2});
        assert!(repeated(object.as_object().unwrap()).is_some());
    }

    #[test]
    fn a_struct_of_zeros_is_a_zero_and_a_map_of_them_is_not_empty() {
        let zeros = [json!(null), json!(false), json!(0), json!(0.0), json!(""), json!([]), json!({})];
        for value in &zeros {
            assert!(is_zero(value) && is_empty_map(value), "{value}");
            assert!(is_zero(&json!({"A": value, "B": {"C": value}})), "{value} in a struct");
            assert!(!is_empty_map(&json!({ "a": value })), "{value} under the user's key");
            assert!(!is_zero(&json!([value])), "a list with {value}");
        }
        for value in [json!(true), json!(1), json!(-0.5), json!(" "), json!({"A": {"B": 1}})] {
            assert!(!is_zero(&value) && !is_empty_map(&value), "{value}");
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e9..1e9).prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                proptest::collection::btree_map(".*", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn other_values_are_read_as_serde_reads_them(value in any_value()) {
            let text = value.to_string();
            let expected: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(parse(text.as_bytes()).unwrap(), expected);
        }
    }
}

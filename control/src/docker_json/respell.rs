//! Accepts JSON as Go's decoder does: keys in any case, `null` for an absent value, empty or
//! upper-case words of an enumeration.
//!
//! Invariants: only keys that Docker knows are respelled, each at its own place; labels, options
//! and unknown keys stay as they are. A field that comes twice, in different cases, is an error: Go
//! would let the later one count, or merge both.
//!
//! Left to others: which keys there are (`shapes`) and what the values mean (`meaning`).

use mesh_state::go_json::is_field;
use serde_json::{Map, Value};
use thiserror::Error;

use super::Shape;

/// A field that comes twice in one object, in different cases.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the field {0} comes twice, in different spellings")]
pub(crate) struct Repeated(String);

/// Respells `value` as Docker documents it.
///
/// # Errors
/// An object has a field twice.
pub(crate) fn normalise(value: &mut Value, shape: &Shape) -> Result<(), Repeated> {
    match (shape, value) {
        (Shape::Word(_), Value::String(word)) => *word = word.to_lowercase(),
        (Shape::List(element), Value::Array(items)) => {
            for item in items {
                normalise(item, element)?;
            }
        }
        (Shape::Object(fields) | Shape::Mark(fields), Value::Object(map)) => normalise_fields(map, fields)?,
        _ => {}
    }
    Ok(())
}

fn normalise_fields(map: &mut Map<String, Value>, fields: &[(&str, &Shape)]) -> Result<(), Repeated> {
    for (name, shape) in fields {
        respell(map, name)?;
        let Some(value) = map.get_mut(*name) else { continue };
        normalise(value, shape)?;
        let absent = value.is_null() || (matches!(shape, Shape::Word(_)) && value.as_str() == Some(""));
        if absent {
            map.remove(*name);
        }
    }
    Ok(())
}

/// Renames the key that equals `name` except for its case.
fn respell(map: &mut Map<String, Value>, name: &str) -> Result<(), Repeated> {
    let mut spellings = map.keys().filter(|key| is_field(key, name));
    let Some(spelling) = spellings.next().cloned() else { return Ok(()) };
    if spellings.next().is_some() {
        return Err(Repeated(name.to_owned()));
    }
    if spelling != name
        && let Some(value) = map.remove(&spelling)
    {
        map.insert(name.to_owned(), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::shapes;
    use super::*;

    fn check(mut given: Value, expected: &Value) {
        normalise(&mut given, &shapes::SERVICE_SPEC).unwrap();
        assert_eq!(&given, expected);
    }

    #[test]
    fn known_keys_are_respelled_at_every_depth() {
        check(
            json!({"name": "web", "tasktemplate": {"CONTAINERSPEC": {"image": "x", "dnsconfig": {"search": ["a"]}}},
                   "endpointspec": {"ports": [{"targetport": 80}, {"TARGETPORT": 81}]}}),
            &json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "x", "DNSConfig": {"Search": ["a"]}}},
                   "EndpointSpec": {"Ports": [{"TargetPort": 80}, {"TargetPort": 81}]}}),
        );
    }

    #[test]
    fn labels_and_unknown_keys_stay_as_they_are() {
        let given = json!({"Labels": {"name": "a", "Name": "b", "NAME": null}, "novel": {"image": null}});
        check(given.clone(), &given);
    }

    #[test]
    fn a_field_that_comes_twice_is_refused() {
        for mut given in [
            json!({"name": "one", "Name": "other"}),
            json!({"Name": null, "NAME": "x"}),
            json!({"TaskTemplate": {"Networks": [{"Target": "a", "target": "b"}]}}),
            json!({"TaskTemplate": {}, "Ta\u{17f}kTemplate": {}}),
        ] {
            let shown = given.to_string();
            let refused = normalise(&mut given, &shapes::SERVICE_SPEC);
            assert!(refused.is_err(), "accepted {shown}");
        }
    }

    #[test]
    fn null_and_empty_words_are_absent_and_words_are_lower_case() {
        check(
            json!({"Mode": null, "UpdateConfig": {"FailureAction": "", "Order": "Start-First"},
                   "EndpointSpec": {"Ports": [{"Protocol": "TCP", "PublishMode": ""}]}}),
            &json!({"UpdateConfig": {"Order": "start-first"}, "EndpointSpec": {"Ports": [{"Protocol": "tcp"}]}}),
        );
    }

    /// A spec's object with some of its keys in another case.
    fn any_spec() -> impl Strategy<Value = Value> {
        let key = prop_oneof![
            Just("Name"),
            Just("name"),
            Just("LABELS"),
            Just("Mode"),
            Just("mode"),
            Just("Replicated"),
            Just("replicas"),
            Just("EndpointSpec"),
            Just("endpointspec"),
            Just("Ports"),
            Just("protocol"),
            Just("novel"),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            Just(json!("")),
            Just(json!("TCP")),
            Just(json!(7)),
            Just(json!([null])),
        ];
        leaf.prop_recursive(4, 64, 6, move |inner| {
            let object =
                proptest::collection::hash_map(key.clone().prop_map(str::to_owned), inner.clone(), 0..6);
            prop_oneof![
                object.prop_map(|map| Value::Object(map.into_iter().collect())),
                proptest::collection::vec(inner, 0..3).prop_map(Value::Array),
            ]
        })
    }

    proptest! {
        #[test]
        fn respelling_twice_is_respelling_once(mut value in any_spec()) {
            prop_assume!(normalise(&mut value, &shapes::SERVICE_SPEC).is_ok());
            let once = value.clone();
            normalise(&mut value, &shapes::SERVICE_SPEC).unwrap();
            prop_assert_eq!(value, once);
        }
    }
}

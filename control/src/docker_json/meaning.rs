//! Reduces an object to its meaning: equal for every spelling of the same object, and different as
//! soon as mesh or the engine would act differently.
//!
//! Go's decoder treats an absent field, `null` and the type's zero (`false`, `0`, `""`, `[]`, `{}`)
//! alike, and drops what it doesn't know. Few fields tell zero from absent; [`Shape`] names them.

use mesh_state::go_json::{is_empty_map, is_zero};
use serde::Serialize;
use serde_json::{Map, Value};

use super::Shape;

/// The meaning of `object` by `shape`; `None` if it equals absence.
///
/// # Errors
/// The object can't be encoded as JSON.
pub(crate) fn of(object: &impl Serialize, shape: &Shape) -> Result<Option<Value>, serde_json::Error> {
    Ok(meaning(&serde_json::to_value(object)?, shape))
}

fn meaning(value: &Value, shape: &Shape) -> Option<Value> {
    match shape {
        Shape::Any => (!is_zero(value)).then(|| value.clone()),
        Shape::Map => (!is_empty_map(value)).then(|| value.clone()),
        Shape::Said => (!value.is_null()).then(|| value.clone()),
        Shape::Figure(default) => {
            (!value.is_null() && value.as_i64() != Some(*default)).then(|| value.clone())
        }
        Shape::Text(default) => (!is_zero(value) && value != default).then(|| value.clone()),
        Shape::Word(default) => {
            let word = value.as_str().map_or_else(|| value.clone(), |word| word.to_lowercase().into());
            (!is_zero(&word) && word != *default).then_some(word)
        }
        Shape::Object(fields) => {
            let told = told(value.as_object()?, fields);
            (!told.is_empty()).then(|| told.into())
        }
        Shape::Mark(fields) => Some(told(value.as_object()?, fields).into()),
        Shape::List(element) => {
            let items = value.as_array().filter(|items| !items.is_empty())?;
            Some(items.iter().map(|item| meaning(item, element).unwrap_or_default()).collect())
        }
    }
}

fn told(map: &Map<String, Value>, fields: &[(&str, &Shape)]) -> Map<String, Value> {
    let known = fields.iter().filter_map(|(name, shape)| Some((*name, meaning(map.get(*name)?, shape)?)));
    known.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The paths of fields that are set and that Docker doesn't have:
/// `TaskTemplate.ContainerSpec.Imgae`.
pub(crate) fn unknown(value: &Value, shape: &Shape) -> Vec<String> {
    let mut found = Vec::new();
    find_unknown(value, shape, "", &mut found);
    found
}

fn find_unknown(value: &Value, shape: &Shape, place: &str, found: &mut Vec<String>) {
    match (shape, value) {
        (Shape::Object(fields) | Shape::Mark(fields), Value::Object(map)) => {
            for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
                let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                match fields.iter().find(|(name, _)| name == key) {
                    Some((_, shape)) => find_unknown(value, shape, &place, found),
                    None => found.push(place),
                }
            }
        }
        (Shape::List(element), Value::Array(items)) => {
            for (number, item) in items.iter().enumerate() {
                find_unknown(item, element, &format!("{place}[{number}]"), found);
            }
        }
        _ => {}
    }
}

/// Removes the fields from `value` that Docker doesn't have.
pub(crate) fn keep_known(value: &mut Value, shape: &Shape) {
    match (shape, value) {
        (Shape::Object(fields) | Shape::Mark(fields), Value::Object(map)) => {
            map.retain(|key, _| fields.iter().any(|(name, _)| name == key));
            for (name, shape) in *fields {
                if let Some(value) = map.get_mut(*name) {
                    keep_known(value, shape);
                }
            }
        }
        (Shape::List(element), Value::Array(items)) => {
            for item in items {
                keep_known(item, element);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::shapes::{ENDPOINT_SPEC, NETWORK_SPEC, SERVICE_SPEC, TASK_SPEC};
    use super::*;

    fn container(fields: &Value) -> Option<Value> {
        meaning(&json!({ "ContainerSpec": fields }), &TASK_SPEC)
    }

    #[test]
    fn a_default_equals_an_absent_value() {
        let bare = json!({"ContainerSpec": {"Image": "nginx"}});
        for field in [
            json!({"TTY": false, "ReadOnly": false, "OpenStdin": false, "OomScoreAdj": 0, "Hostname": ""}),
            json!({"Mounts": null, "Secrets": [], "Groups": [], "DNSConfig": {}, "Labels": {}, "Sysctls": {}}),
            json!({"Isolation": "default", "StopGracePeriod": 10_000_000_000_i64, "Healthcheck": {"Test": []}}),
            json!({"Privileges": {"CredentialSpec": null, "SELinuxContext": null, "NoNewPrivileges": false,
                                  "Seccomp": {"Mode": "default"}}}),
            json!({"Privileges": {"CredentialSpec": {"Config": "", "File": "", "Registry": ""}}}),
            json!({"Extra": 1, "Novel": {"kept": true}}),
        ] {
            let mut spec = bare.clone();
            spec["ContainerSpec"].as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
            assert_eq!(meaning(&spec, &TASK_SPEC), meaning(&bare, &TASK_SPEC), "with {field}");
        }
        for field in [
            json!({"PluginSpec": {"Name": "", "Remote": "", "Disabled": false, "PluginPrivilege": null}}),
            json!({"Networks": [], "Runtime": "container", "ForceUpdate": 0, "LogDriver": {}}),
            json!({"Resources": {"Limits": {"Pids": 0}, "Reservations": {}}, "Placement": {"Constraints": null}}),
            json!({"RestartPolicy": {"Condition": "any", "Delay": 5_000_000_000_i64, "MaxAttempts": 0, "Window": 0}}),
        ] {
            let mut spec = bare.clone();
            spec.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
            assert_eq!(meaning(&spec, &TASK_SPEC), meaning(&bare, &TASK_SPEC), "with {field}");
        }
        let port = |port: Value| meaning(&json!({"Mode": "vip", "Ports": [port]}), &ENDPOINT_SPEC);
        let spelled = json!({"Name": "", "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 0, "PublishMode": "ingress"});
        assert_eq!(port(spelled), port(json!({"TargetPort": 80})));
        assert_eq!(meaning(&json!({"Mode": "vip", "Ports": []}), &ENDPOINT_SPEC), None);
    }

    #[test]
    fn values_that_change_behaviour_differ_in_meaning() {
        for (one, other) in [
            (json!({"Init": false}), json!({})),
            (json!({"Init": true}), json!({"Init": false})),
            (json!({"StopGracePeriod": 0}), json!({})),
            (json!({"Env": ["A="]}), json!({"Env": ["A"]})),
            (json!({"Labels": {"a": ""}}), json!({"Labels": {}})),
            (json!({"Command": [""]}), json!({"Command": []})),
            (json!({"Secrets": [{"File": {"Mode": 0}}]}), json!({"Secrets": [{"File": {}}]})),
            (json!({"Mounts": [{}]}), json!({})),
        ] {
            assert_ne!(container(&one), container(&other), "{one} and {other}");
        }
        let delay = |policy: Value| meaning(&json!({ "RestartPolicy": policy }), &TASK_SPEC);
        assert_ne!(delay(json!({"Delay": 0})), delay(json!({})), "at once is not after five seconds");
        let mode = |mode: Value| meaning(&json!({ "Mode": mode }), &SERVICE_SPEC);
        assert_ne!(mode(json!({"Global": {}})), mode(json!({})));
    }

    /// Every map of the user's in these shapes, by its field's name.
    #[test]
    fn an_entry_of_a_map_counts_though_it_is_empty() {
        fn maps(shape: &Shape, place: &str, found: &mut Vec<String>) {
            match shape {
                Shape::Object(fields) | Shape::Mark(fields) => {
                    for (name, shape) in *fields {
                        maps(shape, &format!("{place}.{name}"), found);
                    }
                }
                Shape::List(element) => maps(element, place, found),
                Shape::Map => {
                    assert_eq!(meaning(&json!({}), shape), None, "{place}");
                    assert_eq!(meaning(&json!({"a": ""}), shape), Some(json!({"a": ""})), "{place}");
                    found.push(place.to_owned());
                }
                _ => {}
            }
        }
        let mut found = Vec::new();
        maps(&SERVICE_SPEC, "service", &mut found);
        maps(&NETWORK_SPEC, "network", &mut found);
        let container = "service.TaskTemplate.ContainerSpec";
        let expected = [
            "service.Labels".to_owned(),
            format!("{container}.Labels"),
            format!("{container}.Mounts.VolumeOptions.Labels"),
            format!("{container}.Mounts.VolumeOptions.DriverConfig.Options"),
            format!("{container}.Sysctls"),
            "service.TaskTemplate.Networks.DriverOpts".to_owned(),
            "service.TaskTemplate.LogDriver.Options".to_owned(),
            "service.Networks.DriverOpts".to_owned(),
            "network.IPAM.Options".to_owned(),
            "network.IPAM.Config.AuxiliaryAddresses".to_owned(),
            "network.Options".to_owned(),
            "network.Labels".to_owned(),
        ];
        for place in &expected {
            assert!(found.contains(place), "{place} is a map");
        }
        assert_eq!(found.len(), expected.len(), "{found:?}");
    }

    #[test]
    fn fields_that_docker_does_not_have_are_found_and_removed() {
        let mut spec = json!({"Name": "web", "Later": 1, "Labels": {"any": "key"}, "Gone": null, "TaskTemplate": {
            "ContainerSpec": {"Image": "x", "Imgae": "y", "Mounts": [{"Type": "bind"}, {"Typo": {"a": 1}}]}}});
        let places =
            ["Later", "TaskTemplate.ContainerSpec.Imgae", "TaskTemplate.ContainerSpec.Mounts[1].Typo"];
        assert_eq!(unknown(&spec, &SERVICE_SPEC), places);
        keep_known(&mut spec, &SERVICE_SPEC);
        assert!(unknown(&spec, &SERVICE_SPEC).is_empty(), "left: {spec}");
        assert_eq!(spec["Labels"], json!({"any": "key"}), "the user's labels stay");
        assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Mounts"], json!([{"Type": "bind"}, {}]));
    }
}

//! Checks words and figures that Docker refuses before it validates a spec as a whole, in its own
//! messages.
//!
//! Invariant: what passes here can still be refused by the types; nothing is changed.

use serde_json::Value;

use crate::api::error::ApiError;

/// A field's path, its allowed words, and Docker's message for another word.
type Words = (&'static str, &'static [&'static str], fn(&str) -> String);

const ORDERS: &[&str] = &["stop-first", "start-first"];
const ACTIONS: &[&str] = &["pause", "continue", "rollback"];

const SERVICE_WORDS: [Words; 6] = [
    ("/TaskTemplate/RestartPolicy/Condition", &["none", "on-failure", "any"], |word| {
        format!("invalid RestartCondition: {word:?}")
    }),
    ("/UpdateConfig/Order", ORDERS, |word| format!("unrecognized update order {word}")),
    ("/RollbackConfig/Order", ORDERS, |word| format!("unrecognized update order {word}")),
    ("/UpdateConfig/FailureAction", ACTIONS, |word| format!("unrecognized update failure action {word}")),
    ("/RollbackConfig/FailureAction", ACTIONS, |word| format!("unrecognized update failure action {word}")),
    ("/EndpointSpec/Mode", &["vip", "dnsrr"], |word| format!("invalid resolution mode: {word:?}")),
];

const NODE_WORDS: [Words; 2] = [
    ("/Role", &["worker", "manager"], |word| format!("invalid Role: {word:?}")),
    ("/Availability", &["active", "pause", "drain"], |word| format!("invalid Availability: {word:?}")),
];

const MOUNT_TYPES: [&str; 6] = ["bind", "volume", "tmpfs", "npipe", "cluster", "image"];

/// The paths of times that can't be negative, and their names.
const TIMES: [(&str, &str); 2] = [
    ("/TaskTemplate/RestartPolicy/Delay", "restart-delay"),
    ("/TaskTemplate/RestartPolicy/Window", "restart-window"),
];

/// Checks a service's spec as it was sent.
///
/// # Errors
/// Docker's message for the first bad word or figure.
pub(crate) fn in_service(spec: &Value) -> Result<(), ApiError> {
    check(&SERVICE_WORDS, spec)?;
    let mounts = spec.pointer("/TaskTemplate/ContainerSpec/Mounts").and_then(Value::as_array);
    for kind in mounts.into_iter().flatten().filter_map(|mount| mount.get("Type").and_then(Value::as_str)) {
        if !MOUNT_TYPES.contains(&kind) {
            return Err(ApiError::BadRequest(format!("invalid MountType: {kind:?}")));
        }
    }
    let is_negative = |pointer| spec.pointer(pointer).and_then(Value::as_i64).is_some_and(|time| time < 0);
    match TIMES.into_iter().find(|(pointer, _)| is_negative(pointer)) {
        Some((_, name)) => Err(ApiError::Invalid(format!("TaskSpec: {name} cannot be negative"))),
        None => Ok(()),
    }
}

/// Checks a node's spec as it was sent.
///
/// # Errors
/// Docker's message for the first bad word.
pub(crate) fn in_node(spec: &Value) -> Result<(), ApiError> {
    // None of them has a default: otherwise a client that omits the role would demote a manager
    // unasked.
    for (pointer, words, refuse) in NODE_WORDS {
        let word = spec.pointer(pointer).map_or(Some(""), Value::as_str);
        if let Some(word) = word.filter(|word| !words.contains(word)) {
            return Err(ApiError::BadRequest(refuse(word)));
        }
    }
    Ok(())
}

fn check(fields: &[Words], spec: &Value) -> Result<(), ApiError> {
    for (pointer, words, refuse) in fields {
        if let Some(word) = spec.pointer(pointer).and_then(Value::as_str)
            && !words.contains(&word)
        {
            return Err(ApiError::BadRequest(refuse(word)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(checked: Result<(), ApiError>) -> Option<String> {
        checked.err().map(|error| error.to_string())
    }

    #[test]
    fn a_node_without_role_or_availability_is_refused() {
        for (spec, expected) in [
            (json!({"Role": "manager"}), "invalid Availability: \"\""),
            (json!({"Availability": "active"}), "invalid Role: \"\""),
            (json!({}), "invalid Role: \"\""),
            (json!({"Role": "manager", "Availability": "away"}), "invalid Availability: \"away\""),
        ] {
            assert_eq!(said(in_node(&spec)).as_deref(), Some(expected), "of {spec}");
        }
        assert_eq!(said(in_node(&json!({"Role": "worker", "Availability": "drain"}))), None);
    }

    #[test]
    fn a_bad_word_is_refused_in_dockers_words() {
        let restart = |policy: Value| json!({"TaskTemplate": {"RestartPolicy": policy}});
        for (spec, expected) in [
            (restart(json!({"Condition": "maybe"})), "invalid RestartCondition: \"maybe\""),
            (restart(json!({"Delay": -1})), "TaskSpec: restart-delay cannot be negative"),
            (restart(json!({"Window": -1})), "TaskSpec: restart-window cannot be negative"),
            (json!({"UpdateConfig": {"Order": "x"}}), "unrecognized update order x"),
            (json!({"EndpointSpec": {"Mode": "x"}}), "invalid resolution mode: \"x\""),
            (
                json!({"TaskTemplate": {"ContainerSpec": {"Mounts": [{"Type": "bind"}, {"Type": "nfs"}]}}}),
                "invalid MountType: \"nfs\"",
            ),
        ] {
            assert_eq!(said(in_service(&spec)).as_deref(), Some(expected), "of {spec}");
        }
        assert_eq!(said(in_node(&json!({"Role": "boss"}))).as_deref(), Some("invalid Role: \"boss\""));
        assert_eq!(said(in_service(&restart(json!({"Condition": "any", "Delay": 0})))), None);
        assert_eq!(said(in_service(&json!({"Mode": 7}))), None, "types are checked elsewhere");
    }
}

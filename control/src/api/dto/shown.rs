//! A spec as the API shows it: as its user sent it, with the fields that Swarm's objects always
//! have.
//!
//! Swarm always sends some fields, also when they were not set, and clients rely on them. They are
//! added here and not stored.
//!
//! Left to others: defaults that are shown on request only (`service`).

use mesh_state::spec::{
    EndpointSpec, Extra, FailureAction, RestartCondition, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
};
use serde_json::{Value, json};

/// A service's spec.
pub(super) fn spec(stored: &ServiceSpec) -> ServiceSpec {
    let mut spec = stored.clone();
    spec.mode = spec.mode.filled();
    fill(&mut spec.task_template);
    set_if_absent(&mut spec.task_template.extra, "Runtime", "container");
    spec.update_config = spec.update_config.map(update);
    spec.rollback_config = spec.rollback_config.map(update);
    spec.endpoint_spec = spec.endpoint_spec.map(endpoint);
    spec
}

/// A task's spec; a missing runtime is `container`.
pub(super) fn template(stored: &TaskSpec) -> TaskSpec {
    let mut template = stored.clone();
    fill(&mut template);
    template.extra.remove("Runtime");
    template
}

/// An endpoint spec with its mode.
pub(super) fn endpoint(mut endpoint: EndpointSpec) -> EndpointSpec {
    if endpoint.mode.is_empty() {
        "vip".clone_into(&mut endpoint.mode);
    }
    endpoint
}

fn fill(template: &mut TaskSpec) {
    if let Some(container) = &mut template.container_spec {
        set_if_absent(&mut container.extra, "Isolation", "default");
    }
    if let Some(policy) = &mut template.restart_policy {
        policy.condition.get_or_insert(RestartCondition::Any);
        policy.max_attempts.get_or_insert(0);
    }
}

fn update(mut config: UpdateConfig) -> UpdateConfig {
    config.failure_action.get_or_insert(FailureAction::Pause);
    config.order.get_or_insert(UpdateOrder::StopFirst);
    config
}

fn set_if_absent(fields: &mut Extra, name: &str, default: &str) {
    let is_absent = match fields.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if is_absent {
        fields.insert(name.to_owned(), json!(default));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(given: Value) -> Value {
        let stored: ServiceSpec = serde_json::from_value(given).unwrap();
        serde_json::to_value(spec(&stored)).unwrap()
    }

    #[test]
    fn a_bare_spec_gets_what_swarm_always_shows_and_nothing_else() {
        let bare = json!({"Name": "x", "TaskTemplate": {"ContainerSpec": {"Image": "i"}}});
        assert_eq!(
            shown(bare),
            json!({"Name": "x", "Labels": {}, "Mode": {"Replicated": {"Replicas": 1}}, "TaskTemplate": {
                "ContainerSpec": {"Image": "i", "Isolation": "default"}, "ForceUpdate": 0, "Runtime": "container"}})
        );
    }

    #[test]
    fn blocks_that_were_sent_are_shown_with_swarms_fields() {
        let seen = shown(json!({"Name": "x", "UpdateConfig": {"Parallelism": 2}, "RollbackConfig": {},
            "EndpointSpec": {}, "TaskTemplate": {"RestartPolicy": {"Condition": "none"}, "Resources": {}}}));
        let words = json!({"Parallelism": 2, "FailureAction": "pause", "MaxFailureRatio": 0.0, "Order": "stop-first"});
        assert_eq!(seen["UpdateConfig"], words);
        assert_eq!(seen["RollbackConfig"]["Order"], "stop-first");
        assert_eq!(seen["EndpointSpec"], json!({"Mode": "vip"}));
        assert_eq!(seen["TaskTemplate"]["RestartPolicy"], json!({"Condition": "none", "MaxAttempts": 0}));
        assert_eq!(seen["TaskTemplate"]["Resources"], json!({}), "as it was sent");
    }
}

//! Checks templates in a service's spec by expanding them once with sample values, as Swarm does at
//! create.
//!
//! Left to others: the expansion for a real task (the agent), templates in secrets and configs.

use mesh_state::spec::{ContainerSpec, ServiceSpec};
use mesh_state::template::{TemplateContext, expand};
use serde_json::Value;

use super::SpecError;

/// Checks every field that the agent expands: hostname, environment and mounts.
///
/// # Errors
/// [`SpecError::Template`] for the first template that can't be expanded.
pub(super) fn check(spec: &ServiceSpec, container: &ContainerSpec) -> Result<(), SpecError> {
    let context = TemplateContext::for_checks(&spec.name, &spec.labels);
    let check = |field: &'static str, text: &str| {
        expand(text, &context)
            .map(drop)
            .map_err(|error| SpecError::Template { field, reason: error.to_string() })
    };
    check("hostname", &container.hostname)?;
    for entry in &container.env {
        // Swarm expands only what follows the first `=`.
        check("env", entry.split_once('=').map_or("", |(_, value)| value))?;
    }
    let mounts = container.extra.get("Mounts").and_then(Value::as_array);
    mounts.into_iter().flatten().flat_map(texts).try_for_each(|text| check("mounts", text))
}

/// The fields of a mount that may be templates.
fn texts(mount: &Value) -> Vec<&str> {
    let values =
        |path: &str| mount.pointer(path).and_then(Value::as_object).into_iter().flat_map(|map| map.values());
    let volume = values("/VolumeOptions/Labels").chain(values("/VolumeOptions/DriverConfig/Options"));
    let paths = ["Source", "Target"].into_iter().filter_map(|key| mount.get(key));
    paths.chain(volume).filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(container: &Value) -> Option<String> {
        let spec =
            json!({"Name": "web", "Labels": {"tier": "front"}, "TaskTemplate": {"ContainerSpec": container}});
        let spec: ServiceSpec = serde_json::from_value(spec).expect("a spec");
        let container = spec.task_template.container_spec.as_ref().expect("a container");
        check(&spec, container).err().map(|error| error.to_string())
    }

    #[test]
    fn every_field_that_a_task_expands_is_checked_at_create() {
        let bad = "{{.Nope}}";
        let mount = |mount: Value| json!({"Mounts": [mount]});
        for (container, field) in [
            (json!({"Hostname": bad}), "hostname"),
            (json!({"Env": [format!("A={bad}")]}), "env"),
            (json!({"Env": ["A={{"]}), "env"),
            (mount(json!({"Type": "volume", "Source": bad})), "mounts"),
            (mount(json!({"Type": "volume", "Target": bad})), "mounts"),
            (mount(json!({"VolumeOptions": {"Labels": {"a": bad}}})), "mounts"),
            (mount(json!({"VolumeOptions": {"DriverConfig": {"Options": {"a": bad}}}})), "mounts"),
        ] {
            let message = refusal(&container).unwrap_or_else(|| panic!("accepted: {container}"));
            assert!(message.starts_with(&format!("expanding {field} failed: ")), "{container}: {message}");
        }
    }

    #[test]
    fn valid_templates_are_accepted() {
        let env = [
            "A={{.Service.Labels.tier}}{{index .Service.Labels \"none\"}}",
            r#"B={{"{{"}}.Host{{"}}"}}"#,
            "C={{.Node.Platform}}",
            // Only what follows the `=` is a template.
            "{{.Nope}}",
        ];
        assert_eq!(refusal(&json!({"Hostname": "{{.Service.Name}}-{{.Task.Slot}}", "Env": env})), None);
    }
}

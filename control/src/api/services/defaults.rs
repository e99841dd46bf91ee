//! What Swarm writes into every spec that it stores, so that its clients find it there.
//!
//! Invariant: filling twice is filling once, so a spec that is read, left alone and sent back changes nothing.
//!
//! Left to others: defaults that are shown on request only (`dto::service`).

use mesh_state::spec::{Extra, ServiceSpec};
use serde_json::{Value, json};

/// Fills in what the client left open.
pub(crate) fn fill(spec: &mut ServiceSpec) {
    spec.mode = std::mem::take(&mut spec.mode).filled();
    let template = &mut spec.task_template;
    let Some(container) = &mut template.container_spec else { return };
    template.resources.get_or_insert_default();
    set_if_absent(&mut template.extra, "Runtime", json!("container"));
    set_if_absent(&mut container.extra, "Isolation", json!("default"));
    set_if_absent(&mut container.extra, "DNSConfig", json!({}));
}

fn set_if_absent(fields: &mut Extra, name: &str, default: Value) {
    let is_absent = match fields.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if is_absent {
        fields.insert(name.to_owned(), default);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_filled_and_what_is_said_stays() {
        let given = json!({"Name": "x", "TaskTemplate": {"ContainerSpec": {"Image": "i", "Isolation": "",
            "DNSConfig": {"Search": ["a"]}}}});
        let mut spec: ServiceSpec = serde_json::from_value(given).unwrap();
        fill(&mut spec);
        let once = serde_json::to_value(&spec).unwrap();
        let container = &once["TaskTemplate"]["ContainerSpec"];
        assert_eq!(container["Isolation"], "default");
        assert_eq!(container["DNSConfig"], json!({"Search": ["a"]}));
        assert_eq!(once["TaskTemplate"]["Runtime"], "container");
        assert_eq!(once["Mode"], json!({"Replicated": {"Replicas": 1}}));
        fill(&mut spec);
        assert_eq!(serde_json::to_value(&spec).unwrap(), once, "filling twice");
    }
}

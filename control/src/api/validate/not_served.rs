//! Features of Docker's specs that mesh doesn't support yet: refused by name, never dropped.

use mesh_state::go_json::{is_empty_map, is_zero};
use mesh_state::spec::ServiceSpec;
use serde_json::{Map, Value};

use super::SpecError;

/// Swap limits, which only engines newer than the oldest supported one can enforce.
const SWAP: [&str; 2] = ["SwapBytes", "MemorySwappiness"];

/// Refuses the first feature of a spec that mesh doesn't support.
///
/// # Errors
/// [`SpecError::NotServed`].
pub(crate) fn in_spec(spec: &ServiceSpec) -> Result<(), SpecError> {
    let template = &spec.task_template;
    let runtime = template.extra.get("Runtime").and_then(Value::as_str).unwrap_or_default();
    if !matches!(runtime, "" | "container") || is_given(&template.extra, "PluginSpec") {
        return refuse("runtimes other than container are", "run the service as a container");
    }
    if is_given(&template.extra, "NetworkAttachmentSpec") {
        return refuse("network attachments are", "create a service with a container");
    }
    let resources = template.resources.iter().flat_map(|resources| &resources.extra);
    if resources.into_iter().any(|(name, value)| SWAP.contains(&name.as_str()) && !value.is_null()) {
        return refuse("swap limits are", "limit the task's memory, and set the swap of its node");
    }
    if has_driver_options(spec) {
        return refuse("driver options of a service's networks are", "name the network without them");
    }
    let Some(container) = &template.container_spec else { return Ok(()) };
    if container.configs.iter().any(|config| is_given(&config.extra, "Runtime")) {
        return refuse("credential specs are", "they belong to Windows containers");
    }
    let isolation = container.extra.get("Isolation").and_then(Value::as_str).unwrap_or_default();
    if !matches!(isolation, "" | "default") {
        return refuse("isolation modes other than default are", "they belong to Windows containers");
    }
    if has_credential_spec(&container.extra) {
        return refuse("credential specs are", "they belong to Windows containers");
    }
    mounts(&container.extra)
}

fn mounts(container: &Map<String, Value>) -> Result<(), SpecError> {
    let mounts = container.get("Mounts").and_then(Value::as_array);
    for mount in mounts.into_iter().flatten() {
        match mount.get("Type").and_then(Value::as_str).unwrap_or_default() {
            "bind" | "volume" | "tmpfs" => {}
            _ => return refuse("mount types other than bind, volume and tmpfs are", "use one of these"),
        }
    }
    Ok(())
}

fn has_driver_options(spec: &ServiceSpec) -> bool {
    let lists = [spec.task_template.extra.get("Networks"), spec.extra.get("Networks")];
    let mut attachments =
        lists.into_iter().flatten().filter_map(Value::as_array).flatten().filter_map(Value::as_object);
    attachments.any(|attachment| attachment.get("DriverOpts").is_some_and(|options| !is_empty_map(options)))
}

fn has_credential_spec(container: &Map<String, Value>) -> bool {
    container
        .get("Privileges")
        .and_then(|privileges| privileges.as_object())
        .is_some_and(|privileges| is_given(privileges, "CredentialSpec"))
}

/// Whether a field, no map of the user's, has a value: Go's clients also send empty ones.
fn is_given(fields: &Map<String, Value>, name: &str) -> bool {
    fields.get(name).is_some_and(|value| !is_zero(value))
}

fn refuse(feature: &'static str, instead: &'static str) -> Result<(), SpecError> {
    Err(SpecError::NotServed { feature, instead })
}

//! The host's settings of a container: limits, mounts, security, ports, names.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_state::go_json::is_zero;
use mesh_state::spec::{PortConfig, Resources, TaskSpec};
use mesh_state::task::Assignment;
use mesh_state::template::TemplateContext;
use serde_json::Value;

use super::extras::{ContainerExtras, Privileges, SeLinux, TaskExtras, none_left};
use super::names::{self, NodeNames};
use super::network::first_name;
use super::template::expand;
use super::{PlanError, list};
use crate::task::docker::model::{
    HostConfig, HostConfigLogConfig, Mount, PortBinding, PortMap, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};

/// The host configuration of a task's container.
pub(super) fn config(
    assignment: &Assignment,
    extras: &ContainerExtras,
    task: &TaskExtras,
    context: &TemplateContext,
    node: &NodeNames,
) -> Result<HostConfig, PlanError> {
    let mounts = extras.mounts.iter().map(|given| mount(given, context)).collect::<Result<Vec<_>, _>>()?;
    let hosts = extras.hosts.iter().map(|line| host_entries(line)).collect::<Result<Vec<_>, _>>()?.concat();
    let resolver = names::of_engine(assignment, extras, node);
    let mut config = HostConfig {
        network_mode: Some(first_name(assignment)),
        // Control replaces tasks: the engine must not restart what has ended.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        port_bindings: port_bindings(&assignment.host_ports),
        mounts: (!mounts.is_empty()).then_some(mounts),
        extra_hosts: list(&hosts),
        readonly_rootfs: extras.read_only,
        init: extras.init,
        group_add: list(&extras.groups),
        cap_add: list(&extras.capability_add),
        cap_drop: list(&extras.capability_drop),
        sysctls: (!extras.sysctls.is_empty()).then(|| extras.sysctls.clone()),
        oom_score_adj: extras.oom_score_adj,
        dns: list(&resolver.servers),
        dns_search: list(&extras.dns_config.search),
        dns_options: list(&resolver.options),
        security_opt: list(&security(&extras.privileges)?),
        ulimits: ulimits(extras),
        log_config: task.log_driver.as_ref().map(|driver| HostConfigLogConfig {
            typ: Some(driver.name.clone()),
            config: Some(driver.options.clone()),
        }),
        ..HostConfig::default()
    };
    if let Some(resources) = &assignment.spec.resources {
        limit(&mut config, resources)?;
    }
    Ok(config)
}

/// Whether the user of a task gave it name servers of its own.
pub fn has_name_servers(spec: &TaskSpec) -> bool {
    let settings = spec.container_spec.as_ref().and_then(|container| container.extra.get("DNSConfig"));
    let servers = settings.and_then(|settings| settings.get("Nameservers")).and_then(Value::as_array);
    servers.is_some_and(|servers| !servers.is_empty())
}

/// The ports that host-mode publishing opens.
pub(super) fn exposed_ports(ports: &[PortConfig]) -> Option<Vec<String>> {
    (!ports.is_empty()).then(|| ports.iter().map(port_name).collect())
}

fn port_bindings(ports: &[PortConfig]) -> Option<PortMap> {
    let mut bindings = PortMap::new();
    for port in ports {
        let published = (port.published_port != 0).then(|| port.published_port.to_string());
        let binding = PortBinding { host_ip: None, host_port: published };
        bindings.entry(port_name(port)).or_default().get_or_insert_default().push(binding);
    }
    (!bindings.is_empty()).then_some(bindings)
}

fn port_name(port: &PortConfig) -> String {
    format!("{}/{}", port.target_port, port.protocol)
}

fn limit(config: &mut HostConfig, resources: &Resources) -> Result<(), PlanError> {
    none_left("Resources", &resources.extra)?;
    if let Some(limits) = &resources.limits {
        none_left("Resources.Limits", &limits.extra)?;
        config.nano_cpus = positive(limits.nano_cpus);
        config.memory = positive(limits.memory_bytes);
        config.pids_limit = positive(limits.pids);
    }
    if let Some(reserved) = &resources.reservations {
        none_left("Resources.Reservations", &reserved.extra)?;
        // Reserved CPU matters to the scheduler only; reserved memory is also the kernel's soft
        // limit.
        config.memory_reservation = positive(reserved.memory_bytes);
    }
    Ok(())
}

fn positive(value: Option<i64>) -> Option<i64> {
    value.filter(|&value| value > 0)
}

fn ulimits(extras: &ContainerExtras) -> Option<Vec<ResourcesUlimits>> {
    let limits = extras.ulimits.iter().map(|limit| ResourcesUlimits {
        name: Some(limit.name.clone()),
        soft: Some(limit.soft),
        hard: Some(limit.hard),
    });
    (!extras.ulimits.is_empty()).then(|| limits.collect())
}

/// Translates `10.0.0.1 a b` (hosts(5), as specs write it) to the engine's `a:10.0.0.1`.
fn host_entries(line: &str) -> Result<Vec<String>, PlanError> {
    let mut words = line.split_whitespace();
    let (Some(address), names) = (words.next(), words.collect::<Vec<_>>()) else { return Ok(Vec::new()) };
    if names.is_empty() {
        let reason = format!("{line:?} names no host");
        return Err(PlanError::Invalid { field: "ContainerSpec.Hosts".to_owned(), reason });
    }
    Ok(names.into_iter().map(|name| format!("{name}:{address}")).collect())
}

/// Translates the privileges to the engine's security options.
fn security(privileges: &Privileges) -> Result<Vec<String>, PlanError> {
    let mut options = Vec::new();
    if privileges.no_gain {
        options.push("no-new-privileges:true".to_owned());
    }
    if let Some(context) = &privileges.selinux {
        options.extend(selinux_labels(context));
    }
    let invalid = |field: &str, reason: String| PlanError::Invalid {
        field: format!("ContainerSpec.Privileges.{field}"),
        reason,
    };
    if let Some(seccomp) = &privileges.seccomp {
        match seccomp.mode.as_str() {
            "" | "default" => {}
            "unconfined" => options.push("seccomp=unconfined".to_owned()),
            "custom" => {
                let encoded = seccomp.profile.as_deref().unwrap_or_default();
                let profile = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                let profile =
                    profile.ok_or_else(|| invalid("Seccomp", "the profile is no base64 text".to_owned()))?;
                options.push(format!("seccomp={profile}"));
            }
            other => return Err(invalid("Seccomp", format!("unknown mode {other:?}"))),
        }
    }
    if let Some(armor) = &privileges.app_armor {
        match armor.mode.as_str() {
            "" | "default" => {}
            "disabled" => options.push("apparmor=unconfined".to_owned()),
            other => return Err(invalid("AppArmor", format!("unknown mode {other:?}"))),
        }
    }
    Ok(options)
}

fn selinux_labels(context: &SeLinux) -> Vec<String> {
    if context.disable {
        return vec!["label=disable".to_owned()];
    }
    let parts = [
        ("user", &context.user),
        ("role", &context.role),
        ("type", &context.kind),
        ("level", &context.level),
    ];
    parts.iter().filter(|(_, v)| !v.is_empty()).map(|(key, value)| format!("label={key}:{value}")).collect()
}

/// Parses a mount to the engine's own type; refuses a field that the type would lose.
fn mount(given: &Value, context: &TemplateContext) -> Result<Mount, PlanError> {
    let invalid = |reason: String| PlanError::Invalid { field: "ContainerSpec.Mounts".to_owned(), reason };
    let mut mount: Mount =
        serde_json::from_value(given.clone()).map_err(|error| invalid(error.to_string()))?;
    let kept = serde_json::to_value(&mount).map_err(|error| invalid(error.to_string()))?;
    if let Some(path) = lost("ContainerSpec.Mounts", given, &kept) {
        return Err(PlanError::Unsupported(path));
    }
    for text in [&mut mount.source, &mut mount.target].into_iter().flatten() {
        *text = expand(context, "mounts", text)?;
    }
    if let Some(volume) = &mut mount.volume_options {
        expand_values(context, volume.labels.as_mut())?;
        expand_values(context, volume.driver_config.as_mut().and_then(|driver| driver.options.as_mut()))?;
    }
    Ok(mount)
}

fn expand_values(
    context: &TemplateContext,
    values: Option<&mut HashMap<String, String>>,
) -> Result<(), PlanError> {
    for value in values.into_iter().flat_map(HashMap::values_mut) {
        *value = expand(context, "mounts", value)?;
    }
    Ok(())
}

/// The first field of `given` that is not empty and not in `kept`.
fn lost(path: &str, given: &Value, kept: &Value) -> Option<String> {
    let (Value::Object(given), Value::Object(kept)) = (given, kept) else { return None };
    given.iter().filter(|(_, value)| !is_zero(value)).find_map(|(key, value)| {
        let path = format!("{path}.{key}");
        match kept.get(key) {
            Some(kept) => lost(&path, value, kept),
            None => Some(path),
        }
    })
}

//! Parses the fields of a spec that control stores without parsing them.
//!
//! Invariant: a field that is neither known here nor empty is refused by its path. Go writes absent
//! lists as `null` and absent texts as `""`: those count as absent.

use std::collections::HashMap;

use mesh_state::go_json::is_zero;
use mesh_state::spec::Extra;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::PlanError;

/// The fields of `ContainerSpec` that control doesn't parse.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ContainerExtras {
    #[serde(rename = "TTY")]
    pub(super) tty: Option<bool>,
    pub(super) open_stdin: Option<bool>,
    pub(super) read_only: Option<bool>,
    pub(super) init: Option<bool>,
    pub(super) groups: Vec<String>,
    pub(super) privileges: Privileges,
    pub(super) mounts: Vec<Value>,
    pub(super) hosts: Vec<String>,
    #[serde(rename = "DNSConfig")]
    pub(super) dns_config: DnsConfig,
    pub(super) sysctls: HashMap<String, String>,
    pub(super) capability_add: Vec<String>,
    pub(super) capability_drop: Vec<String>,
    pub(super) ulimits: Vec<Ulimit>,
    pub(super) oom_score_adj: Option<i64>,
    pub(super) isolation: String,
    #[serde(flatten)]
    pub(super) rest: Extra,
}

/// DNS settings of the container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct DnsConfig {
    pub(super) nameservers: Vec<String>,
    pub(super) search: Vec<String>,
    pub(super) options: Vec<String>,
    #[serde(flatten)]
    pub(super) rest: Extra,
}

/// One resource limit of the container's processes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Ulimit {
    pub(super) name: String,
    pub(super) soft: i64,
    pub(super) hard: i64,
}

/// Security options.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Privileges {
    #[serde(rename = "NoNewPrivileges")]
    pub(super) no_gain: bool,
    #[serde(rename = "SELinuxContext")]
    pub(super) selinux: Option<SeLinux>,
    pub(super) seccomp: Option<Seccomp>,
    pub(super) app_armor: Option<AppArmor>,
    #[serde(flatten)]
    pub(super) rest: Extra,
}

/// SELinux labels.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct SeLinux {
    pub(super) disable: bool,
    pub(super) user: String,
    pub(super) role: String,
    #[serde(rename = "Type")]
    pub(super) kind: String,
    pub(super) level: String,
}

/// Seccomp mode and, if custom, its profile (base64 of JSON).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Seccomp {
    pub(super) mode: String,
    pub(super) profile: Option<String>,
}

/// AppArmor mode.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct AppArmor {
    pub(super) mode: String,
}

/// The fields of `TaskTemplate` that control doesn't parse.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct TaskExtras {
    /// Not read here: control resolves them, the assignment has what the node needs of them.
    #[serde(rename = "Networks")]
    _networks: IgnoredAny,
    pub(super) log_driver: Option<LogDriver>,
    pub(super) runtime: String,
    #[serde(flatten)]
    rest: Extra,
}

/// The log driver of the container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct LogDriver {
    pub(super) name: String,
    pub(super) options: HashMap<String, String>,
}

/// Intervals and timeouts of a health check, nanoseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct HealthExtras {
    pub(super) interval: Option<i64>,
    pub(super) timeout: Option<i64>,
    pub(super) retries: Option<i64>,
    pub(super) start_period: Option<i64>,
    pub(super) start_interval: Option<i64>,
    #[serde(flatten)]
    rest: Extra,
}

/// Access to the fields that a type does not know.
pub(super) trait Rest {
    /// The fields that this type does not know.
    fn rest(&self) -> &Extra;
}

macro_rules! rest {
    ($($name:ident),*) => {
        $(impl Rest for $name {
            fn rest(&self) -> &Extra {
                &self.rest
            }
        })*
    };
}
rest!(ContainerExtras, TaskExtras, HealthExtras);

impl ContainerExtras {
    /// Refuses values of known fields that can't be honoured.
    pub(super) fn check(&self) -> Result<(), PlanError> {
        none_left("ContainerSpec.DNSConfig", &self.dns_config.rest)?;
        none_left("ContainerSpec.Privileges", &self.privileges.rest)?;
        match self.isolation.as_str() {
            "" | "default" => Ok(()),
            other => Err(PlanError::Unsupported(format!("ContainerSpec.Isolation {other:?}"))),
        }
    }
}

/// Parses the fields of the object at `path`; refuses unknown fields.
pub(super) fn read<T: DeserializeOwned + Rest>(path: &str, fields: &Extra) -> Result<T, PlanError> {
    let parsed: T = serde_json::from_value(without_nulls(&Value::Object(fields.clone())))
        .map_err(|error| PlanError::Invalid { field: path.to_owned(), reason: error.to_string() })?;
    none_left(path, parsed.rest())?;
    Ok(parsed)
}

/// Refuses the first field that is not empty. All that Docker has and mesh leaves out are structs,
/// lists or texts, so a struct of zeros is empty.
pub(super) fn none_left(path: &str, fields: &Extra) -> Result<(), PlanError> {
    match fields.iter().find(|(_, value)| !is_zero(value)) {
        Some((key, _)) => Err(PlanError::Unsupported(format!("{path}.{key}"))),
        None => Ok(()),
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect::<Extra>()
            .into(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

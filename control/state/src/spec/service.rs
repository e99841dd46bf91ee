//! The top of a service's spec: name, labels, mode and task template.

use serde::{Deserialize, Serialize};

use super::{ContainerSpec, EndpointSpec, Extra, Labels, Placement, Resources, RestartPolicy, UpdateConfig};

/// A service as its user wants it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceSpec {
    /// Unique among services, a DNS label of at most 63 characters.
    pub name: String,
    /// Labels of the service (not of its containers). mesh reads `mesh.lb.*`.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: Labels,
    /// What the service's tasks are made from.
    pub task_template: TaskSpec,
    /// Replicated, global or a job; absent means replicated with one replica.
    pub mode: ServiceMode,
    /// The settings of updates; `None` means Swarm's defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_config: Option<UpdateConfig>,
    /// The settings of rollbacks; `None` means Swarm's defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_config: Option<UpdateConfig>,
    /// Published ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_spec: Option<EndpointSpec>,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The template of a task.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TaskSpec {
    /// What the task's container is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_spec: Option<ContainerSpec>,
    /// Limits and reservations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// When a dead task is replaced; `None` means Swarm's defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Constraints, preferences, platforms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// `--force` raises it to replace every task.
    pub force_update: u64,
    /// All other fields that the client sent (networks, log driver, runtime …).
    #[serde(flatten)]
    pub extra: Extra,
}

/// How many tasks a service has and where. Exactly one mode is set after [`ServiceMode::filled`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceMode {
    /// A number of tasks, spread over the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated: Option<ReplicatedMode>,
    /// One task on every node that meets the constraints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global: Option<GlobalMode>,
    /// A number of tasks that run to completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated_job: Option<ReplicatedJobMode>,
    /// One task that runs to completion on every node that meets the constraints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_job: Option<GlobalJobMode>,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

impl ServiceMode {
    /// The mode with Swarm's default filled in: replicated with one replica. The CLI's wait loop
    /// refuses an empty mode.
    #[must_use]
    pub fn filled(mut self) -> Self {
        if let Some(job) = &mut self.replicated_job {
            let at_once = *job.max_concurrent.get_or_insert(1);
            job.total_completions.get_or_insert(at_once);
        } else if self.global.is_none() && self.global_job.is_none() && self.extra.is_empty() {
            let replicated = self.replicated.get_or_insert_default();
            replicated.replicas.get_or_insert(1);
        }
        self
    }

    /// Whether the service's tasks run to completion instead of until they are stopped.
    pub fn is_job(&self) -> bool {
        self.replicated_job.is_some() || self.global_job.is_some()
    }

    /// Replicas wanted, if the service is replicated.
    pub fn replicas(&self) -> Option<u64> {
        if self.is_job() {
            return None;
        }
        match (&self.replicated, &self.global) {
            (Some(replicated), None) => Some(replicated.replicas.unwrap_or(1)),
            (None, None) => Some(1),
            _ => None,
        }
    }
}

/// A replicated service's size.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ReplicatedMode {
    /// The wanted tasks; `None` means 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u64>,
}

/// A replicated job's size.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ReplicatedJobMode {
    /// The most tasks at a time; `None` means 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u64>,
    /// Tasks that have to complete; `None` means as many as may run at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_completions: Option<u64>,
}

impl ReplicatedJobMode {
    /// The most tasks at a time.
    pub fn max_concurrent(&self) -> u64 {
        self.max_concurrent.unwrap_or(1)
    }

    /// Tasks that have to complete.
    pub fn total_completions(&self) -> u64 {
        self.total_completions.unwrap_or_else(|| self.max_concurrent())
    }
}

/// Marks a global job.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GlobalJobMode {}

/// Marks a global service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GlobalMode {}

/// Decodes `null` as the default: Go's clients send absent maps and lists as `null`.
pub(super) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_loses_nothing_on_a_round_trip() {
        let given = serde_json::json!({
            "Name": "web", "Labels": {"a": "b"},
            "TaskTemplate": {
                "ContainerSpec": {"Image": "nginx", "Init": false, "DNSConfig": {}, "Healthcheck": {"Test": ["NONE"]}, "Novel": 7,
                    "Secrets": [{"File": {"Name": "a", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": "s", "SecretName": "a"}],
                    "Configs": [{"Runtime": {}, "ConfigID": "c", "ConfigName": "b"}]},
                "Resources": {"Limits": {"NanoCPUs": 5, "Pids": 9}, "Reservations": {}},
                "Placement": {"Constraints": ["node.role==worker"], "Platforms": [{"OS": "linux"}]},
                "ForceUpdate": 0, "Runtime": "container", "Networks": [{"Target": "n"}]
            },
            "Mode": {"Replicated": {"Replicas": 2}},
            "EndpointSpec": {"Mode": "vip", "Ports": [
                {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 80, "PublishMode": "ingress"}]},
            "Later": {"x": [1]}
        });
        let spec: ServiceSpec = serde_json::from_value(given.clone()).unwrap();
        let back = serde_json::to_value(&spec).unwrap();
        assert_eq!(back, given, "expected the spec as it was given");
    }

    #[test]
    fn an_absent_mode_means_one_replica() {
        let spec: ServiceSpec =
            serde_json::from_str(r#"{"Name":"x","Labels":null,"Mode":{"Replicated":{}}}"#).unwrap();
        assert_eq!(spec.mode.replicas(), Some(1));
        let filled = serde_json::to_value(spec.mode.filled()).unwrap();
        assert_eq!(filled, serde_json::json!({"Replicated": {"Replicas": 1}}));
    }
}

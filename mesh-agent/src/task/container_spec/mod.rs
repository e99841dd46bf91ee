//! Plans a task's container. Pure: from the assignment and the node to the engine's own request.
//!
//! Invariant: every field of the spec reaches the container or is refused by name
//! ([`PlanError::Unsupported`]); none is dropped silently.
//!
//! Left to others: placement, restart and update policies, which are control's and never the
//! container's.

mod extras;
mod files;
mod host;
mod names;
mod network;
mod template;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use mesh_state::ids::NodeId;
use mesh_state::spec::{ContainerSpec, HealthConfig};
use mesh_state::task::{Assignment, Task};
use mesh_state::template::TemplateContext;
use thiserror::Error;

use super::dependencies::expand::PayloadContext;
use super::dependencies::files::{FilePlan, OwnFile};
use super::docker::model::{ContainerCreateBody, HealthConfig as EngineHealth};
use super::transition::stop_grace;
pub use host::has_name_servers;
pub use names::NodeNames;
pub use network::is_confined;

use extras::{ContainerExtras, HealthExtras, TaskExtras, read};

/// The label by which an agent finds its own containers among Swarm's: the id of the node they were
/// made for.
pub const NODE_LABEL: &str = "mesh.node.id";
/// The label with the task's id.
pub const TASK_ID_LABEL: &str = "com.docker.swarm.task.id";

/// The node, as templates and labels name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The id by which managers know the node.
    pub id: NodeId,
    /// The name that the node shows in the cluster.
    pub hostname: String,
    /// The machine's architecture, for example `x86_64`.
    pub architecture: String,
    /// The operating system: `linux`.
    pub os: String,
}

/// A container to make.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerPlan {
    /// The container's name: `{task name}.{task id}`.
    pub name: String,
    /// The reference of the image to pull and run.
    pub image: String,
    /// The files of its secrets and configs, which `body` bind-mounts.
    pub files: Vec<FilePlan>,
    /// The file by which it resolves names, which `body` bind-mounts too.
    pub resolv_conf: Option<OwnFile>,
    /// The values for secrets and configs that are templates.
    pub payload: PayloadContext,
    /// The engine's request.
    pub body: ContainerCreateBody,
}

/// Why no container can be made of a spec.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The spec asks for something that this agent doesn't support.
    #[error("mesh cannot honour {0} yet: remove it from the service")]
    Unsupported(String),
    /// A field has an invalid value.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field's path.
        field: String,
        /// What is wrong with the value.
        reason: String,
    },
    /// A template can't be expanded (Swarm's words).
    #[error("expanding {field} failed: {reason}")]
    Template {
        /// The field that holds the template.
        field: &'static str,
        /// What is wrong with the template.
        reason: String,
    },
}

/// The name of a task's container.
pub fn container_name(assignment: &Assignment) -> String {
    format!("{}.{}", assignment.name, assignment.task.id)
}

/// The time between stop signal and kill that the spec sets.
pub fn grace(assignment: &Assignment) -> Duration {
    stop_grace(assignment.spec.container_spec.as_ref().and_then(|spec| spec.stop_grace_period))
}

/// Plans the container of a task on `node`, which offers `names`, with the task's files below
/// `files_root`.
///
/// # Errors
/// The spec asks for something that the agent can't do; the error names the field.
pub fn plan(
    assignment: &Assignment,
    node: &NodeIdentity,
    names: &NodeNames,
    files_root: &Path,
) -> Result<ContainerPlan, PlanError> {
    let task = &assignment.spec;
    let Some(spec) = &task.container_spec else {
        return Err(PlanError::Unsupported("a task without ContainerSpec (plugins, attachments)".to_owned()));
    };
    let wanted: TaskExtras = read("TaskTemplate", &task.extra)?;
    if !matches!(wanted.runtime.as_str(), "" | "container") {
        return Err(PlanError::Unsupported(format!("TaskTemplate.Runtime {:?}", wanted.runtime)));
    }
    let extras: ContainerExtras = read("ContainerSpec", &spec.extra)?;
    extras.check()?;
    let name = container_name(assignment);
    let context = template::context(assignment, node, &name);
    let files = files::plan(spec, &assignment.task.id, files_root)?;
    let mut host_config = host::config(assignment, &extras, &wanted, &context, names)?;
    let resolv_conf = names::file(assignment, &extras, names, files_root);
    host_config.binds = resolv_conf.as_ref().map(|file| vec![files::bind(file)]);
    if !files.is_empty() {
        host_config.mounts.get_or_insert_default().extend(files.iter().map(files::mount));
    }
    let body = ContainerCreateBody {
        image: Some(spec.image.clone()),
        labels: Some(labels(spec, assignment, node, &name)),
        hostname: text(&template::expand(&context, "hostname", &spec.hostname)?),
        env: list(&[expand_env(&context, &spec.env)?, generic_env(&assignment.task)].concat()),
        entrypoint: list(&spec.command),
        cmd: list(&spec.args),
        user: text(&spec.user),
        working_dir: text(&spec.dir),
        tty: extras.tty,
        open_stdin: extras.open_stdin,
        stop_signal: text(&spec.stop_signal),
        stop_timeout: spec.stop_grace_period.map(|_| whole_seconds(grace(assignment))),
        healthcheck: spec.healthcheck.as_ref().map(health).transpose()?,
        exposed_ports: host::exposed_ports(&assignment.host_ports),
        host_config: Some(host_config),
        networking_config: Some(network::first_endpoint(assignment)),
        ..ContainerCreateBody::default()
    };
    let payload = PayloadContext { context, env: spec.env.clone() };
    Ok(ContainerPlan { name, image: spec.image.clone(), files, resolv_conf, payload, body })
}

fn labels(
    spec: &ContainerSpec,
    assignment: &Assignment,
    node: &NodeIdentity,
    name: &str,
) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = spec.labels.clone().into_iter().collect();
    labels.extend(
        [
            ("com.docker.swarm.task", ""),
            (TASK_ID_LABEL, assignment.task.id.as_str()),
            ("com.docker.swarm.task.name", name),
            ("com.docker.swarm.node.id", node.id.as_str()),
            ("com.docker.swarm.service.id", assignment.task.service_id.as_str()),
            ("com.docker.swarm.service.name", assignment.service_name.as_str()),
            (NODE_LABEL, node.id.as_str()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    labels
}

/// Templates are expanded behind the `=` only, as in Swarm.
fn expand_env(context: &TemplateContext, env: &[String]) -> Result<Vec<String>, PlanError> {
    env.iter()
        .map(|entry| match entry.split_once('=') {
            Some((key, value)) => Ok(format!("{key}={}", template::expand(context, "env", value)?)),
            None => Ok(entry.clone()),
        })
        .collect()
}

/// The variables that name a task's own generic resources: `DOCKER_RESOURCE_GPU=a,b`.
fn generic_env(task: &Task) -> Vec<String> {
    let mut kinds: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for resource in &task.generic_resources {
        kinds.entry(resource.kind()).or_default().push(resource.value());
    }
    let line = |(kind, values): (&str, Vec<String>)| {
        format!("DOCKER_RESOURCE_{}={}", kind.to_uppercase(), values.join(","))
    };
    kinds.into_iter().map(line).collect()
}

fn health(check: &HealthConfig) -> Result<EngineHealth, PlanError> {
    let times: HealthExtras = read("ContainerSpec.Healthcheck", &check.extra)?;
    Ok(EngineHealth {
        test: list(&check.test),
        interval: times.interval,
        timeout: times.timeout,
        retries: times.retries,
        start_period: times.start_period,
        start_interval: times.start_interval,
    })
}

/// The engine takes whole seconds; a grace period is never rounded down.
fn whole_seconds(grace: Duration) -> i64 {
    let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn list(values: &[String]) -> Option<Vec<String>> {
    (!values.is_empty()).then(|| values.to_vec())
}

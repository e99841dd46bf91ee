//! `/tasks`: lists and inspects tasks.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use mesh_state::ids::{NodeId, ServiceId};
use mesh_state::task::{Task, TaskState};

use super::body::Params;
use super::error::{ApiError, ObjectKind};
use super::filters::Filters;
use super::{access, dto, lookup, nodes, services};
use crate::context::ApiContext;
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::slots::outdated::OutdatedTasks;

const KNOWN_FILTERS: [&str; 8] =
    ["name", "id", "label", "service", "node", "desired-state", "_up-to-date", "runtime"];

/// `GET /tasks`
pub(crate) async fn list(
    State(context): State<ApiContext>,
    params: Params,
) -> Result<Json<Vec<dto::Task>>, ApiError> {
    let filters = Filters::parse(params.get("filters"), &KNOWN_FILTERS)?;
    let snapshot = access::seen(&context).await?;
    let selection = Selection::read(&filters, &snapshot, context.own_node.id().as_ref())?;
    Ok(Json(
        snapshot
            .tasks
            .values()
            .filter(|task| selection.admits(&snapshot, task))
            .map(|task| dto::Task::new(&snapshot, task))
            .collect(),
    ))
}

/// `GET /tasks/{id}`
pub(crate) async fn inspect(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
) -> Result<Json<dto::Task>, ApiError> {
    let snapshot = access::seen(&context).await?;
    Ok(Json(dto::Task::new(&snapshot, find(&snapshot, &query)?)))
}

/// The task that a client refers to by its id. Tasks have no stored names.
pub(super) fn find<'a>(snapshot: &'a ClusterSnapshot, query: &str) -> Result<&'a Stored<Task>, ApiError> {
    let tasks = snapshot.tasks.values();
    lookup::find(ObjectKind::Task, query, tasks, |task| task.id.as_str(), |task| task.id.as_str())
}

/// The filters of a list, with names resolved to ids.
struct Selection<'a> {
    filters: &'a Filters,
    services: Vec<ServiceId>,
    nodes: Vec<NodeId>,
    desired: Vec<TaskState>,
    /// Set if only up-to-date tasks are asked for, by service: the CLI waits for these.
    up_to_date: Option<BTreeMap<ServiceId, OutdatedTasks<'a>>>,
}

impl<'a> Selection<'a> {
    fn read(
        filters: &'a Filters,
        snapshot: &'a ClusterSnapshot,
        own_node: Option<&NodeId>,
    ) -> Result<Self, ApiError> {
        let judges = || {
            let services = snapshot.services.values();
            services.map(|service| (service.id.clone(), OutdatedTasks::new(snapshot, service))).collect()
        };
        let services = filters.values("service").iter();
        let nodes = filters.values("node").iter();
        Ok(Self {
            filters,
            services: services
                .map(|query| services::find(snapshot, query).map(|service| service.id.clone()))
                .collect::<Result<_, _>>()?,
            nodes: nodes
                .map(|query| nodes::find(snapshot, query, own_node).map(|node| node.id.clone()))
                .collect::<Result<_, _>>()?,
            desired: filters.parsed("desired-state", desired_state)?,
            up_to_date: filters.flag("_up-to-date").then(judges),
        })
    }

    fn admits(&self, snapshot: &ClusterSnapshot, task: &Task) -> bool {
        let service = snapshot.services.get(&task.service_id);
        let on_wanted_node = || task.node_id.as_ref().is_some_and(|node| self.nodes.contains(node));
        (self.services.is_empty() || self.services.contains(&task.service_id))
            && (self.nodes.is_empty() || on_wanted_node())
            && (self.desired.is_empty() || self.desired.contains(&dto::desired_state(task)))
            && self.filters.any("id", |id| task.id.as_str().starts_with(id))
            && self.filters.any("runtime", |runtime| runtime == "container")
            && self.filters.any("name", |name| {
                service.is_some_and(|service| {
                    format!("{}.{}", service.task_name(&task.slot), task.id).starts_with(name)
                })
            })
            && (self.filters.values("label").is_empty()
                || service.is_some_and(|service| self.filters.labels("label", &service.spec.labels)))
            && self.up_to_date.as_ref().is_none_or(|judges| {
                judges.get(&task.service_id).is_some_and(|outdated| !outdated.contains(task))
            })
    }
}

/// Docker's words for the desired state of a task.
fn desired_state(text: &str) -> Option<TaskState> {
    [TaskState::Accepted, TaskState::Ready, TaskState::Running, TaskState::Shutdown, TaskState::Remove]
        .into_iter()
        .find(|state| state.as_str() == text)
}

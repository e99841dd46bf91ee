//! The values that templates of a task may name, and the expansion of its spec's fields.

use mesh_state::task::{Assignment, Slot};
use mesh_state::template::{self, TemplateContext};

use super::{NodeIdentity, PlanError};

/// The values for a task on this node.
pub(super) fn context(assignment: &Assignment, node: &NodeIdentity, task_name: &str) -> TemplateContext {
    let task = &assignment.task;
    TemplateContext {
        service_id: task.service_id.to_string(),
        service_name: assignment.service_name.clone(),
        service_labels: assignment.service_labels.clone(),
        node_id: node.id.to_string(),
        node_hostname: node.hostname.clone(),
        architecture: node.architecture.clone(),
        os: node.os.clone(),
        task_id: task.id.to_string(),
        task_name: task_name.to_owned(),
        task_slot: match &task.slot {
            Slot::Number(number) => number.to_string(),
            Slot::Node(node) => node.to_string(),
        },
    }
}

/// Expands the templates in `text`; `field` names it in errors.
///
/// # Errors
/// [`PlanError::Template`] when the template can't be parsed or executed.
pub(super) fn expand(
    context: &TemplateContext,
    field: &'static str,
    text: &str,
) -> Result<String, PlanError> {
    template::expand(text, context).map_err(|error| PlanError::Template { field, reason: error.to_string() })
}

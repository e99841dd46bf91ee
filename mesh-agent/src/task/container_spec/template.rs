//! Swarm's templates in hostnames, environments and mounts: `{{.Task.Slot}}`, `{{index .Service.Labels "tier"}}`.
//!
//! Non-goal: Go's template language. What Swarm documents is filled in, everything else is an error that lists what is known.

use mesh_state::task::{Assignment, Slot};

use super::{NodeIdentity, PlanError};

const KNOWN: &str = ".Service.ID, .Service.Name, .Service.Labels, .Node.ID, .Node.Hostname, .Node.Platform.Architecture, \
                     .Node.Platform.OS, .Task.ID, .Task.Name, .Task.Slot";

/// What templates may name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) assignment: &'a Assignment,
    pub(super) node: &'a NodeIdentity,
    pub(super) task_name: &'a str,
}

impl Context<'_> {
    /// `text` with its templates filled in; `field` names it in errors.
    ///
    /// # Errors
    /// [`PlanError::Template`] when a template is unknown or does not end.
    pub(super) fn expand(&self, field: &'static str, text: &str) -> Result<String, PlanError> {
        let failed = |reason: String| PlanError::Template { field, reason };
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (expression, tail) = after
                .split_once("}}")
                .ok_or_else(|| failed(format!("{text:?} has no end of its template")))?;
            expanded.push_str(before);
            let value = self.value(expression.trim());
            expanded.push_str(
                &value
                    .ok_or_else(|| failed(format!("{{{{{expression}}}}} is unknown, known are {KNOWN}")))?,
            );
            rest = tail;
        }
        expanded.push_str(rest);
        Ok(expanded)
    }

    fn value(&self, expression: &str) -> Option<String> {
        let task = &self.assignment.task;
        let value = match expression {
            ".Service.ID" => task.service_id.to_string(),
            ".Service.Name" => self.assignment.service_name.clone(),
            ".Node.ID" => self.node.id.to_string(),
            ".Node.Hostname" => self.node.hostname.clone(),
            ".Node.Platform.Architecture" => self.node.architecture.clone(),
            ".Node.Platform.OS" => self.node.os.clone(),
            ".Task.ID" => task.id.to_string(),
            ".Task.Name" => self.task_name.to_owned(),
            ".Task.Slot" => match &task.slot {
                Slot::Number(number) => number.to_string(),
                Slot::Node(node) => node.to_string(),
            },
            other => return self.label(other),
        };
        Some(value)
    }

    /// A service label, by either of Go's ways; one that is not set is empty.
    fn label(&self, expression: &str) -> Option<String> {
        let key = match expression.strip_prefix(".Service.Labels.") {
            Some(key) => key,
            None => expression
                .strip_prefix("index")?
                .trim_start()
                .strip_prefix(".Service.Labels")?
                .trim()
                .strip_prefix('"')?
                .strip_suffix('"')?,
        };
        Some(self.assignment.service_labels.get(key).cloned().unwrap_or_default())
    }
}

//! The contents of a task's files: the data as it was delivered, or the task's own expansion of a
//! template.
//!
//! Purpose: a secret or config that was created with `--template-driver golang` is expanded for
//! each task, on its node, in memory. Its template may name the task's service, node and slot, and
//! call `secret`, `config` and `env`, as in swarmkit's `template` package.
//!
//! Invariant: `secret` and `config` reach only what the task itself refers to, and return it as it
//! was delivered: an expansion is never expanded again.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_state::dependency::DependencyKind;
use mesh_state::template::{PayloadFunction, PayloadFunctions, TemplateContext, expand_payload};

use super::delivered::{ObjectData, PrivateBytes};
use super::files::FilePlan;

/// The values that a task's secrets and configs may name if they are templates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PayloadContext {
    /// The service, the node and the task.
    pub context: TemplateContext,
    /// The variables of the task's spec, for the function `env`.
    pub env: Vec<String>,
}

/// The contents of the files, in the order of `plans`; `found` holds one object for each plan.
///
/// # Errors
/// An object is refused or can't be expanded; the text is for the task's error.
pub(super) fn contents(
    plans: &[FilePlan],
    found: &[ObjectData],
    payload: &PayloadContext,
) -> Result<Vec<PrivateBytes>, String> {
    let functions = functions(plans, found, payload);
    let content = |(plan, found): (&FilePlan, &ObjectData)| match found {
        ObjectData::Data(data) => Ok(data.clone()),
        ObjectData::Refused(reason) => Err(reason.clone()),
        ObjectData::Template(data) => expand(data, payload, &functions)
            .map_err(|reason| format!("expanding {} {} failed: {reason}", plan.kind, plan.name)),
    };
    plans.iter().zip(found).map(content).collect()
}

fn expand(
    data: &PrivateBytes,
    payload: &PayloadContext,
    functions: &PayloadFunctions,
) -> Result<PrivateBytes, String> {
    let text =
        std::str::from_utf8(data.as_slice()).map_err(|_| "the template is not UTF-8 text".to_owned())?;
    match expand_payload(text, &payload.context, functions) {
        Ok(expanded) => Ok(PrivateBytes::new(expanded.into_bytes())),
        Err(error) => Err(error.to_string()),
    }
}

fn functions(plans: &[FilePlan], found: &[ObjectData], payload: &PayloadContext) -> PayloadFunctions {
    let of_kind = |kind: DependencyKind| -> PayloadFunction {
        let files = plans.iter().zip(found).filter(|(plan, _)| plan.kind == kind);
        let by_path: BTreeMap<String, ObjectData> =
            files.map(|(plan, found)| (plan.target.clone(), found.clone())).collect();
        Arc::new(move |target| match by_path.get(&kind.target_path(target)) {
            Some(ObjectData::Data(data) | ObjectData::Template(data)) => {
                String::from_utf8(data.as_slice().to_vec())
                    .map_err(|_| format!("{kind} target {target} is not UTF-8 text"))
            }
            _ => Err(format!("{kind} target {target} not found")),
        })
    };
    let env = payload.env.clone();
    PayloadFunctions {
        secret: of_kind(DependencyKind::Secret),
        config: of_kind(DependencyKind::Config),
        env: Arc::new(move |name| {
            let value = env.iter().filter_map(|entry| entry.split_once('=')).find(|(key, _)| *key == name);
            Ok(value.map(|(_, value)| value.to_owned()).unwrap_or_default())
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn plan(kind: DependencyKind, target: &str) -> FilePlan {
        FilePlan {
            kind,
            id: target.into(),
            name: format!("the-{target}"),
            source: PathBuf::new(),
            target: kind.target_path(target),
            owner: (0, 0),
            permissions: 0o444,
        }
    }

    fn expanded(template: &str) -> Result<String, String> {
        let plans = [
            plan(DependencyKind::Config, "app.conf"),
            plan(DependencyKind::Secret, "db"),
            plan(DependencyKind::Config, "nested"),
            plan(DependencyKind::Secret, "bytes"),
        ];
        let bytes = |text: &[u8]| PrivateBytes::new(text.to_vec());
        let found = [
            ObjectData::Template(bytes(template.as_bytes())),
            ObjectData::Data(bytes(b"hunter2")),
            ObjectData::Template(bytes(b"{{.Task.Slot}}")),
            ObjectData::Data(bytes(&[0xff])),
        ];
        let context = TemplateContext {
            service_name: "web".to_owned(),
            task_slot: "3".to_owned(),
            ..Default::default()
        };
        let payload = PayloadContext { context, env: vec!["A=1=2".to_owned(), "B".to_owned()] };
        let contents = contents(&plans, &found, &payload)?;
        assert_eq!(contents[1].as_slice(), b"hunter2", "what is no template stays as it is");
        assert_eq!(contents[2].as_slice(), b"3", "each template is expanded");
        Ok(String::from_utf8(contents[0].as_slice().to_vec()).expect("text"))
    }

    #[test]
    fn a_template_reads_what_its_task_has() {
        let template =
            r#"{{.Service.Name}} {{secret "db"}} {{env "A"}}{{env "absent"}} {{config "/nested"}}"#;
        assert_eq!(expanded(template).as_deref(), Ok("web hunter2 1=2 {{.Task.Slot}}"));
    }

    #[test]
    fn a_failure_names_the_object_and_the_reason() {
        for (template, reason) in [
            (r#"{{secret "other"}}"#, "secret target other not found"),
            (r#"{{config "db"}}"#, "config target db not found"),
            (r#"{{secret "bytes"}}"#, "secret target bytes is not UTF-8 text"),
            ("{{.Nope}}", "can't evaluate field Nope"),
        ] {
            let error = expanded(template).expect_err(template);
            let named = error.starts_with("expanding config the-app.conf failed: ");
            assert!(named && error.contains(reason), "{template}: expected {reason:?} in {error:?}");
        }
    }
}

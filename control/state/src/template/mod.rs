//! Go's text/template, as Swarm expands it in specs, secrets and configs.
//!
//! Purpose: [`expand`] fills in hostnames, environments and mounts; [`expand_payload`] fills in the
//! data of secrets and configs that were created with `--template-driver golang`, which may also
//! call `secret`, `config` and `env`. Control checks templates when a spec is created; agents
//! expand them when a task starts.
//!
//! Invariants: the language is that of the gotmpl crate; a template can use only what is in
//! [`TemplateContext`]; an expansion is bounded in length and in iterations.
//!
//! Non-goals: the engine copies values while it works, so only the final form of an expanded secret
//! is wiped from memory. Payloads that are not UTF-8 can't be templates.

mod structs;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Arc;

/// The engine's error for a template that it can't parse or execute.
pub use gotmpl::TemplateError as EngineError;
use gotmpl::{MissingKey, Template, Value};
use thiserror::Error;

use crate::spec::Labels;

/// The limit of an expansion, in bytes: more than any secret, config or environment of a container
/// may have.
pub const EXPANSION_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The most iterations of all `range` loops of one expansion.
const ITERATIONS_MAX: u64 = 100_000;

/// The name of each template in the engine, as in swarmkit's.
const NAME: &str = "expansion";

/// The fields that a template may use, for error messages.
const KNOWN_FIELDS: &str = ".Service.ID, .Service.Name, .Service.Labels, .Node.ID, .Node.Hostname, \
                            .Node.Platform.Architecture, .Node.Platform.OS, .Task.ID, .Task.Name, .Task.Slot";

/// Why a template can't be expanded.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// The engine can't parse or execute it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It uses a field or a label that doesn't exist.
    #[error("can't evaluate field {0}: known are {KNOWN_FIELDS}")]
    UnknownField(String),
    /// It calls a function that doesn't exist.
    #[error("function {0:?} not defined")]
    UnknownFunction(String),
    /// It iterates over something that has fields instead of elements.
    #[error("range can't iterate over .{0}")]
    RangeOverFields(String),
    /// Its expansion would be longer than [`EXPANSION_BYTES_MAX`].
    #[error("the expansion is longer than {EXPANSION_BYTES_MAX} bytes")]
    TooLong,
}

/// The values that templates may use: the service, the node and the task of the expansion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateContext {
    /// `.Service.ID`
    pub service_id: String,
    /// `.Service.Name`
    pub service_name: String,
    /// `.Service.Labels`
    pub service_labels: Labels,
    /// `.Node.ID`
    pub node_id: String,
    /// `.Node.Hostname`
    pub node_hostname: String,
    /// `.Node.Platform.Architecture`: `x86_64`
    pub architecture: String,
    /// `.Node.Platform.OS`: `linux`
    pub os: String,
    /// `.Task.ID`
    pub task_id: String,
    /// `.Task.Name`: the service's name, the slot and the task's id
    pub task_name: String,
    /// `.Task.Slot`: the slot's number, or the node's id for a global service
    pub task_slot: String,
}

impl TemplateContext {
    /// Sample values, for checking a spec before it has tasks: Swarm's own.
    pub fn for_checks(service_name: &str, service_labels: &Labels) -> Self {
        Self {
            service_id: "serviceid".to_owned(),
            service_name: service_name.to_owned(),
            service_labels: service_labels.clone(),
            node_id: "nodeid".to_owned(),
            node_hostname: "nodeHostname".to_owned(),
            architecture: "architecture".to_owned(),
            os: "os".to_owned(),
            task_id: "taskid".to_owned(),
            task_name: "taskname".to_owned(),
            task_slot: "1".to_owned(),
        }
    }
}

/// A function of a payload's template: takes the argument, returns the value or an error message.
pub type PayloadFunction = Arc<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// The functions that templates of secrets and configs may call beside Go's own.
#[derive(Clone)]
pub struct PayloadFunctions {
    /// `secret TARGET`: the data of the task's secret with that target file.
    pub secret: PayloadFunction,
    /// `config TARGET`: the data of the task's config with that target file.
    pub config: PayloadFunction,
    /// `env NAME`: the value of a variable of the task's spec; empty if there is none.
    pub env: PayloadFunction,
}

impl fmt::Debug for PayloadFunctions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PayloadFunctions")
    }
}

/// Expands a template of a spec. Text without `{{` comes back as it is.
///
/// # Errors
/// [`TemplateError`]
pub fn expand(text: &str, context: &TemplateContext) -> Result<String, TemplateError> {
    run(text, context, engine())
}

/// Expands the data of a secret or config for one task.
///
/// # Errors
/// [`TemplateError`], also for the error of a function.
pub fn expand_payload(
    text: &str,
    context: &TemplateContext,
    functions: &PayloadFunctions,
) -> Result<String, TemplateError> {
    run(text, context, with_payload_functions(engine(), functions))
}

/// Checks what is known of a payload's template before a task refers to it: its syntax, and that
/// its functions exist.
///
/// # Errors
/// [`TemplateError`]
pub fn check_payload(text: &str) -> Result<(), TemplateError> {
    let template = engine().parse(text)?;
    structs::check_functions(&template, &["secret", "config", "env"])
}

fn run(text: &str, context: &TemplateContext, engine: Template) -> Result<String, TemplateError> {
    if !text.contains("{{") {
        return Ok(text.to_owned());
    }
    let template = structs::print_as_go(engine.parse(text)?)?;
    let mut bounded = Bounded { text: String::new(), overflowed: false };
    let executed = template.execute_template_fmt(&mut bounded, NAME, &structs::root(context));
    if bounded.overflowed {
        return Err(TemplateError::TooLong);
    }
    match executed {
        Ok(()) => Ok(bounded.text),
        Err(EngineError::MissingKey { key }) => Err(TemplateError::UnknownField(key)),
        Err(EngineError::UndefinedFunction(name)) => Err(TemplateError::UnknownFunction(name)),
        Err(error) => Err(error.into()),
    }
}

/// The engine with swarmkit's options: a missing key is an error, and `join` is a function.
fn engine() -> Template {
    Template::new(NAME)
        .missing_key(MissingKey::Error)
        .max_range_iters(ITERATIONS_MAX)
        .func("join", join)
        .func("index", index)
}

fn with_payload_functions(engine: Template, functions: &PayloadFunctions) -> Template {
    let named = [("secret", &functions.secret), ("config", &functions.config), ("env", &functions.env)];
    named.into_iter().fold(engine, |engine, (name, function)| {
        let function = Arc::clone(function);
        engine.func(name, move |args| match args {
            [Value::String(argument)] => match function(argument) {
                Ok(value) => Ok(Value::String(value.into())),
                Err(reason) => Err(EngineError::Exec(reason)),
            },
            _ => Err(EngineError::Exec(format!("{name} takes one string"))),
        })
    })
}

/// swarmkit's `join SEPARATOR TEXT…`.
fn join(args: &[Value]) -> gotmpl::Result<Value> {
    let Some((separator, texts)) = args.split_first() else {
        return Err(EngineError::Exec("join takes a separator and texts".to_owned()));
    };
    let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
    Ok(Value::String(texts.join(&separator.to_string()).into()))
}

/// Go's `index` for the values of a template: labels, where a missing one is empty, and the bytes
/// of a text.
fn index(args: &[Value]) -> gotmpl::Result<Value> {
    let failed = |reason: &str| Err(EngineError::Exec(format!("index: {reason}")));
    match args {
        [only] => Ok(only.clone()),
        [Value::Map(map), Value::String(_)] if structs::has_fields(map) => failed("not a map"),
        [Value::Map(map), Value::String(key)] => {
            Ok(map.get(key).cloned().unwrap_or_else(|| Value::String("".into())))
        }
        [Value::Map(_), _] => failed("a map's index must be a string"),
        [Value::String(text), Value::Int(at)] => {
            match usize::try_from(*at).ok().and_then(|at| text.as_bytes().get(at)) {
                Some(byte) => Ok(Value::Uint(u64::from(*byte))),
                None => Err(EngineError::IndexOutOfRange { index: *at }),
            }
        }
        _ => failed("takes a map or a text, and one index"),
    }
}

/// Collects an expansion up to the limit.
struct Bounded {
    text: String,
    overflowed: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.text.len() + part.len() > EXPANSION_BYTES_MAX {
            self.overflowed = true;
            return Err(fmt::Error);
        }
        self.text.push_str(part);
        Ok(())
    }
}

/// A map value of the engine.
fn map(fields: impl IntoIterator<Item = (&'static str, Value)>) -> BTreeMap<Arc<str>, Value> {
    fields.into_iter().map(|(name, value)| (Arc::from(name), value)).collect()
}

#[cfg(test)]
mod tests;

//! Prints structs as Go does, `{a b}`, unlike maps, `map[a:b]`: the template engine knows maps
//! only.
//!
//! [`root`] makes a map of each struct, with one more entry, [`PRINTED`], that holds the struct as
//! Go prints it. [`print_as_go`] rewrites a parsed template so that a struct that is printed, or
//! passed to a function, is replaced by that entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::parse::{CommandNode, Expr, ListNode, Node, PipeNode};
use gotmpl::{Template, Value};

use super::{NAME, TemplateContext, TemplateError, map};

/// The key of the printed form. No template can use it as a field.
const PRINTED: &str = "\u{1}printed";

/// The paths from the root to structs.
const STRUCTS: [&[&str]; 5] = [&[], &["Service"], &["Node"], &["Node", "Platform"], &["Task"]];

/// The functions of Go's text/template, and swarmkit's `join`.
const FUNCTIONS: [&str; 20] = [
    "and", "call", "eq", "ge", "gt", "html", "index", "join", "js", "le", "len", "lt", "ne", "not", "or",
    "print", "printf", "println", "slice", "urlquery",
];

/// Whether a map stands for a struct.
pub(super) fn has_fields(map: &BTreeMap<Arc<str>, Value>) -> bool {
    map.contains_key(PRINTED)
}

/// The value of `.` in templates.
pub(super) fn root(context: &TemplateContext) -> Value {
    let text = |text: &str| Value::String(text.into());
    let labels = context.service_labels.iter().map(|(key, value)| (Arc::from(key.as_str()), text(value)));
    let labels = Value::Map(Arc::new(labels.collect()));
    let service = structure(vec![
        ("ID", text(&context.service_id)),
        ("Name", text(&context.service_name)),
        ("Labels", labels),
    ]);
    let platform = structure(vec![("Architecture", text(&context.architecture)), ("OS", text(&context.os))]);
    let node = structure(vec![
        ("ID", text(&context.node_id)),
        ("Hostname", text(&context.node_hostname)),
        ("Platform", platform),
    ]);
    let task = structure(vec![
        ("ID", text(&context.task_id)),
        ("Name", text(&context.task_name)),
        ("Slot", text(&context.task_slot)),
    ]);
    structure(vec![("Service", service), ("Node", node), ("Task", task)])
}

/// A struct with these fields, in the order in which Go prints them.
fn structure(fields: Vec<(&'static str, Value)>) -> Value {
    let printed: Vec<String> = fields.iter().map(|(_, value)| printed(value)).collect();
    let mut entries = map(fields);
    entries.insert(Arc::from(PRINTED), Value::String(format!("{{{}}}", printed.join(" ")).into()));
    Value::Map(Arc::new(entries))
}

fn printed(value: &Value) -> String {
    match value {
        Value::Map(fields) => fields.get(PRINTED).map_or_else(|| value.to_string(), ToString::to_string),
        other => other.to_string(),
    }
}

/// The template with each printed struct replaced by its printed form. Afterwards its main text is
/// under [`NAME`].
///
/// # Errors
/// [`TemplateError::RangeOverFields`]
pub(super) fn print_as_go(template: Template) -> Result<Template, TemplateError> {
    let mut names: Vec<String> = template.templates().into_iter().map(str::to_owned).collect();
    names.retain(|name| name != NAME);
    let bodies = names.iter().map(|name| (name.clone(), Dot::Unknown));
    let bodies: Vec<_> = bodies.chain([(NAME.to_owned(), Dot::At(Vec::new()))]).collect();
    let mut rewritten = template;
    for (name, dot) in bodies {
        let Some(mut body) = rewritten.lookup(&name).cloned() else { continue };
        list(&mut body, &dot)?;
        rewritten = rewritten.add_parse_tree(&name, body);
    }
    Ok(rewritten)
}

/// Checks that all functions that a template calls are Go's or in `more`.
///
/// # Errors
/// [`TemplateError::UnknownFunction`]
pub(super) fn check_functions(template: &Template, more: &[&str]) -> Result<(), TemplateError> {
    let mut names = template.templates();
    names.push(NAME);
    for body in names.into_iter().filter_map(|name| template.lookup(name)) {
        for pipe in pipes(body) {
            if let Some(unknown) = unknown_function(pipe, more) {
                return Err(TemplateError::UnknownFunction(unknown));
            }
        }
    }
    Ok(())
}

/// The value of `.` at some place of a template.
#[derive(Clone, PartialEq)]
enum Dot {
    /// The value at this path from the root.
    At(Vec<String>),
    /// A value that depends on the expansion.
    Unknown,
}

impl Dot {
    /// The path of an expression, if it is a field of a known value.
    fn path(&self, expr: &Expr) -> Option<Vec<String>> {
        let (base, fields): (&[String], &[_]) = match (expr, self) {
            (Expr::Dot(_), Self::At(path)) => (path, &[]),
            (Expr::Field(_, fields), Self::At(path)) => (path, fields),
            (Expr::Variable(_, name, fields), _) if name == "$" => (&[], fields),
            _ => return None,
        };
        Some(base.iter().cloned().chain(fields.iter().map(ToString::to_string)).collect())
    }

    /// The value of `.` inside a `with` of this pipeline.
    fn inside(&self, pipe: &PipeNode) -> Self {
        match pipe.commands.as_slice() {
            [CommandNode { args, .. }] if args.len() == 1 => {
                self.path(&args[0]).map_or(Self::Unknown, Self::At)
            }
            _ => Self::Unknown,
        }
    }
}

fn is_struct(path: &[String]) -> bool {
    STRUCTS.iter().any(|known| known.len() == path.len() && known.iter().zip(path).all(|(a, b)| a == b))
}

fn list(body: &mut ListNode, dot: &Dot) -> Result<(), TemplateError> {
    body.nodes.iter_mut().try_for_each(|node| rewrite(node, dot))
}

fn rewrite(node: &mut Node, dot: &Dot) -> Result<(), TemplateError> {
    match node {
        Node::List(body) => list(body, dot)?,
        // A declared variable keeps the struct: the template may use its fields.
        Node::Action(action) if action.pipe.decl.is_empty() => print_pipe(&mut action.pipe, dot),
        Node::If(branch) => {
            list(&mut branch.body, dot)?;
            branch.else_body.as_mut().map_or(Ok(()), |body| list(body, dot))?;
        }
        Node::With(branch) => {
            let inside = dot.inside(&branch.pipe);
            list(&mut branch.body, &inside)?;
            branch.else_body.as_mut().map_or(Ok(()), |body| list(body, dot))?;
        }
        Node::Range(branch) => {
            if let Dot::At(path) = dot.inside(&branch.pipe)
                && is_struct(&path)
            {
                return Err(TemplateError::RangeOverFields(path.join(".")));
            }
            list(&mut branch.body, &Dot::Unknown)?;
            branch.else_body.as_mut().map_or(Ok(()), |body| list(body, dot))?;
        }
        _ => {}
    }
    Ok(())
}

/// Rewrites a pipeline whose value is printed.
fn print_pipe(pipe: &mut PipeNode, dot: &Dot) {
    for argument in pipe.commands.iter_mut().flat_map(|command| &mut command.args) {
        if let Expr::Pipe(_, inner) = argument {
            print_pipe(inner, dot);
        } else if dot.path(argument).is_some_and(|path| is_struct(&path)) {
            match argument {
                Expr::Field(_, fields) | Expr::Variable(_, _, fields) => fields.push(PRINTED.into()),
                other => *other = Expr::Field(other.pos(), vec![PRINTED.into()]),
            }
        }
    }
}

/// All pipelines of a body, including those of nested bodies.
fn pipes(body: &ListNode) -> Vec<&PipeNode> {
    let mut found = Vec::new();
    for node in &body.nodes {
        match node {
            Node::List(inner) => found.extend(pipes(inner)),
            Node::Action(action) => found.push(&action.pipe),
            Node::Template(call) => found.extend(&call.pipe),
            Node::If(branch) | Node::With(branch) | Node::Range(branch) => {
                found.push(&branch.pipe);
                found.extend(pipes(&branch.body));
                found.extend(branch.else_body.iter().flat_map(pipes));
            }
            Node::Define(definition) => found.extend(pipes(&definition.body)),
            Node::Text(_) | Node::Break(_) | Node::Continue(_) => {}
        }
    }
    found
}

fn unknown_function(pipe: &PipeNode, more: &[&str]) -> Option<String> {
    pipe.commands.iter().flat_map(|command| &command.args).find_map(|argument| unknown_in(argument, more))
}

fn unknown_in(expr: &Expr, more: &[&str]) -> Option<String> {
    match expr {
        Expr::Identifier(_, name) => {
            let known = FUNCTIONS.contains(&name.as_str()) || more.contains(&name.as_str());
            (!known).then(|| name.to_string())
        }
        Expr::Pipe(_, pipe) => unknown_function(pipe, more),
        Expr::Chain(_, inner, _) => unknown_in(inner, more),
        _ => None,
    }
}

//! Parses the commands from plain text.
//!
//! ```text
//! # a comment
//! nodes shown                      keep nodes' names in this section's answers
//! on node-2                        the following commands go to that node's socket
//! $ docker service ls              a line for the shell; its answer is compared
//! @ running web 3                  wait until three tasks of the service run, and no other starts
//! @ state web failed 2             wait until two tasks of the service have failed
//! @ error web                      wait until a task of the service has an error
//! @ updated web completed          wait until the service's update is in this state
//! @ node node-2 down               wait until the manager sees the node so
//! @ quiet                          wait until every task is in its desired state
//! ```

use anyhow::{Context, Result, bail};

/// A file of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    /// The file's name without its extension.
    pub(super) name: String,
    /// Whether nodes' names are compared: otherwise they depend on chance.
    pub(super) shows_nodes: bool,
    /// The lines, in order.
    pub(super) steps: Vec<ScriptStep>,
}

/// A line of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ScriptStep {
    /// Its number in the file, from 1.
    pub(super) line: usize,
    /// What the step does.
    pub(super) action: Action,
}

/// The action of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Use this node from now on.
    On(String),
    /// Run this command.
    Command(String),
    /// Wait for this state.
    Await(Await),
}

/// A state that the cluster reaches by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Await {
    /// This many tasks of the service run, and no other is starting.
    Running { service: String, count: usize },
    /// At least this many tasks of the service are in this state.
    State { service: String, state: String, count: usize },
    /// A task of the service has an error.
    Error { service: String },
    /// The service's update is in this state.
    Updated { service: String, state: String },
    /// The manager sees the node in this state.
    Node { name: String, state: String },
    /// Every task is in its desired state, and removed ones are gone.
    Quiet,
}

impl Section {
    /// Parses a section.
    ///
    /// # Errors
    /// Names the first malformed line.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self> {
        let mut section = Self { name: name.to_owned(), shows_nodes: false, steps: Vec::new() };
        for (index, line) in text.lines().enumerate() {
            let (number, line) = (index + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line == "nodes shown" {
                section.shows_nodes = true;
                continue;
            }
            let action = action(line).with_context(|| format!("line {number}: {line}"))?;
            section.steps.push(ScriptStep { line: number, action });
        }
        Ok(section)
    }

    /// The commands, in order.
    pub(super) fn commands(&self) -> impl Iterator<Item = (usize, &str)> {
        self.steps.iter().filter_map(|step| match &step.action {
            Action::Command(command) => Some((step.line, command.as_str())),
            _ => None,
        })
    }
}

fn action(line: &str) -> Result<Action> {
    if let Some(command) = line.strip_prefix("$ ") {
        return Ok(Action::Command(command.to_owned()));
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    Ok(match words.as_slice() {
        ["on", node] => Action::On((*node).to_owned()),
        ["@", "running", service, count] => {
            Action::Await(Await::Running { service: (*service).to_owned(), count: number(count)? })
        }
        ["@", "state", service, state, count] => Action::Await(Await::State {
            service: (*service).to_owned(),
            state: (*state).to_owned(),
            count: number(count)?,
        }),
        ["@", "error", service] => Action::Await(Await::Error { service: (*service).to_owned() }),
        ["@", "updated", service, state] => {
            Action::Await(Await::Updated { service: (*service).to_owned(), state: (*state).to_owned() })
        }
        ["@", "node", name, state] => {
            Action::Await(Await::Node { name: (*name).to_owned(), state: (*state).to_owned() })
        }
        ["@", "quiet"] => Action::Await(Await::Quiet),
        _ => {
            bail!(
                "expected `$ command`, `@ running|state|error|updated|node|quiet …`, `on NODE` or `nodes shown`"
            )
        }
    })
}

fn number(word: &str) -> Result<usize> {
    word.parse().with_context(|| format!("`{word}` is no number of tasks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_awaits_and_places() {
        let text = "# what\nnodes shown\n\n$ docker node ls\n@ running web 2\non node-2\n@ quiet\n";
        let section = Section::parse("x", text).unwrap();
        assert!(section.shows_nodes, "the section asks for nodes' names");
        let actions: Vec<&Action> = section.steps.iter().map(|step| &step.action).collect();
        assert_eq!(
            actions,
            [
                &Action::Command("docker node ls".into()),
                &Action::Await(Await::Running { service: "web".into(), count: 2 }),
                &Action::On("node-2".into()),
                &Action::Await(Await::Quiet),
            ]
        );
        assert_eq!(section.commands().collect::<Vec<_>>(), [(4, "docker node ls")]);
    }

    #[test]
    fn a_malformed_line_is_reported_with_its_number() {
        for bad in ["docker ps", "@ running web", "@ running web x", "@ asleep", "on"] {
            let error = format!("{:#}", Section::parse("x", &format!("# y\n{bad}\n")).unwrap_err());
            assert!(error.starts_with("line 2: "), "expected the line's number for {bad:?}, saw: {error}");
        }
    }
}

//! The commands, read from plain text.
//!
//! ```text
//! # a comment
//! nodes shown                      keep nodes' names in this section's answers
//! on node-2                        the following commands go to that node's socket
//! $ docker service ls              a line for the shell; its answer is compared
//! @ running web 3                  wait until three tasks of the service run, and no other starts
//! @ state web failed 2             wait until two tasks of the service have failed
//! @ error web                      wait until a task of the service says what is wrong
//! @ updated web completed          wait until the service's update stands so
//! @ node node-2 down               wait until the manager believes so
//! @ quiet                          wait until no task of the cluster is on its way
//! ```

use anyhow::{Context, Result, bail};

/// A file of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    /// The file's name without its extension.
    pub(super) name: String,
    /// Whether nodes' names are compared: where a task runs is chance otherwise.
    pub(super) shows_nodes: bool,
    /// What to do, in order.
    pub(super) steps: Vec<ScriptStep>,
}

/// A line of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ScriptStep {
    /// Its number in the file, from 1.
    pub(super) line: usize,
    /// What it says.
    pub(super) action: Action,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Go to this node from now on.
    On(String),
    /// Run this.
    Command(String),
    /// Wait for this.
    Await(Await),
}

/// What the cluster is to reach by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Await {
    /// So many tasks of the service run, and nothing else of it is on its way.
    Running { service: String, count: usize },
    /// At least so many tasks of the service are in this state.
    State { service: String, state: String, count: usize },
    /// A task of the service tells an error.
    Error { service: String },
    /// The service's update is in this state.
    Updated { service: String, state: String },
    /// The node is believed to be in this state.
    Node { name: String, state: String },
    /// Every task is where it is wanted, and removed ones are gone.
    Quiet,
}

impl Section {
    /// Reads a section.
    ///
    /// # Errors
    /// Names the first line that can't be understood.
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
    fn what_is_no_line_of_a_section_is_told_with_its_number() {
        for bad in ["docker ps", "@ running web", "@ running web x", "@ asleep", "on"] {
            let error = format!("{:#}", Section::parse("x", &format!("# y\n{bad}\n")).unwrap_err());
            assert!(error.starts_with("line 2: "), "expected the line's number for {bad:?}, saw: {error}");
        }
    }
}

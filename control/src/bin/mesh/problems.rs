//! What is wrong with the cluster, as managers tell it: the verdict and the list of `mesh status`.

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::spent::ago;

/// The answer of `GET /swarm/problems`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"))]
pub(crate) struct Verdict {
    /// How many services and nodes the cluster has.
    pub(crate) services: usize,
    pub(crate) nodes: usize,
    /// How many tasks are wanted and don't run.
    pub(crate) unfilled: usize,
    /// The worst first.
    pub(crate) problems: Vec<Problem>,
}

/// Something that needs a person.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"))]
pub(crate) struct Problem {
    /// `error` or `warning`.
    pub(crate) severity: String,
    /// `cluster`, `node` or `service`.
    pub(crate) kind: String,
    #[serde(rename(deserialize = "ID"))]
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) cause: String,
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) cure: String,
}

/// Asks a manager.
///
/// # Errors
/// It can't be reached, or answers something else.
pub(crate) async fn read(client: &Client) -> anyhow::Result<Verdict> {
    let found = client
        .get("/swarm/problems")
        .await
        .context("read what is wrong (a manager of an older version can't tell: upgrade it)")?;
    serde_json::from_value(found).map_err(|error| client.unreadable(error.to_string()).into())
}

impl Verdict {
    /// Whether every task runs that should, and nothing is wrong, warnings aside.
    pub(crate) fn is_well(&self) -> bool {
        self.unfilled == 0 && self.problems.iter().all(|problem| problem.severity != "error")
    }

    /// The verdict, and the problems under it.
    pub(crate) fn text(&self, now: DateTime<Utc>) -> String {
        let mut lines = vec![self.verdict()];
        for problem in &self.problems {
            let mark = if problem.severity == "error" { '×' } else { '‼' };
            let about = match problem.kind.as_str() {
                "cluster" => String::new(),
                kind => format!("{kind} {} ", problem.name),
            };
            let since = problem.since.map(|since| format!(", for {}", ago(now, since))).unwrap_or_default();
            lines.push(format!("{mark} {about}{}{since}", problem.cause));
            lines.push(format!("    cure: {}", problem.cure));
        }
        lines.join("\n")
    }

    fn verdict(&self) -> String {
        let of = |severity: &str| self.problems.iter().filter(|problem| problem.severity == severity).count();
        let (errors, warnings) = (of("error"), of("warning"));
        let size = format!("{}, {}", counted(self.services, "service"), counted(self.nodes, "node"));
        match (errors, warnings) {
            (0, 0) => format!("All well: {size}"),
            (0, warnings) => format!("All well but for {}: {size}", counted(warnings, "warning")),
            (errors, 0) => format!("{}: {size}", counted(errors, "problem")),
            (errors, warnings) => {
                format!("{}, {}: {size}", counted(errors, "problem"), counted(warnings, "warning"))
            }
        }
    }
}

fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(severity: &str, kind: &str, name: &str, cause: &str) -> Problem {
        Problem {
            severity: severity.to_owned(),
            kind: kind.to_owned(),
            id: String::new(),
            name: name.to_owned(),
            cause: cause.to_owned(),
            since: None,
            cure: format!("mesh why {name}"),
        }
    }

    #[test]
    fn the_verdict_comes_first_and_each_problem_has_its_cure() {
        let now = DateTime::UNIX_EPOCH + chrono::TimeDelta::minutes(10);
        let well = Verdict { services: 12, nodes: 1, unfilled: 0, problems: Vec::new() };
        assert_eq!(well.text(now), "All well: 12 services, 1 node");
        let down = Problem { since: Some(DateTime::UNIX_EPOCH), ..problem("error", "node", "n1", "is down") };
        let unwell = Verdict {
            services: 1,
            nodes: 2,
            unfilled: 0,
            problems: vec![down, problem("warning", "service", "web", "its update is paused")],
        };
        let expected = "1 problem, 1 warning: 1 service, 2 nodes\n× node n1 is down, for 10 minutes\n    cure: mesh why n1\n\
                        ‼ service web its update is paused\n    cure: mesh why web";
        assert_eq!(unwell.text(now), expected);
        assert!(!unwell.is_well());
        assert!(well.is_well());
        assert!(!Verdict { unfilled: 1, ..well }.is_well(), "a task that is about to start");
    }
}

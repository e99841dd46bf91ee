//! `mesh why`: why the slots of a service have the tasks that they have, or none.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use hyper::Method;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cli::Output;
use crate::client::{Client, ClientError, segment};
use crate::spent::ago;
use crate::table;

/// How many of a failed task's last log lines are shown, and how long they may take to come.
const LOG_LINES: usize = 10;
const LOG_LIMIT: Duration = Duration::from_secs(5);
/// The logs of so many slots are read at most: of one service they usually say the same.
const LOGS_MAX: usize = 5;

/// The answer of `GET /services/{id}/why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"))]
struct Why {
    #[serde(rename(deserialize = "ID"))]
    id: String,
    name: String,
    verdict: String,
    #[serde(default)]
    update: String,
    slots: Vec<Slot>,
    /// The nodes that may not run a global service's task.
    #[serde(default)]
    left_out: Vec<Refused>,
}

/// A slot, or a task that is no more, was asked for and isn't there.
#[derive(Debug, Error)]
#[error("service {service} has no slot or task {asked}; it has {}", if slots.is_empty() { "none" } else { slots })]
pub(crate) struct NoSuchSlot {
    service: String,
    asked: String,
    /// The names of the slots that there are.
    slots: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"))]
struct Slot {
    name: String,
    #[serde(rename(deserialize = "TaskID"))]
    task_id: String,
    state: String,
    desired_state: String,
    node: String,
    since: DateTime<Utc>,
    exit_code: Option<i64>,
    error: String,
    #[serde(default)]
    next: String,
    #[serde(default)]
    refused: Vec<Refused>,
    #[serde(default)]
    earlier: Vec<Ended>,
    /// The last lines of the newest task that failed; asked for apart.
    #[serde(default)]
    last_lines: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"))]
struct Refused {
    reason: String,
    nodes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"))]
struct Ended {
    #[serde(rename(deserialize = "TaskID"))]
    task_id: String,
    state: String,
    at: DateTime<Utc>,
    node: String,
    exit_code: Option<i64>,
    error: String,
}

/// Prints why a service, or the slot of one of its tasks, is as it is.
pub(crate) async fn show(client: &Client, asked: &str, output: Output) -> anyhow::Result<String> {
    let (service, slot) = named(client, asked).await?;
    let found = client.get(&format!("/services/{}/why", segment(&service))).await;
    let found = found.with_context(|| format!("ask why {asked}"))?;
    let mut why: Why = serde_json::from_value(found).map_err(|error| client.unreadable(error.to_string()))?;
    if let Some(slot) = slot {
        let slots: Vec<&str> = why.slots.iter().map(|told| told.name.as_str()).collect();
        let slots = slots.join(", ");
        why.slots.retain(|told| told.has(&slot));
        if why.slots.is_empty() {
            return Err(NoSuchSlot { service: why.name, asked: slot, slots }.into());
        }
    }
    let failed = why.slots.iter().enumerate().filter_map(|(index, told)| Some((index, told.failed()?)));
    let asked =
        failed.take(LOGS_MAX).map(|(index, task)| async move { (index, last_lines(client, &task).await) });
    for (index, lines) in futures::future::join_all(asked).await {
        why.slots[index].last_lines = lines;
    }
    Ok(match output {
        Output::Table => why.text(Utc::now()),
        Output::Json => serde_json::to_string(&why).context("write the story as JSON")?,
    })
}

/// The service that `asked` names, and the slot or task of it: `web`, `web.3`, a service's or a
/// task's id.
async fn named(client: &Client, asked: &str) -> anyhow::Result<(String, Option<String>)> {
    match client.get(&format!("/services/{}", segment(asked))).await {
        Ok(_) => return Ok((asked.to_owned(), None)),
        Err(ClientError::Refused { status: 404, .. }) => {}
        Err(error) => return Err(error).with_context(|| format!("look for {asked}")),
    }
    match client.get(&format!("/tasks/{}", segment(asked))).await {
        Ok(task) => {
            let ids = task["ID"].as_str().zip(task["ServiceID"].as_str());
            let (id, service) = ids.ok_or_else(|| client.unreadable("a task without ids".to_owned()))?;
            return Ok((service.to_owned(), Some(id.to_owned())));
        }
        Err(ClientError::Refused { status: 404, .. }) => {}
        Err(error) => return Err(error).with_context(|| format!("look for a task {asked}")),
    }
    let service = asked.rsplit_once('.').map_or(asked, |(service, _)| service);
    let found = client.get(&format!("/services/{}", segment(service))).await;
    let found = found.with_context(|| format!("find a service or task {asked}"))?;
    let id = found["ID"].as_str().ok_or_else(|| client.unreadable("a service without an ID"))?;
    Ok((id.to_owned(), Some(asked.to_owned())))
}

/// The last lines that a task wrote, or one that says why they can't be read.
async fn last_lines(client: &Client, task: &str) -> Vec<String> {
    let path = format!("/tasks/{}/logs?stdout=1&stderr=1&tail={LOG_LINES}", segment(task));
    match client.bytes(Method::GET, &path, Bytes::new(), LOG_LIMIT).await {
        Ok(stream) => lines(&stream),
        Err(error) => vec![format!("(can't be read: {error:#})")],
    }
}

/// The lines of Docker's multiplexed log stream: frames of an 8-byte header and their text. A TTY's
/// stream has no headers.
fn lines(stream: &[u8]) -> Vec<String> {
    let mut text = Vec::new();
    let mut rest = stream;
    while let [kind @ 0..=2, 0, 0, 0, a, b, c, d, tail @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let (frame, next) = tail.split_at(length.min(tail.len()));
        // Frames of kind 0 are standard input's, which nothing writes.
        if *kind > 0 {
            text.extend_from_slice(frame);
        }
        rest = next;
    }
    text.extend_from_slice(rest);
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

impl Slot {
    /// Whether this is the slot of that name, or the task of that id is in it.
    fn has(&self, asked: &str) -> bool {
        self.name == asked || self.task_id == asked || self.earlier.iter().any(|ended| ended.task_id == asked)
    }

    /// The id of the newest task of the slot that failed, if the shown task doesn't run well: it
    /// isn't running, its node is down, or the task before it failed, as in a crash loop.
    fn failed(&self) -> Option<String> {
        let before = self.earlier.iter().map(|ended| (&ended.state, &ended.task_id));
        let runs_well = self.state == "running"
            && self.error.is_empty()
            && self.earlier.first().is_none_or(|ended| ended.state != "failed");
        let mut all = std::iter::once((&self.state, &self.task_id)).chain(before);
        if runs_well { None } else { all.find(|(state, _)| *state == "failed").map(|(_, task)| task.clone()) }
    }
}

impl Refused {
    /// `2 nodes: availability is drain (n1, n2)`, indented.
    fn line(&self) -> String {
        let nodes = if self.nodes.len() == 1 { "node" } else { "nodes" };
        format!("  {} {nodes}: {} ({})", self.nodes.len(), self.reason, self.nodes.join(", "))
    }
}

impl Why {
    fn text(&self, now: DateTime<Utc>) -> String {
        let rows: Vec<_> = self
            .slots
            .iter()
            .map(|slot| {
                [
                    slot.name.clone(),
                    slot.state.clone(),
                    ago(now, slot.since),
                    if slot.node.is_empty() { "-".to_owned() } else { slot.node.clone() },
                    slot.exit_code.map_or_else(String::new, |code| code.to_string()),
                    slot.error.clone(),
                ]
            })
            .collect();
        let mut parts = vec![format!("{}: {}", self.name, self.verdict)];
        if !self.update.is_empty() {
            parts.push(format!("update: {}", self.update));
        }
        parts.push(String::new());
        parts.push(table::render(["SLOT", "STATE", "FOR", "NODE", "EXIT", "ERROR"], &rows));
        parts.extend(self.slots.iter().filter_map(|slot| slot.details(now)));
        if !self.left_out.is_empty() {
            let lines: Vec<String> = self.left_out.iter().map(Refused::line).collect();
            parts.push(format!("\nnodes that may not run it:\n{}", lines.join("\n")));
        }
        parts.join("\n")
    }
}

impl Slot {
    /// What there is to say beside the slot's row.
    fn details(&self, now: DateTime<Utc>) -> Option<String> {
        let mut lines = Vec::new();
        lines.extend((!self.next.is_empty()).then(|| format!("  {}", self.next)));
        lines.extend(self.refused.iter().map(Refused::line));
        lines.extend(self.earlier.iter().map(|ended| {
            let code = ended.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
            let error = if ended.error.is_empty() { String::new() } else { format!(": {}", ended.error) };
            let node = if ended.node.is_empty() { String::new() } else { format!(" on {}", ended.node) };
            format!("  {} {} ago{node}{code}{error}", ended.state, ago(now, ended.at))
        }));
        if !self.last_lines.is_empty() {
            lines.push("  last lines of its log:".to_owned());
            lines.extend(self.last_lines.iter().map(|line| format!("    {line}")));
        }
        (!lines.is_empty()).then(|| format!("\n{}\n{}", self.name, lines.join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_log_stream_become_lines() {
        let frame = |kind: u8, text: &str| {
            let mut bytes = vec![kind, 0, 0, 0];
            bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            bytes.extend(text.as_bytes());
            bytes
        };
        let stream = [frame(1, "one\n"), frame(2, "two\n")].concat();
        assert_eq!(lines(&stream), ["one", "two"]);
        assert_eq!(lines(b"of a tty\n"), ["of a tty"]);
        assert_eq!(lines(&frame(1, "cut off")[..12]), ["cut "]);
    }

    #[test]
    fn a_waiting_slot_shows_the_nodes_that_are_refused_and_a_failed_one_its_ends() {
        let now = DateTime::UNIX_EPOCH + chrono::TimeDelta::minutes(10);
        let slot = Slot {
            name: "web.1".to_owned(),
            task_id: "t2".to_owned(),
            state: "pending".to_owned(),
            desired_state: "running".to_owned(),
            node: String::new(),
            since: DateTime::UNIX_EPOCH,
            exit_code: None,
            error: "no suitable node".to_owned(),
            next: String::new(),
            refused: vec![Refused {
                reason: "constraint node.labels.zone==a is not met".to_owned(),
                nodes: vec!["n1".to_owned(), "n2".to_owned()],
            }],
            earlier: vec![Ended {
                task_id: "t1".to_owned(),
                state: "failed".to_owned(),
                at: DateTime::UNIX_EPOCH,
                node: "n1".to_owned(),
                exit_code: Some(1),
                error: "task: non-zero exit (1)".to_owned(),
            }],
            last_lines: vec!["no such file".to_owned()],
        };
        assert_eq!(slot.failed().as_deref(), Some("t1"));
        let mut looping = Slot { state: "running".to_owned(), error: String::new(), ..slot.clone() };
        assert_eq!(looping.failed().as_deref(), Some("t1"), "a crash loop, seen while it runs");
        "shutdown".clone_into(&mut looping.earlier[0].state);
        assert_eq!(looping.failed(), None, "a task that runs well");
        let why = Why {
            id: "s".to_owned(),
            name: "web".to_owned(),
            verdict: "0 of 1 task runs".to_owned(),
            update: String::new(),
            slots: vec![slot],
            left_out: Vec::new(),
        };
        let expected = "\
web: 0 of 1 task runs

SLOT    STATE     FOR          NODE   EXIT   ERROR
web.1   pending   10 minutes   -             no suitable node

web.1
  2 nodes: constraint node.labels.zone==a is not met (n1, n2)
  failed 10 minutes ago on n1, exit code 1: task: non-zero exit (1)
  last lines of its log:
    no such file";
        assert_eq!(why.text(now), expected);
    }
}

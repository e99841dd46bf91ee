//! `mesh token`: prints a join token.

use anyhow::Context as _;
use serde_json::json;

use crate::cli::{Output, Role};
use crate::client::Client;

/// Prints a join token.
pub(crate) async fn show(client: &Client, role: Role, output: Output) -> anyhow::Result<String> {
    let swarm = client.get("/swarm").await.context("read the join tokens")?;
    let (field, name) = match role {
        Role::Worker => ("Worker", "worker"),
        Role::Manager => ("Manager", "manager"),
    };
    let token = swarm["JoinTokens"][field]
        .as_str()
        .ok_or_else(|| client.unreadable(format!("no {name} token in /swarm")))?;
    Ok(match output {
        Output::Table => token.to_owned(),
        Output::Json => json!({"role": name, "token": token}).to_string(),
    })
}

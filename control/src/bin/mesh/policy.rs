//! `mesh policy`: reads and writes the label `mesh.lb.policy` of a service through the Docker API.

use anyhow::Context as _;
use mesh_state::lb::{POLICY_LABEL, Policy};
use serde_json::{Value, json};

use crate::cli::Output;
use crate::client::{Client, ClientError, segment};

/// The most attempts at an update when other clients update the service at the same time.
const ATTEMPTS: usize = 8;

/// Prints the policy of a service.
pub(crate) async fn get(client: &Client, service: &str, output: Output) -> anyhow::Result<String> {
    let found = read(client, service).await?;
    Ok(match output {
        Output::Table => found.policy().to_owned(),
        Output::Json => json!({"service": found.name(), "policy": found.policy()}).to_string(),
    })
}

/// Sets the policy of a service.
pub(crate) async fn set(
    client: &Client,
    service: &str,
    policy: Policy,
    output: Output,
) -> anyhow::Result<String> {
    for _ in 0..ATTEMPTS {
        let found = read(client, service).await?;
        let before = found.policy().to_owned();
        let name = found.name().to_owned();
        if found.has_label(policy) {
            return Ok(report(output, &name, &before, policy));
        }
        match write(client, found, policy).await {
            Ok(()) => return Ok(report(output, &name, &before, policy)),
            Err(ClientError::Refused { status: 500, message }) if message.contains("out of sequence") => {}
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("other clients keep changing service {service}: its policy was not set, try again")
}

fn report(output: Output, service: &str, before: &str, policy: Policy) -> String {
    match output {
        Output::Table if before == policy.as_str() => format!("{service}: {policy} already"),
        Output::Table => format!("{service}: {before} -> {policy}"),
        Output::Json => json!({"service": service, "policy": policy, "previous": before}).to_string(),
    }
}

/// A service as the API shows it; an update sends its whole spec back.
struct Found {
    service: Value,
}

impl Found {
    fn name(&self) -> &str {
        self.service["Spec"]["Name"].as_str().unwrap_or_default()
    }

    fn policy(&self) -> &str {
        policy_of(&self.service)
    }

    /// Whether the service has the label with this policy; a default policy without a label doesn't
    /// count.
    fn has_label(&self, policy: Policy) -> bool {
        self.service["Spec"]["Labels"][POLICY_LABEL] == policy.as_str()
    }
}

/// The policy that applies to a service, as the API shows it.
pub(crate) fn policy_of(service: &Value) -> &str {
    service["Spec"]["Labels"][POLICY_LABEL].as_str().unwrap_or(Policy::default().as_str())
}

async fn read(client: &Client, service: &str) -> anyhow::Result<Found> {
    let service = client
        .get(&format!("/services/{}", segment(service)))
        .await
        .with_context(|| format!("read service {service}"))?;
    Ok(Found { service })
}

async fn write(client: &Client, found: Found, policy: Policy) -> Result<(), ClientError> {
    let mut service = found.service;
    let id = service["ID"].as_str().ok_or_else(|| client.unreadable("a service without an ID"))?.to_owned();
    let version = service["Version"]["Index"]
        .as_i64()
        .ok_or_else(|| client.unreadable("a service without a version"))?;
    let spec =
        service["Spec"].as_object_mut().ok_or_else(|| client.unreadable("a service without a spec"))?;
    let labels = spec.entry("Labels").or_insert_with(|| json!({}));
    if labels.is_null() {
        *labels = json!({});
    }
    labels[POLICY_LABEL] = json!(policy);
    client.post(&format!("/services/{id}/update?version={version}"), &service["Spec"]).await?;
    Ok(())
}

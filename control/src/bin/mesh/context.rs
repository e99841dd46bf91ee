//! `mesh context`: makes a context of the docker CLI, through that CLI.

use std::process::Command;

use anyhow::{Context as _, bail};

use crate::client::Host;

/// The context's name.
const NAME: &str = "mesh";

/// Makes the context `mesh` for `host`, or updates it.
pub(crate) fn set_up(host: &Host, make_current: bool) -> anyhow::Result<String> {
    set(NAME, "The cluster, by mesh-agent's socket", &format!("host={host}"))?;
    let mut said = format!("docker --context {NAME} goes to {host}");
    if make_current {
        docker(&["context", "use", NAME].map(str::to_owned))?;
        said = format!("{said}, and so does docker alone; `docker context use default` undoes that");
        for variable in ["DOCKER_HOST", "DOCKER_CONTEXT"] {
            if std::env::var_os(variable).is_some() {
                said = format!("{said}\n{variable} is set, and comes before the current context");
            }
        }
    }
    Ok(said)
}

/// Makes the context `name` for docker's `endpoint`, or updates it.
pub(crate) fn set(name: &str, description: &str, endpoint: &str) -> anyhow::Result<()> {
    let exists = docker(&["context", "inspect", name].map(str::to_owned)).is_ok();
    docker(&words(exists, name, description, endpoint))
}

/// The command of docker that sets a context.
fn words(exists: bool, name: &str, description: &str, endpoint: &str) -> Vec<String> {
    let verb = if exists { "update" } else { "create" };
    ["context", verb, name, "--description", description, "--docker", endpoint].map(str::to_owned).to_vec()
}

fn docker(words: &[String]) -> anyhow::Result<()> {
    let shown = format!("docker {}", words.join(" "));
    let output = Command::new("docker")
        .args(words)
        .output()
        .with_context(|| format!("run `{shown}`: is the docker CLI installed?"))?;
    if !output.status.success() {
        bail!("`{shown}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_that_exists_is_updated() {
        let shown = |exists| words(exists, "mesh", "x", "host=unix:///s").join(" ");
        assert_eq!(shown(false), "context create mesh --description x --docker host=unix:///s");
        assert_eq!(shown(true), "context update mesh --description x --docker host=unix:///s");
    }
}

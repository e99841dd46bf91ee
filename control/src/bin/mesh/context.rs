//! `mesh context`: makes a context of the docker CLI, through that CLI.

use std::process::Command;

use anyhow::{Context as _, bail};

use crate::client::Host;

/// The context's name.
const NAME: &str = "mesh";

/// Makes the context `mesh` for `host`, or updates it.
pub(crate) fn set_up(host: &Host, make_current: bool) -> anyhow::Result<String> {
    let exists = docker(&["context".to_owned(), "inspect".to_owned(), NAME.to_owned()]).is_ok();
    for step in steps(exists, host, make_current) {
        docker(&step)?;
    }
    let mut said = format!("docker --context {NAME} goes to {host}");
    if make_current {
        said = format!("{said}, and so does docker alone; `docker context use default` undoes that");
        for variable in ["DOCKER_HOST", "DOCKER_CONTEXT"] {
            if std::env::var_os(variable).is_some() {
                said = format!("{said}\n{variable} is set, and comes before the current context");
            }
        }
    }
    Ok(said)
}

/// The commands of docker that set the context up.
fn steps(exists: bool, host: &Host, make_current: bool) -> Vec<Vec<String>> {
    let verb = if exists { "update" } else { "create" };
    let endpoint = format!("host={host}");
    let set = [
        "context",
        verb,
        NAME,
        "--description",
        "The cluster, by mesh-agent's socket",
        "--docker",
        &endpoint,
    ];
    let mut steps = vec![set.map(str::to_owned).to_vec()];
    if make_current {
        steps.push(["context", "use", NAME].map(str::to_owned).to_vec());
    }
    steps
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
        let host: Host = "unix:///run/mesh/docker.sock".parse().unwrap();
        let shown = |exists, make_current| {
            let steps = steps(exists, &host, make_current);
            steps.iter().map(|step| step[..3].join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(shown(false, false), ["context create mesh"]);
        assert_eq!(shown(true, true), ["context update mesh", "context use mesh"]);
        assert!(steps(false, &host, false)[0].contains(&"host=unix:///run/mesh/docker.sock".to_owned()));
    }
}

//! Isolation holds from a task's first packet on.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use mesh_lab::cluster::eventually;
use mesh_tests::Service;

use crate::shop::Shop;

const BACK: &str = "shop_back";
const MESH: &str = "mesh";
/// The number of tasks that try. `MESH_STARTS` names another one: a hundred take two minutes on a
/// busy machine.
const STARTS: &str = "10";
/// The number of tasks at a time: what the lab's engines start at once.
const AT_ONCE: &str = "25";

/// The deadline of all starts.
const STARTS_PATIENCE: Duration = Duration::from_mins(3);

/// Tasks whose first act is to connect to tasks of a network that they aren't on, on the
/// same node and on others, by every address of theirs and by the virtual IP. The same program
/// reaches all of them from their own network.
///
/// In the lab with XDP it would be the same test again: the programs at tasks' veths are those of
/// TC.
pub(crate) fn reach_no_stranger(shop: &Shop) -> Result<()> {
    if shop.cluster.record.datapath == "xdp" {
        return Ok(());
    }
    let echoes = shop.tasks("echo")?;
    let mut members = vec![shop.virtual_ip("echo", "back")?.to_string()];
    let mut others = Vec::new();
    for echo in echoes.values() {
        members.push(echo.address(BACK)?.to_string());
        others.push(echo.address(MESH)?.to_string());
    }
    let members = members.join(",");
    run(shop, "insider", BACK, "1", &["--reach-all", "--reach", &members])?;
    let everything = format!("{members},{}", others.join(","));
    let starts = std::env::var("MESH_STARTS").unwrap_or_else(|_| STARTS.to_owned());
    run(shop, "outsider", "shop_elsewhere", &starts, &["--reach", &everything])
}

/// Runs a job of `whoami` with these arguments on a network; an error if one of its tasks fails.
fn run(shop: &Shop, name: &str, network: &str, tasks: &str, arguments: &[&str]) -> Result<()> {
    let mut words = vec!["--detach", "--mode", "replicated-job", "--restart-condition", "none"];
    words.extend(["--replicas", tasks, "--max-concurrent", AT_ONCE, "--network", network, "whoami"]);
    words.extend(arguments);
    let job = Service::create(&shop.cluster, name, &words)?;
    let wanted: usize = tasks.parse()?;
    let ended = |word: &str| -> Result<Vec<_>> {
        let rows = shop.docker.tasks(job.name())?;
        Ok(rows.into_iter().filter(|row| row.current_state.starts_with(word)).collect())
    };
    let mut failed = Vec::new();
    eventually(&format!("{tasks} tasks of {name} to end"), STARTS_PATIENCE, || {
        failed = ended("Failed")?;
        let complete = ended("Complete")?.len();
        ensure!(!failed.is_empty() || complete == wanted, "{complete} are complete");
        Ok(())
    })?;
    if failed.is_empty() {
        return Ok(());
    }
    let said = shop.docker.run(&["service", "logs", "--raw", job.name()])?;
    Err(anyhow!("{} tasks of {name} failed, they said: {said}", failed.len()))
}

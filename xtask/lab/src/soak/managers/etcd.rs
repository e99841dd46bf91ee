//! The etcd that managers run, seen through etcdctl with a manager's certificates; and its death.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::Lab;
use crate::cluster::eventually;
use crate::component::Component;
use crate::daemon;
use crate::record::Record;

/// How long members may take to follow.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often an etcd that must stay dead is looked for: mesh-control starts it again.
const LOOK: Duration = Duration::from_millis(10);

/// The names of the members with a vote, by the etcd on `node`; a learner's name ends with
/// ` (learner)`.
fn members(lab: &Lab, node: &str) -> Result<Vec<String>> {
    let listed = etcdctl(lab, node, &["member", "list"])?;
    let mut names = listed
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(',').map(str::trim).collect();
            let (name, learner) = (words.get(2).context("a name")?, words.last().context("a role")?);
            Ok(if *learner == "true" { format!("{name} (learner)") } else { (*name).to_owned() })
        })
        .collect::<Result<Vec<String>>>()
        .with_context(|| format!("the members: {listed}"))?;
    names.sort_unstable();
    Ok(names)
}

/// Waits until etcd's members are exactly the managers on these nodes, all with a vote.
///
/// # Errors
/// They aren't in time.
pub(in crate::soak) fn follows(lab: &Lab, node: &str, expected: &[&str]) -> Result<()> {
    let mut expected: Vec<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    expected.sort_unstable();
    eventually(&format!("etcd's members {expected:?}"), PATIENCE, || {
        let seen = members(lab, node)?;
        ensure!(seen == expected, "etcd's members: {seen:?}");
        Ok(())
    })
}

/// Whether the etcd on `node` leads the others.
///
/// # Errors
/// It doesn't answer.
pub(in crate::soak) fn leads(lab: &Lab, node: &str) -> Result<bool> {
    let status = etcdctl(lab, node, &["endpoint", "status"])?;
    Ok(status.split(',').nth(4).context("a status")?.trim() == "true")
}

fn etcdctl(lab: &Lab, node: &str, words: &[&str]) -> Result<String> {
    let words: Vec<String> =
        ["etcdctl", "--command-timeout=10s"].iter().chain(words).map(|w| (*w).to_owned()).collect();
    let output = lab.command(node, &words)?.output().context("start etcdctl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?} on {node}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Kills the etcd of each of these nodes, and each one that mesh-control starts after it, until
/// `stop`.
///
/// # Errors
/// A node runs no mesh-control, or its child can't be killed.
pub(in crate::soak) fn keep_dead(lab: &Lab, nodes: &[&str], stop: &AtomicBool) -> Result<u64> {
    let record = Record::load(&lab.layout().record_file())?;
    let control = |node: &&str| {
        let pid = record.node(node).and_then(|node| node.pids.get(Component::Control));
        pid.with_context(|| format!("{node} runs no mesh-control"))
    };
    let controls = nodes.iter().map(control).collect::<Result<Vec<u32>>>()?;
    let mut killed = 0;
    while !stop.load(Ordering::Relaxed) {
        for child in controls.iter().flat_map(|control| daemon::children_of(*control)) {
            let target = i32::try_from(child).ok().and_then(Pid::from_raw).context("a process id")?;
            match kill_process(target, Signal::KILL) {
                Ok(()) => killed += 1,
                Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("kill process {child}")),
            }
        }
        thread::sleep(LOOK);
    }
    Ok(killed)
}

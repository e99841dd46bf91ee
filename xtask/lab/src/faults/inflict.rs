//! Makes a fault on a node, waits, and undoes it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::fault::{Fault, Span};
use crate::artifacts::Binaries;
use crate::cluster::Docker;
use crate::component::Component;
use crate::layout::{CLIENT_IP, PREFIX_BITS, PREFIX6_BITS};
use crate::netns::Netns;
use crate::{Lab, Part};

/// How far a clock jumps, seconds.
const JUMP: i64 = 3600;
/// The lost packets, per cent.
const LOSS: u8 = 5;
/// What a slow engine gets of a CPU, per cent.
const SLOW_ENGINE: u32 = 5;
/// The uplink's MTU, and what it is lowered to.
const MTU: &str = "1500";
const LOWER_MTU: &str = "1400";
/// The file that fills a disk.
const FILLER: &str = "filler";
/// Settings that mesh depends on, with the values that a host's reset gives them.
const SYSCTLS: [(&str, &str); 3] = [
    ("net.ipv4.ip_forward", "0"),
    ("net.ipv4.conf.all.rp_filter", "1"),
    ("net.ipv4.conf.eth0.rp_filter", "1"),
];

/// Makes the fault on the node, calls `meanwhile` once it is there, and undoes it when its time is
/// over. The span is measured from `since` on.
///
/// # Errors
/// The fault can't be made or undone; the message says which.
pub(super) fn inflict(
    lab: &mut Lab,
    binaries: &Binaries,
    fault: Fault,
    node: &str,
    since: Instant,
    meanwhile: impl FnOnce(),
) -> Result<Span> {
    let begun = since.elapsed();
    let made = Instant::now();
    make(lab, fault, node).with_context(|| format!("make {fault:?} on {node}"))?;
    meanwhile();
    thread::sleep(fault.lasts().saturating_sub(made.elapsed()));
    undo(lab, binaries, fault, node).with_context(|| format!("undo {fault:?} on {node}"))?;
    Ok(Span { begun, healed: since.elapsed() })
}

/// The node whose manager leads.
///
/// # Errors
/// No manager answers, or none leads.
pub(crate) fn leader(docker: &Docker) -> Result<String> {
    let rows = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
    let leader = rows.lines().find_map(|row| row.strip_suffix(" Leader"));
    leader.map(str::to_owned).with_context(|| format!("no leader among {rows}"))
}

fn killed(fault: Fault) -> Option<Part> {
    Some(match fault {
        Fault::AgentKilled => Part::One(Component::Agent),
        Fault::ControlKilled => Part::One(Component::Control),
        Fault::EtcdKilled => Part::One(Component::Etcd),
        Fault::EngineKilled => Part::One(Component::Dockerd),
        Fault::NodeKilled => Part::All,
        _ => return None,
    })
}

fn stopped(fault: Fault) -> Option<Component> {
    Some(match fault {
        Fault::AgentStopped => Component::Agent,
        Fault::ControlStopped => Component::Control,
        Fault::EtcdStopped => Component::Etcd,
        Fault::EngineHung => Component::Dockerd,
        _ => return None,
    })
}

fn make(lab: &mut Lab, fault: Fault, node: &str) -> Result<()> {
    if let Some(part) = killed(fault) {
        return lab.kill(node, part);
    }
    if let Some(component) = stopped(fault) {
        return lab.pause(node, component, true);
    }
    let layout = lab.node(node)?;
    let netns = Netns::named(layout.netns());
    match fault {
        Fault::NodeCutOff | Fault::LeaderCutOff => lab.partition(node, false),
        Fault::EngineSlow => lab.limit_cpu(node, Component::Dockerd, Some(SLOW_ENGINE)),
        Fault::AgentDiskFull | Fault::EtcdDiskFull => fill(&disk(lab, fault, node)?),
        Fault::ClockAhead => lab.set_clock(node, JUMP),
        Fault::ClockBehind => lab.set_clock(node, -JUMP),
        Fault::PacketLoss => lab.lose_packets(node, LOSS),
        Fault::FirewallFlushed => run(lab, node, &["nft", "flush", "ruleset"]),
        Fault::SysctlsReset => SYSCTLS.iter().try_for_each(|(key, value)| netns.sysctl(key, value)),
        Fault::UplinkDown => netns.ip(&["link", "set", "eth0", "down"]),
        Fault::AddressLost => {
            netns.ip(&["address", "delete", &format!("{}/{PREFIX_BITS}", layout.ip()), "dev", "eth0"])
        }
        Fault::MtuChanged => netns.ip(&["link", "set", "eth0", "mtu", LOWER_MTU]),
        _ => bail!("nobody knows how to make it"),
    }
}

fn undo(lab: &mut Lab, binaries: &Binaries, fault: Fault, node: &str) -> Result<()> {
    if let Some(part) = killed(fault) {
        return lab.start(node, part, binaries);
    }
    if let Some(component) = stopped(fault) {
        return lab.pause(node, component, false);
    }
    let layout = lab.node(node)?;
    let netns = Netns::named(layout.netns());
    let gateway = CLIENT_IP.to_string();
    match fault {
        Fault::NodeCutOff | Fault::LeaderCutOff => lab.partition(node, true),
        Fault::EngineSlow => lab.limit_cpu(node, Component::Dockerd, None),
        Fault::AgentDiskFull | Fault::EtcdDiskFull => {
            let filler = disk(lab, fault, node)?.join(FILLER);
            fs::remove_file(&filler).with_context(|| format!("remove {}", filler.display()))?;
            // etcd ends when it can't write. mesh-control or its unit would start it again; the
            // lab's etcd has neither.
            if fault == Fault::EtcdDiskFull && lab.ended(node)?.contains(&Component::Etcd) {
                lab.start(node, Part::One(Component::Etcd), binaries)?;
            }
            Ok(())
        }
        Fault::ClockAhead | Fault::ClockBehind => lab.set_clock(node, 0),
        Fault::PacketLoss => lab.lose_packets(node, 0),
        // What the host's own tools put up again is not mesh's; mesh restores what it needs itself.
        Fault::FirewallFlushed | Fault::SysctlsReset => Ok(()),
        Fault::UplinkDown => {
            netns.ip(&["link", "set", "eth0", "up"])?;
            // The link loses its IPv6 addresses and all routes with it.
            let ip6 = format!("{}/{PREFIX6_BITS}", layout.ip6());
            netns.ip(&["-6", "address", "replace", &ip6, "dev", "eth0", "nodad"])?;
            netns.ip(&[
                "-6",
                "route",
                "replace",
                "default",
                "via",
                &crate::layout::ip6_of(CLIENT_IP).to_string(),
            ])?;
            netns.ip(&["route", "replace", "default", "via", &gateway])
        }
        Fault::AddressLost => {
            netns.ip(&["address", "add", &format!("{}/{PREFIX_BITS}", layout.ip()), "dev", "eth0"])?;
            netns.ip(&["route", "replace", "default", "via", &gateway])
        }
        Fault::MtuChanged => netns.ip(&["link", "set", "eth0", "mtu", MTU]),
        _ => bail!("nobody knows how to undo it"),
    }
}

fn disk(lab: &Lab, fault: Fault, node: &str) -> Result<PathBuf> {
    let name = if fault == Fault::EtcdDiskFull { "etcd" } else { "agent" };
    Ok(lab.node(node)?.state_dir().join(name))
}

/// Writes a file until the disk is full.
fn fill(directory: &Path) -> Result<()> {
    let path = directory.join(FILLER);
    let mut file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    let block = vec![0; 64 * 1024];
    loop {
        match file.write(&block) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("fill {}", path.display())),
        }
    }
}

fn run(lab: &Lab, node: &str, words: &[&str]) -> Result<()> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let output = lab.command(node, &words)?.output().with_context(|| format!("start {words:?}"))?;
    if !output.status.success() {
        bail!("{words:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

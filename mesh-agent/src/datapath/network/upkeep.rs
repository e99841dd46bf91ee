//! Watches settings of the host on which mesh depends: checks them regularly, restores what another
//! program has changed, and reports what it can't restore.
//!
//! Invariants: a setting is one line of the table in [`Upkeep::settings`]; a node with a wrong
//! setting says so in `/readyz`; each restoration is counted.
//!
//! Left to others: interfaces, addresses and routes, whose changes the kernel reports
//! ([`super::monitor`]); their restorations are counted here, too.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tracing::{error, info, warn};

use super::firewall::{Firewall, Table};
use super::host::TUNNEL_DEVICE;
use crate::task::bridge::DEVICE as TASKS_DEVICE;

/// Name of the tunnel device, as a setting that was restored.
pub(crate) const TUNNEL: &str = "device mesh-vxlan0";
/// Name of the nftables table.
const RULES: &str = "nft table ip mesh";
/// Name of the nftables table for IPv6.
const RULES6: &str = "nft table ip6 mesh";

/// The state of the host's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostSettings {
    /// How often each setting was restored.
    pub restored: BTreeMap<&'static str, u64>,
    /// The settings that are wrong now, with the next step.
    pub wrong: BTreeMap<&'static str, String>,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CheckResult {
    /// The setting is as it should be, or does not exist.
    Right,
    /// Another program had changed it; it was restored.
    Restored,
    /// It is wrong and can't be restored; the next step.
    Wrong(String),
}

/// A setting and its required value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Setting {
    /// A file below `/proc/sys`; a device's may not exist.
    Sysctl { file: String, value: &'static str },
    /// mesh's own firewall table.
    Rules,
    /// mesh's own firewall table for IPv6.
    Rules6,
    /// A chain that the engine makes only when it starts: tasks need it for outgoing traffic.
    EngineChain { table: &'static str, chain: &'static str },
}

/// The host's settings and their state.
pub(crate) struct Upkeep {
    root: PathBuf,
    pub(crate) firewall: Firewall,
    seen_chains: Vec<&'static str>,
    pub(crate) settings: HostSettings,
}

impl Upkeep {
    /// Checks below `/proc/sys`.
    pub(crate) fn new() -> Self {
        Self::below(PathBuf::from("/proc/sys"))
    }

    fn below(root: PathBuf) -> Self {
        let (firewall, settings) = (Firewall::default(), HostSettings::default());
        Self { root, firewall, seen_chains: Vec::new(), settings }
    }

    /// The table of settings: each one's name and required value.
    fn settings() -> [(&'static str, Setting); 8] {
        let sysctl = |file: String, value| Setting::Sysctl { file, value };
        [
            ("net.ipv4.ip_forward", sysctl("net/ipv4/ip_forward".to_owned(), "1")),
            ("net.ipv6.conf.all.forwarding", sysctl("net/ipv6/conf/all/forwarding".to_owned(), "1")),
            (
                "net.ipv4.conf.mesh0.forwarding",
                sysctl(format!("net/ipv4/conf/{TASKS_DEVICE}/forwarding"), "1"),
            ),
            (
                "net.ipv4.conf.mesh-vxlan0.forwarding",
                sysctl(format!("net/ipv4/conf/{TUNNEL_DEVICE}/forwarding"), "1"),
            ),
            (
                "net.ipv4.conf.mesh-vxlan0.rp_filter",
                sysctl(format!("net/ipv4/conf/{TUNNEL_DEVICE}/rp_filter"), "0"),
            ),
            (RULES, Setting::Rules),
            (RULES6, Setting::Rules6),
            ("iptables nat DOCKER", Setting::EngineChain { table: "nat", chain: "DOCKER" }),
        ]
    }

    /// Checks every setting once; those that need a process of their own only if `thoroughly`.
    /// Blocks.
    pub(crate) fn look(&mut self, thoroughly: bool) {
        for (name, setting) in Self::settings() {
            let found = match &setting {
                Setting::Sysctl { file, value } => self.sysctl(file, value),
                Setting::Rules if thoroughly => rules(&mut self.firewall.notrack),
                Setting::Rules6 if thoroughly => rules(&mut self.firewall.isolation6),
                Setting::EngineChain { table, chain } if thoroughly => self.engine_chain(name, table, chain),
                Setting::Rules | Setting::Rules6 | Setting::EngineChain { .. } => continue,
            };
            self.settings.note(name, found);
        }
    }

    fn sysctl(&self, file: &str, value: &str) -> CheckResult {
        let path = self.root.join(file);
        match std::fs::read_to_string(&path) {
            Ok(present) if present.trim() == value => return CheckResult::Right,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return CheckResult::Right,
            _ => {}
        }
        match std::fs::write(&path, value).and_then(|()| std::fs::read_to_string(&path)) {
            Ok(present) if present.trim() == value => CheckResult::Restored,
            Ok(present) => CheckResult::Wrong(format!("it is {}, and must be {value}", present.trim())),
            Err(error) => CheckResult::Wrong(format!("it must be {value}: {error}; set it by hand")),
        }
    }

    /// A chain that never existed is one that the engine doesn't make here.
    fn engine_chain(&mut self, name: &'static str, table: &str, chain: &str) -> CheckResult {
        if has_chain(table, chain) {
            if !self.seen_chains.contains(&name) {
                self.seen_chains.push(name);
            }
            return CheckResult::Right;
        }
        if !self.seen_chains.contains(&name) {
            return CheckResult::Right;
        }
        let advice =
            "it is gone, and only the engine can make it: restart the engine (systemctl restart docker)";
        CheckResult::Wrong(advice.to_owned())
    }
}

/// Checks a table, and puts it in place again if it was changed.
fn rules(table: &mut Table) -> CheckResult {
    if table.is_in_place() {
        return CheckResult::Right;
    }
    match table.install_again() {
        Ok(()) => CheckResult::Restored,
        Err(error) => CheckResult::Wrong(format!("{error}; is nftables installed?")),
    }
}

fn has_chain(table: &str, chain: &str) -> bool {
    let mut list = Command::new("iptables");
    list.args(["-w", "-t", table, "-S", chain])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    list.status().is_ok_and(|status| status.success())
}

impl HostSettings {
    /// Counts that a setting was restored.
    pub(crate) fn note_restored(&mut self, name: &'static str) {
        warn!(setting = name, "another program had changed a setting that mesh needs: restored it");
        *self.restored.entry(name).or_default() += 1;
    }

    fn note(&mut self, name: &'static str, found: CheckResult) {
        match found {
            CheckResult::Right => {}
            CheckResult::Restored => self.note_restored(name),
            CheckResult::Wrong(advice) => {
                if self.wrong.insert(name, advice.clone()).as_ref() != Some(&advice) {
                    error!(
                        setting = name,
                        advice, "a setting that mesh needs is wrong: this node is not ready"
                    );
                }
                return;
            }
        }
        if self.wrong.remove(name).is_some() {
            info!(setting = name, "the setting is right again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORWARD: &str = "net.ipv4.ip_forward";

    fn host(value: &str) -> (tempfile::TempDir, Upkeep) {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(root.path().join("net/ipv4")).expect("a directory");
        std::fs::write(root.path().join("net/ipv4/ip_forward"), value).expect("a file");
        let upkeep = Upkeep::below(root.path().to_owned());
        (root, upkeep)
    }

    #[test]
    fn what_others_change_is_set_back_and_counted() {
        let (root, mut upkeep) = host("1\n");
        upkeep.look(false);
        assert_eq!(upkeep.settings, HostSettings::default(), "all is well, and what isn't there is nobody's");
        let file = root.path().join("net/ipv4/ip_forward");
        for times in 1..=2 {
            std::fs::write(&file, "0\n").expect("somebody else's write");
            upkeep.look(false);
            assert_eq!(std::fs::read_to_string(&file).expect("the file"), "1");
            assert_eq!(upkeep.settings.restored, BTreeMap::from([(FORWARD, times)]));
        }
        assert!(upkeep.settings.wrong.is_empty());
    }

    #[test]
    fn what_can_not_be_set_back_is_named_until_it_is_right() {
        let (root, mut upkeep) = host("0");
        let file = root.path().join("net/ipv4/ip_forward");
        // Not even root can write to a directory.
        std::fs::remove_file(&file).expect("the file");
        std::fs::create_dir(&file).expect("a directory in its place");
        upkeep.look(false);
        assert!(upkeep.settings.wrong[FORWARD].contains("must be 1"), "{:?}", upkeep.settings.wrong);
        std::fs::remove_dir(&file).expect("the directory");
        std::fs::write(&file, "1").expect("a file");
        upkeep.look(false);
        assert_eq!(upkeep.settings, HostSettings::default());
    }
}

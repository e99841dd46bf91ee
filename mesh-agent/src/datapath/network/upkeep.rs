//! Settings of the host that mesh stands on: looked at regularly, set back when something else has changed them, and named when that
//! fails.
//!
//! Invariants: a setting is one line of the table in [`Upkeep::settings`]; a node with a wrong setting says so in `/readyz`; what was set
//! back is counted.
//!
//! Left to others: interfaces, addresses and routes, of whose changes the kernel tells (`monitor`); they are counted here, too.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tracing::{error, info, warn};

use super::firewall::Firewall;
use super::host::TUNNEL_DEVICE;
use crate::task::bridge::DEVICE as TASKS_DEVICE;

/// The tunnel device, when it had to be made again.
pub(crate) const TUNNEL: &str = "device mesh-vxlan0";
/// Routes to tasks of other nodes, when some had to be made again.
pub(crate) const ROUTES: &str = "routes to tasks";
/// The table of nftables.
const RULES: &str = "nft table ip mesh";

/// What became of the host's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostSettings {
    /// How often each was set back.
    pub restored: BTreeMap<&'static str, u64>,
    /// Those that are wrong now, with what to do.
    pub wrong: BTreeMap<&'static str, String>,
}

/// What a look at a setting found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// It is as it should be, or not there.
    Right,
    /// Something else had changed it: it is set back.
    Restored,
    /// It is wrong and stays so, with what to do.
    Wrong(String),
}

/// A setting and how it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Setting {
    /// A file below `/proc/sys`; that of a device may not be there.
    Sysctl { file: String, value: &'static str },
    /// The firewall table of mesh's own.
    Rules,
    /// A chain that the engine makes when it starts, and then only: tasks need it for the way out.
    EngineChain { table: &'static str, chain: &'static str },
}

/// The host's settings and what is known of them.
pub(crate) struct Upkeep {
    root: PathBuf,
    pub(crate) firewall: Firewall,
    seen_chains: Vec<&'static str>,
    pub(crate) settings: HostSettings,
}

impl Upkeep {
    /// Looks below `/proc/sys`.
    pub(crate) fn new() -> Self {
        Self::below(PathBuf::from("/proc/sys"))
    }

    fn below(root: PathBuf) -> Self {
        let (firewall, settings) = (Firewall::default(), HostSettings::default());
        Self { root, firewall, seen_chains: Vec::new(), settings }
    }

    /// The table: by what name each is known, and how it should be.
    fn settings() -> [(&'static str, Setting); 7] {
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
            ("iptables nat DOCKER", Setting::EngineChain { table: "nat", chain: "DOCKER" }),
        ]
    }

    /// Looks at every setting once; at those that cost a process of their own only if `thoroughly`. Blocking.
    pub(crate) fn look(&mut self, thoroughly: bool) {
        for (name, setting) in Self::settings() {
            let found = match &setting {
                Setting::Sysctl { file, value } => self.sysctl(file, value),
                Setting::Rules if thoroughly => self.rules(),
                Setting::EngineChain { table, chain } if thoroughly => self.engine_chain(name, table, chain),
                Setting::Rules | Setting::EngineChain { .. } => continue,
            };
            self.settings.note(name, found);
        }
    }

    fn sysctl(&self, file: &str, value: &str) -> Found {
        let path = self.root.join(file);
        match std::fs::read_to_string(&path) {
            Ok(present) if present.trim() == value => return Found::Right,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Right,
            _ => {}
        }
        match std::fs::write(&path, value).and_then(|()| std::fs::read_to_string(&path)) {
            Ok(present) if present.trim() == value => Found::Restored,
            Ok(present) => Found::Wrong(format!("it is {}, and must be {value}", present.trim())),
            Err(error) => Found::Wrong(format!("it must be {value}: {error}; set it by hand")),
        }
    }

    fn rules(&mut self) -> Found {
        if self.firewall.is_in_place() {
            return Found::Right;
        }
        match self.firewall.install_again() {
            Ok(()) => Found::Restored,
            Err(error) => Found::Wrong(format!("{error}; is nftables installed?")),
        }
    }

    /// A chain that was never there is none that the engine makes here.
    fn engine_chain(&mut self, name: &'static str, table: &str, chain: &str) -> Found {
        if has_chain(table, chain) {
            if !self.seen_chains.contains(&name) {
                self.seen_chains.push(name);
            }
            return Found::Right;
        }
        if !self.seen_chains.contains(&name) {
            return Found::Right;
        }
        let advice =
            "it is gone, and only the engine can make it: restart the engine (systemctl restart docker)";
        Found::Wrong(advice.to_owned())
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
    /// Counts what had to be set back.
    pub(crate) fn note_restored(&mut self, name: &'static str) {
        warn!(setting = name, "something else had changed a setting that mesh needs: it is set back");
        *self.restored.entry(name).or_default() += 1;
    }

    fn note(&mut self, name: &'static str, found: Found) {
        match found {
            Found::Right => {}
            Found::Restored => self.note_restored(name),
            Found::Wrong(advice) => {
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
        // Not even root writes a directory.
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

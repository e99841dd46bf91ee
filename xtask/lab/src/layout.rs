//! Names, addresses and paths of a lab: everything that follows from its name and size, without any
//! look-up.
//!
//! Invariant: two labs of different names share nothing but the address range, which is private to
//! each one's bridge.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Error, Result, bail};

use mesh_checkout::workspace;

/// The most nodes of a lab; their addresses end in 11 and up.
pub const NODES_MAX: u8 = 100;

/// The client's address, and the nodes' default gateway.
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The length of the lab network's prefix, bits.
pub const PREFIX_BITS: u8 = 24;

/// The length of the lab network's IPv6 prefix, fd77::/64, bits.
pub const PREFIX6_BITS: u8 = 64;

const RUN_ROOT: &str = "/run/mesh-lab";
const STATE_ROOT: &str = "/var/lib/mesh-lab";
const CGROUP_ROOT: &str = "mesh-lab";

/// A lab's name; it prefixes network namespaces and names directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabName(String);

impl FromStr for LabName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase());
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !starts_well || !plain || name.len() > 20 || name == "images" {
            bail!("lab name `{name}`: give a letter, then up to 19 of a-z, 0-9 and -, and not `images`");
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The paths and names of a lab.
#[derive(Debug, Clone)]
pub struct Layout {
    name: LabName,
}

impl Layout {
    /// The layout of the lab of that name.
    pub fn new(name: LabName) -> Self {
        Self { name }
    }

    /// The lab's name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// The lab's own tmpfs: sockets, bpffs mounts, namespaces.
    pub fn run_dir(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(&self.name.0)
    }

    /// The directory of everything that survives a node's power cut.
    pub fn state_dir(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(&self.name.0)
    }

    /// The directory of `lab.json` and of the lock that serialises commands on a lab.
    pub fn record_dir(&self) -> PathBuf {
        let directory = if self.name.0 == "mesh" { "lab".to_owned() } else { format!("lab-{}", self.name) };
        workspace::root().join("target").join(directory)
    }

    /// The description for tests and people.
    pub fn record_file(&self) -> PathBuf {
        self.record_dir().join("lab.json")
    }

    /// The lab's cgroup, relative to a hierarchy's root. It has a prefix, as a lab may be called
    /// `tasks`, like a file of each cgroup.
    pub fn cgroup(&self) -> PathBuf {
        Path::new(CGROUP_ROOT).join(format!("lab-{}", self.name))
    }

    /// The namespace that sends requests.
    pub fn client_netns(&self) -> String {
        format!("{}-client", self.name)
    }

    /// The namespace of the bridge.
    pub fn bridge_netns(&self) -> String {
        format!("{}-bridge", self.name)
    }

    /// The mount point of the bridge's own bpffs.
    pub fn bridge_bpf_dir(&self) -> PathBuf {
        self.run_dir().join("bridge-bpf")
    }

    /// True if a network namespace of that name belongs to this lab, whatever the lab's size was.
    pub fn owns_netns(&self, netns: &str) -> bool {
        let Some(rest) = netns.strip_prefix(&self.name.0).and_then(|rest| rest.strip_prefix('-')) else {
            return false;
        };
        let numbered = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
        rest == "client" || rest == "bridge" || rest.strip_prefix("node-").is_some_and(numbered)
    }

    /// The node of that number, counted from 1.
    pub fn node(&self, number: u8) -> NodeLayout {
        NodeLayout { lab: self.clone(), number }
    }

    /// The node of that name, if it is a valid one.
    pub fn node_named(&self, name: &str) -> Option<NodeLayout> {
        let number = name.strip_prefix("node-")?.parse().ok()?;
        (1..=NODES_MAX).contains(&number).then(|| self.node(number))
    }
}

/// Names, addresses and paths of one node.
#[derive(Debug, Clone)]
pub struct NodeLayout {
    lab: Layout,
    number: u8,
}

impl NodeLayout {
    /// `node-1`, `node-2`, …: its host name, and its port's name on the bridge.
    pub fn name(&self) -> String {
        format!("node-{}", self.number)
    }

    /// The lab that it belongs to.
    pub fn lab(&self) -> &Layout {
        &self.lab
    }

    /// Its address on the lab's network.
    pub fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 10 + self.number)
    }

    /// Its IPv6 address there.
    pub fn ip6(&self) -> Ipv6Addr {
        ip6_of(self.ip())
    }

    /// Its network namespace.
    pub fn netns(&self) -> String {
        format!("{}-{}", self.lab.name, self.name())
    }

    /// The directory of its sockets, which a power cut clears.
    pub fn run_dir(&self) -> PathBuf {
        self.lab.run_dir().join(self.name())
    }

    /// The directory of its disk.
    pub fn state_dir(&self) -> PathBuf {
        self.lab.state_dir().join(self.name())
    }

    /// The socket of its agent.
    pub fn mesh_socket(&self) -> PathBuf {
        self.run_dir().join("docker.sock")
    }

    /// The control plane's socket, on managers.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir().join("control.sock")
    }

    /// The mount point of its bpffs.
    pub fn bpf_dir(&self) -> PathBuf {
        self.run_dir().join("bpf")
    }

    /// The engine's own socket.
    pub fn engine_socket(&self) -> PathBuf {
        self.state_dir().join("engine.sock")
    }

    /// The engine's configuration: the settings that can be changed while it runs.
    pub fn engine_config(&self) -> PathBuf {
        self.state_dir().join("engine.json")
    }

    /// The file of the token with which its agent joins.
    pub fn join_token(&self) -> PathBuf {
        self.state_dir().join("join-token")
    }

    /// The control plane's directory, on managers.
    pub fn control_dir(&self) -> PathBuf {
        self.state_dir().join("control")
    }

    /// The log of a component.
    pub fn log_file(&self, component: impl fmt::Display) -> PathBuf {
        self.state_dir().join("log").join(format!("{component}.log"))
    }

    /// The file that keeps one of its namespaces (`mnt`, `uts`) open.
    pub fn namespace_file(&self, kind: &str) -> PathBuf {
        self.lab.run_dir().join("ns").join(format!("{}.{kind}", self.name()))
    }

    /// Its cgroup, relative to a hierarchy's root.
    pub fn cgroup(&self) -> PathBuf {
        self.lab.cgroup().join(self.name())
    }
}

/// The IPv6 address whose end looks like the IPv4 address's: fd77::11 for 10.77.0.11.
pub fn ip6_of(ip: Ipv4Addr) -> Ipv6Addr {
    let [.., last] = ip.octets().map(u16::from);
    let digits = ((last / 100) << 8) | ((last / 10 % 10) << 4) | (last % 10);
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, digits)
}

/// A locally administered MAC address derived from the IPv4 address, so that it survives a power
/// cut.
pub(super) fn mac_of(ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("02:4d:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(name: &str) -> Layout {
        Layout::new(name.parse().unwrap())
    }

    #[test]
    fn bad_names_are_refused() {
        for name in ["", "-x", "1x", "Mesh", "a/b", "a b", "images", "abcdefghijklmnopqrstu"] {
            assert!(name.parse::<LabName>().is_err(), "expected `{name}` to be refused");
        }
        for name in ["mesh", "x", "a-1", "abcdefghijklmnopqrst"] {
            assert!(name.parse::<LabName>().is_ok(), "expected `{name}` to be taken");
        }
    }

    #[test]
    fn a_lab_owns_its_namespaces_and_no_other_labs() {
        let lab = layout("a");
        for own in ["a-client", "a-bridge", "a-node-1", "a-node-12"] {
            assert!(lab.owns_netns(own), "expected {own} to be lab a's");
        }
        for foreign in ["a", "a-node-", "a-node-x", "a-node-1-client", "ab-client", "a-b-client", "b-node-1"]
        {
            assert!(!lab.owns_netns(foreign), "expected {foreign} not to be lab a's");
        }
    }

    #[test]
    fn nodes_are_numbered_from_one() {
        let lab = layout("mesh");
        let node = lab.node_named("node-3").unwrap();
        assert_eq!(node.ip(), Ipv4Addr::new(10, 77, 0, 13), "address of node-3");
        assert_eq!(node.netns(), "mesh-node-3", "namespace of node-3");
        assert_eq!(mac_of(node.ip()), "02:4d:0a:4d:00:0d", "MAC of node-3");
        assert_eq!(node.ip6().to_string(), "fd77::13", "IPv6 address of node-3");
        assert_eq!(ip6_of(Ipv4Addr::new(10, 77, 0, 110)).to_string(), "fd77::110");
        for name in ["node-0", "node-101", "node-300", "node", "client", "node-x"] {
            assert!(lab.node_named(name).is_none(), "expected no node for `{name}`");
        }
    }

    #[test]
    fn the_default_lab_writes_where_readers_look() {
        assert!(layout("mesh").record_file().ends_with("target/lab/lab.json"), "the default lab's record");
        assert!(layout("x").record_file().ends_with("target/lab-x/lab.json"), "another lab's record");
    }
}

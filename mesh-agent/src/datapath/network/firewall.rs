//! The nftables tables of mesh.
//!
//! * `ip mesh` exempts tunnel packets from connection tracking (notrack), which a Docker engine
//!   switches on. Tracked, each flow would cost conntrack entries on both nodes.
//! * `ip6 mesh` keeps the host from forwarding IPv6 into a network or out of one: not every engine
//!   has rules for IPv6, and a neighbour of the node could send there by way of it.
//!
//! Invariant: each table is replaced as a whole, in one transaction. To see whether it is in place,
//! compare with the kernel's listing at that time, as the kernel formats rules in its own way.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use tracing::warn;

use crate::task::networks::DEVICE_PREFIX as NETWORK_DEVICES;

/// Where the kernel has no IPv6, there is nothing to forward.
const IPV6: &str = "/proc/sys/net/ipv6";

/// A table as it should be.
#[derive(Debug, Default)]
pub(crate) struct Table {
    family: &'static str,
    rules: String,
    /// The kernel's listing of the table, right after it was put in place.
    listed: Option<String>,
}

impl Table {
    /// Puts the last requested table in place again.
    ///
    /// # Errors
    /// nft refuses it.
    pub(crate) fn install_again(&mut self) -> io::Result<()> {
        self.listed = None;
        run(&["-f", "-"], &self.rules)?;
        self.listed = Some(list(self.family)?);
        Ok(())
    }

    /// Whether the table is unchanged since it was put in place; `true` before it was.
    pub(crate) fn is_in_place(&self) -> bool {
        if self.rules.is_empty() {
            return true;
        }
        // To nft a missing table is an error, and so is one that it may not see: putting the table
        // in place tells them apart.
        let Some(listed) = &self.listed else { return false };
        list(self.family).is_ok_and(|present| present == *listed)
    }
}

/// The tables of mesh.
#[derive(Debug, Default)]
pub(crate) struct Firewall {
    pub(crate) notrack: Table,
    pub(crate) isolation6: Table,
}

impl Firewall {
    /// Exempts tunnel packets, by their UDP port, from connection tracking, and isolates networks.
    /// A failure is logged, and the node works without.
    pub(crate) fn install(&mut self, port: u16) {
        self.notrack = Table { family: "ip", rules: notrack_rules(port), listed: None };
        if let Err(error) = self.notrack.install_again() {
            warn!(
                error = mesh_runtime::error_chain(&error),
                "can't keep tunnel packets out of connection tracking (is nftables installed?): each flow then \
                 costs conntrack entries on both nodes"
            );
        }
        if !Path::new(IPV6).exists() {
            return;
        }
        self.isolation6 = Table { family: "ip6", rules: isolation6_rules(), listed: None };
        if let Err(error) = self.isolation6.install_again() {
            warn!(
                error = mesh_runtime::error_chain(&error),
                "can't keep this host from forwarding IPv6 into networks (is nftables installed?): hosts on this \
                 node's own link could send to its tasks on networks with IPv6"
            );
        }
    }
}

/// Removes the tables; returns those that there were, as `family name`.
pub(crate) fn remove() -> Vec<String> {
    let mut removed = Vec::new();
    for family in ["ip", "ip6"] {
        let existed = list(family).is_ok();
        match run(&["-f", "-"], &format!("table {family} mesh\ndelete table {family} mesh\n")) {
            Ok(_) if existed => removed.push(format!("{family} mesh")),
            Ok(_) => {}
            Err(error) => warn!(
                error = mesh_runtime::error_chain(&error),
                "can't delete the nftables table `{family} mesh`: `nft delete table {family} mesh` if it is there"
            ),
        }
    }
    removed
}

/// One transaction that replaces the table of IPv6. A network's bridge joins its own ports only;
/// packets between them pass this hook as well where the kernel shows it those of bridges.
fn isolation6_rules() -> String {
    let device = format!("{NETWORK_DEVICES}*");
    format!(
        "table ip6 mesh\n\
         delete table ip6 mesh\n\
         table ip6 mesh {{\n\
         chain forward {{ type filter hook forward priority filter; policy accept; \
         iifname != \"{device}\" oifname \"{device}\" drop; iifname \"{device}\" oifname != \"{device}\" drop; }}\n\
         }}\n"
    )
}

/// One transaction that replaces the table, whether it existed or not.
fn notrack_rules(port: u16) -> String {
    format!(
        "table ip mesh\n\
         delete table ip mesh\n\
         table ip mesh {{\n\
         chain prerouting {{ type filter hook prerouting priority raw; policy accept; udp dport {port} notrack; }}\n\
         chain output {{ type filter hook output priority raw; policy accept; udp dport {port} notrack; }}\n\
         }}\n"
    )
}

fn list(family: &str) -> io::Result<String> {
    run(&["list", "table", family, "mesh"], "")
}

fn run(words: &[&str], script: &str) -> io::Result<String> {
    let mut child = Command::new("nft")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_forwarded_into_a_network_or_out_of_one() {
        let rules = isolation6_rules();
        assert!(rules.starts_with("table ip6 mesh\ndelete table ip6 mesh\n"), "{rules}");
        for rule in [
            "iifname != \"meshn*\" oifname \"meshn*\" drop;",
            "iifname \"meshn*\" oifname != \"meshn*\" drop;",
        ] {
            assert!(rules.contains(rule), "{rules}");
        }
    }

    #[test]
    fn the_rules_replace_themselves_and_name_the_port() {
        let rules = notrack_rules(4799);
        let (declared, deleted) = (rules.find("table ip mesh\n"), rules.find("delete table ip mesh"));
        assert!(declared < deleted, "a table must exist to be deleted: {rules}");
        assert_eq!(rules.matches("udp dport 4799 notrack").count(), 2, "both hooks: {rules}");
    }
}

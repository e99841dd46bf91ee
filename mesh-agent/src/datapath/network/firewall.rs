//! The nftables table `ip mesh`: exempts tunnel packets from connection tracking (notrack), which a
//! Docker engine switches on. Tracked, each flow would cost conntrack entries on both nodes.
//!
//! Invariant: the table is replaced as a whole, in one transaction. To see whether it is in place,
//! compare with the kernel's listing at that time, as the kernel formats rules in its own way.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use tracing::warn;

/// The table as it should be.
#[derive(Debug, Default)]
pub(crate) struct Firewall {
    rules: String,
    /// The kernel's listing of the table, right after it was put in place.
    listed: Option<String>,
}

impl Firewall {
    /// Exempts tunnel packets, by their UDP port, from connection tracking. A failure is logged,
    /// and the node works without.
    pub(crate) fn exempt(&mut self, port: u16) {
        self.rules = notrack_rules(port);
        if let Err(error) = self.install_again() {
            warn!(
                error = mesh_runtime::error_chain(&error),
                "can't keep tunnel packets out of connection tracking (is nftables installed?): each flow then \
                 costs conntrack entries on both nodes"
            );
        }
    }

    /// Puts the last requested table in place again.
    ///
    /// # Errors
    /// nft refuses it.
    pub(crate) fn install_again(&mut self) -> io::Result<()> {
        self.listed = None;
        run(&["-f", "-"], &self.rules)?;
        self.listed = Some(list()?);
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
        list().is_ok_and(|present| present == *listed)
    }
}

/// Removes the table.
pub(crate) fn remove() {
    if let Err(error) = run(&["-f", "-"], "table ip mesh\ndelete table ip mesh\n") {
        warn!(
            error = mesh_runtime::error_chain(&error),
            "can't delete the nftables table `ip mesh`: `nft delete table ip mesh` if it is there"
        );
    }
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

fn list() -> io::Result<String> {
    run(&["list", "table", "ip", "mesh"], "")
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
    fn the_rules_replace_themselves_and_name_the_port() {
        let rules = notrack_rules(4799);
        let (declared, deleted) = (rules.find("table ip mesh\n"), rules.find("delete table ip mesh"));
        assert!(declared < deleted, "a table must exist to be deleted: {rules}");
        assert_eq!(rules.matches("udp dport 4799 notrack").count(), 2, "both hooks: {rules}");
    }
}

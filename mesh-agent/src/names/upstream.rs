//! The host's resolvers, as listed in `resolv.conf`.
//!
//! Invariants: a change of the file applies from the next question on. If the file can't be read,
//! the last list stays. The addresses of this server itself are never in the list.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_admission::figures::names::RESOLVERS;

/// Identifies a version of the file.
type Stamp = (i64, i64, u64, u64);

/// The host's resolvers.
#[derive(Debug)]
pub(super) struct Resolvers {
    path: PathBuf,
    port: u16,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stamp: Option<Stamp>,
    listed: Vec<SocketAddr>,
    own: BTreeSet<Ipv4Addr>,
    /// Whether the last read of the file failed, so that a failure is logged once.
    is_unreadable: bool,
}

impl Resolvers {
    /// The resolvers listed in the file at `path`, which are asked at `port`.
    pub(super) fn new(path: PathBuf, port: u16) -> Arc<Self> {
        Arc::new(Self { path, port, state: Mutex::default() })
    }

    /// Excludes this server's own addresses from now on.
    pub(super) fn leave_out(&self, own: BTreeSet<Ipv4Addr>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).own = own;
    }

    /// The resolvers in the file's order. Reads the file again if it has changed.
    pub(super) fn now(&self) -> Vec<SocketAddr> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match self.reread(state.stamp) {
            Ok(None) => {}
            Ok(Some((stamp, text))) => {
                state.stamp = Some(stamp);
                state.listed = parse(&text, self.port);
                state.is_unreadable = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut state.is_unreadable, true) {
                    tracing::warn!(
                        file = %self.path.display(),
                        %error,
                        "can't read the host's resolvers: foreign names are asked where they were before"
                    );
                }
            }
        }
        let is_own = |address: &&SocketAddr| match address.ip() {
            IpAddr::V4(address) => state.own.contains(&address),
            IpAddr::V6(address) => {
                address.to_ipv4_mapped().is_some_and(|address| state.own.contains(&address))
            }
        };
        state.listed.iter().filter(|address| !is_own(address)).copied().collect()
    }

    /// The file's text and stamp, if the stamp differs from `known`.
    fn reread(&self, known: Option<Stamp>) -> io::Result<Option<(Stamp, String)>> {
        let facts = fs::metadata(&self.path)?;
        let stamp = (facts.mtime(), facts.mtime_nsec(), facts.ino(), facts.size());
        if known == Some(stamp) {
            return Ok(None);
        }
        Ok(Some((stamp, fs::read_to_string(&self.path)?)))
    }
}

/// The addresses in lines `nameserver ADDRESS`. Without any, it is the resolver on this host, as
/// for all other programs.
fn parse(text: &str, port: u16) -> Vec<SocketAddr> {
    let listed = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next())
            .flatten()
            .and_then(|word| read_address(word, port))
    });
    let listed: Vec<SocketAddr> = listed.take(RESOLVERS).collect();
    if listed.is_empty() { vec![(Ipv4Addr::LOCALHOST, port).into()] } else { listed }
}

/// Parses `192.0.2.1`, `2001:db8::1` or `fe80::1%eth0`.
fn read_address(word: &str, port: u16) -> Option<SocketAddr> {
    let Some((address, device)) = word.split_once('%') else {
        return word.parse::<IpAddr>().ok().map(|address| (address, port).into());
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let is_plain = !device.contains('/') && device != "..";
    let index = match device.parse() {
        Ok(index) => index,
        Err(_) if is_plain => {
            fs::read_to_string(format!("/sys/class/net/{device}/ifindex")).ok()?.trim().parse().ok()?
        }
        Err(_) => return None,
    };
    Some(SocketAddrV6::new(address, port, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let found: Vec<String> = parse(text, 53).iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn resolvers_are_read_as_libc_reads_them() {
        check("nameserver 192.0.2.1\n", &["192.0.2.1:53"]);
        check(
            "# generated\nsearch example.org\nnameserver\t192.0.2.1\n nameserver 2001:db8::1 \noptions ndots:2\n",
            &["192.0.2.1:53", "[2001:db8::1]:53"],
        );
        check("nameserver fe80::1%7\n", &["[fe80::1%7]:53"]);
        check("nameserver fe80::1%../../etc/passwd\nnameserver nonsense\n", &["127.0.0.1:53"]);
        check("#nameserver 192.0.2.1\n;nameserver 192.0.2.2\nnameservers 192.0.2.3\n", &["127.0.0.1:53"]);
        check("", &["127.0.0.1:53"]);
        let many: Vec<String> = (1..9).map(|last| format!("nameserver 192.0.2.{last}")).collect();
        check(&many.join("\n"), &["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"]);
    }

    #[test]
    fn a_change_of_the_file_counts_and_our_own_addresses_do_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1\nnameserver 10.128.1.1\n").expect("a file");
        let resolvers = Resolvers::new(path.clone(), 53);
        let now = || resolvers.now().iter().map(|address| address.ip().to_string()).collect::<Vec<_>>();
        assert_eq!(now(), ["192.0.2.1", "10.128.1.1"]);
        resolvers.leave_out([Ipv4Addr::new(10, 128, 1, 1)].into());
        assert_eq!(now(), ["192.0.2.1"]);
        fs::write(&path, "nameserver ::ffff:10.128.1.1\nnameserver 192.0.2.20\n").expect("a file");
        assert_eq!(now(), ["192.0.2.20"]);
        fs::remove_file(&path).expect("it is gone");
        assert_eq!(now(), ["192.0.2.20"], "a file that can't be read changes nothing");
    }
}

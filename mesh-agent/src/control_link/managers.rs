//! The managers that this node may connect to: those that it was given, and those that managers
//! have told it of since; and the node's role, as they tell it.
//!
//! Invariants: an address that was told is never lost at once: a manager that is down for a while
//! stays known, behind those that live. There are at most [`KNOWN_MAX`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::place::Place;
use mesh_runtime::error_chain;

/// The most managers that are known: a cluster has at most seven, and some may have been replaced.
const KNOWN_MAX: usize = 16;

/// The managers of this node's cluster. Clones share them.
#[derive(Debug, Clone)]
pub struct Managers {
    known: Arc<watch::Sender<Vec<SocketAddr>>>,
    role: Arc<watch::Sender<Option<String>>>,
}

impl From<Vec<SocketAddr>> for Managers {
    fn from(given: Vec<SocketAddr>) -> Self {
        Self { known: Arc::new(watch::Sender::new(given)), role: Arc::default() }
    }
}

impl Managers {
    /// Every manager that is known.
    pub fn all(&self) -> Vec<SocketAddr> {
        self.known.borrow().clone()
    }

    /// Takes the addresses of the managers that live, as a manager told them. Those that can't be
    /// parsed are left out.
    pub fn learn(&self, told: &[String]) {
        let told: Vec<SocketAddr> = told.iter().filter_map(|address| address.parse().ok()).collect();
        self.known.send_if_modified(|known| {
            let merged = merged(known, &told);
            let changed = merged != *known;
            *known = merged;
            changed
        });
    }

    /// Takes this node's role, `worker` or `manager`, as a manager told it; empty if it didn't.
    pub fn hear_role(&self, told: &str) {
        self.role.send_if_modified(|role| {
            let changed = !told.is_empty() && role.as_deref() != Some(told);
            if changed {
                *role = Some(told.to_owned());
            }
            changed
        });
    }

    /// This node's role, as a manager told it last; `None` before one did.
    pub fn roles(&self) -> watch::Receiver<Option<String>> {
        self.role.subscribe()
    }

    /// Stores the managers in `data_dir` whenever they change, until `shutdown`; a failed write is
    /// logged and tried again with the next change.
    pub async fn keep(self, data_dir: PathBuf, mut place: Place, shutdown: CancellationToken) {
        let mut known = self.known.subscribe();
        loop {
            place.managers.clone_from(&known.borrow_and_update());
            if let Err(error) = place.store(&data_dir) {
                tracing::error!(error = %error_chain(&error), "can't store the managers' addresses on disk");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = known.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// The managers after some were told: these first, then the others that were known before.
fn merged(known: &[SocketAddr], told: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = Vec::with_capacity(KNOWN_MAX);
    for address in told.iter().chain(known) {
        if all.len() < KNOWN_MAX && !all.contains(address) {
            all.push(*address);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 2377))
    }

    #[test]
    fn who_was_told_comes_first_and_nobody_is_forgotten_at_once() {
        assert_eq!(merged(&[at(1)], &[at(1), at(2), at(3)]), [at(1), at(2), at(3)]);
        assert_eq!(merged(&[at(1), at(2), at(3)], &[at(3)]), [at(3), at(1), at(2)], "two are down");
        assert_eq!(merged(&[at(1)], &[]), [at(1)]);
        let many: Vec<SocketAddr> = (0..40).map(at).collect();
        assert_eq!(merged(&[at(99)], &many).len(), KNOWN_MAX, "a bounded number");
    }

    #[test]
    fn addresses_that_can_not_be_parsed_are_left_out() {
        let managers = Managers::from(vec![at(1)]);
        managers.learn(&["nonsense".to_owned(), "10.0.0.2:2377".to_owned()]);
        assert_eq!(managers.all(), [at(2), at(1)]);
    }

    #[test]
    fn the_role_stays_until_another_is_told() {
        let managers = Managers::from(vec![at(1)]);
        let mut roles = managers.roles();
        managers.hear_role("");
        assert!(!roles.has_changed().expect("it lives"), "a manager that doesn't say it");
        managers.hear_role("manager");
        assert_eq!(roles.borrow_and_update().as_deref(), Some("manager"));
        managers.clone().hear_role("manager");
        assert!(!roles.has_changed().expect("it lives"), "the same again");
    }

    #[tokio::test]
    async fn the_managers_survive_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let managers = Managers::from(vec![at(1)]);
        managers.learn(&[at(2).to_string()]);
        let stop = CancellationToken::new();
        stop.cancel();
        managers.keep(directory.path().to_owned(), Place::default(), stop).await;
        let stored = Place::load(directory.path()).expect("it is read").expect("it was stored");
        assert_eq!(stored.managers, [at(2), at(1)]);
    }
}

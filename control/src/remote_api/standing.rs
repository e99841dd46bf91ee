//! What a connected client's right depends on, and when it ends.
//!
//! Invariant: [`Standing::judge`] is pure.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use mesh_state::Timestamp;
use mesh_state::remote_client::RemoteClient;
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tokio::sync::watch;

use crate::ca::client::client_of;
use crate::ca::token::certificate_digest;
use crate::feed::snapshot::ClusterSnapshot;
use crate::trust::Trust;

/// How often the clock is checked: it may be set, so a long sleep would miss the moment.
const CLOCK_INTERVAL: Duration = Duration::from_secs(5);

/// Why a client lost its right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum Lost {
    #[error("its certificate was revoked")]
    Revoked,
    #[error("its certificate has expired")]
    Expired,
    #[error("the CA of its certificate is not the cluster's any more")]
    FormerCa,
    #[error("this manager stops")]
    Stopping,
}

/// The client of a connection, as the cluster's record had it when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing(RemoteClient);

impl Standing {
    /// The client whose certificate this is, if the cluster has a record of it.
    pub(super) fn of(snapshot: &ClusterSnapshot, certificate: &CertificateDer<'_>) -> Option<Self> {
        let known = snapshot.clients.get(&client_of(certificate)?)?;
        (known.certificate == certificate_digest(certificate)).then(|| Self(known.value.clone()))
    }

    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the client may still be served, at `now`, with the CAs `trusted` (digests).
    fn judge<'a>(
        &self,
        snapshot: &ClusterSnapshot,
        mut trusted: impl Iterator<Item = &'a str>,
        now: Timestamp,
    ) -> Result<(), Lost> {
        let known = snapshot.clients.get(&self.0.name);
        if known.is_none_or(|known| known.certificate != self.0.certificate) {
            return Err(Lost::Revoked);
        }
        if now >= self.0.until {
            return Err(Lost::Expired);
        }
        if !trusted.any(|digest| digest == self.0.issuer) {
            return Err(Lost::FormerCa);
        }
        Ok(())
    }

    /// Waits until the client has no right any more.
    pub(super) async fn lost(
        &self,
        mut snapshots: watch::Receiver<Arc<ClusterSnapshot>>,
        mut trust: watch::Receiver<Arc<Trust>>,
    ) -> Lost {
        loop {
            let judged = {
                let (snapshot, trust) = (snapshots.borrow_and_update(), trust.borrow_and_update());
                self.judge(&snapshot, trust.roots.iter().map(|root| root.digest.as_str()), Utc::now())
            };
            if let Err(lost) = judged {
                return lost;
            }
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return Lost::Stopping },
                changed = trust.changed() => if changed.is_err() { return Lost::Stopping },
                () = tokio::time::sleep(CLOCK_INTERVAL) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::keys;

    use super::*;
    use crate::fixtures::World;

    #[test]
    fn a_right_ends_with_the_record_the_certificate_or_its_ca() {
        let now = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        let client = RemoteClient {
            name: "alice".to_owned(),
            certificate: "c1".to_owned(),
            issuer: "ca1".to_owned(),
            created_at: now,
            until: now + Duration::from_mins(1),
        };
        let standing = Standing(client.clone());
        let mut world = World::with_nodes([]);
        let judge = |world: &World, trusted: &[&'static str], seconds| {
            let now = now + Duration::from_secs(seconds);
            standing.judge(&world.snapshot, trusted.iter().copied(), now)
        };
        assert_eq!(judge(&world, &["ca1"], 0), Err(Lost::Revoked), "there is no record");
        world.put(keys::client("alice"), &client);
        assert_eq!(judge(&world, &["ca0", "ca1"], 59), Ok(()));
        assert_eq!(judge(&world, &["ca1"], 60), Err(Lost::Expired));
        assert_eq!(judge(&world, &["ca2"], 0), Err(Lost::FormerCa));
        let again = RemoteClient { certificate: "c2".to_owned(), ..client };
        world.put(keys::client("alice"), &again);
        assert_eq!(judge(&world, &["ca1"], 0), Err(Lost::Revoked), "the record names another certificate");
    }
}

//! Sends the node the secrets that members share.

use mesh_state::member_keys::{MemberKey, MemberKeys};
use mesh_state::proto;
use mesh_state::proto::control_message::Body as Down;
use zeroize::Zeroizing;

use super::super::end::SessionEnd;
use super::Session;
use crate::feed::snapshot::ClusterSnapshot;

/// The purpose that members' secrets are derived for.
const PURPOSE: &str = "member key";

impl Session {
    /// Sends what changed. An agent that doesn't support member keys would end the session, so it
    /// gets none.
    pub(super) async fn send_member_keys(&mut self, snapshot: &ClusterSnapshot) -> Result<(), SessionEnd> {
        let Some(stored) = &snapshot.member_keys else { return Ok(()) };
        if !self.takes_cookies || self.told_keys.as_ref() == Some(&told(stored)) {
            return Ok(());
        }
        let secrets = stored.keys.iter().map(|key| self.secret(key).to_vec()).collect();
        self.told_keys = Some(told(stored));
        let cookies_demanded = stored.cookies_demanded;
        self.send(Down::MemberKeys(proto::MemberKeys { secrets, cookies_demanded })).await
    }

    /// The key that authenticates relay preambles now.
    pub(super) fn relay_key(&self, snapshot: &ClusterSnapshot) -> Zeroizing<Vec<u8>> {
        let in_use = snapshot.member_keys.as_ref().and_then(|stored| stored.keys.first());
        in_use.map_or_else(|| self.relay_key.clone(), |key| self.secret(key))
    }

    fn secret(&self, key: &MemberKey) -> Zeroizing<Vec<u8>> {
        if key.salt.is_empty() { self.relay_key.clone() } else { self.sealer.derive(PURPOSE, &key.salt) }
    }
}

/// The parts of the record that the node gets.
fn told(keys: &MemberKeys) -> (Vec<u64>, bool) {
    (keys.keys.iter().map(|key| key.id).collect(), keys.cookies_demanded)
}

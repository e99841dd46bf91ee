//! Takes this manager's member out of etcd: it hands the lead of etcd over, and removes itself.
//!
//! Invariant: the last member with a vote stays, unless by force: the cluster's state goes with it.

use std::time::Duration;

use mesh_runtime::error_chain;
use mesh_state::store::{EtcdMember, EtcdStore, StoreError};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

/// How long the removal is tried.
const LIMIT: Duration = Duration::from_secs(15);
/// The same by force.
const FORCED_LIMIT: Duration = Duration::from_secs(5);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(300);

/// What became of the member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is out of etcd.
    Gone,
    /// It is the last one.
    Last,
    /// etcd doesn't answer, or has no quorum: the leader removes the member later.
    Unheard,
}

/// What this manager's member can do about itself. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Gone,
    Last,
    Remove { own: u64, heir: u64 },
}

fn way(members: &[EtcdMember], own_url: &str) -> Way {
    let Some(own) = members.iter().find(|member| member.peer_url == own_url) else { return Way::Gone };
    match members.iter().find(|member| !member.is_learner && member.id != own.id) {
        Some(heir) => Way::Remove { own: own.id, heir: heir.id },
        None => Way::Last,
    }
}

/// Removes the member at `own_url`.
pub async fn resign(etcd: &EtcdStore, own_url: &str, force: bool) -> Outcome {
    let deadline = Instant::now() + if force { FORCED_LIMIT } else { LIMIT };
    loop {
        match attempt(etcd, own_url).await {
            Ok(outcome) => return outcome,
            Err(error) => warn!(error = %error_chain(&error), "can't leave etcd; will try again"),
        }
        if Instant::now() + PAUSE >= deadline {
            return Outcome::Unheard;
        }
        sleep(PAUSE).await;
    }
}

async fn attempt(etcd: &EtcdStore, own_url: &str) -> Result<Outcome, StoreError> {
    match way(&etcd.members().await?, own_url) {
        Way::Gone => Ok(Outcome::Gone),
        Way::Last => Ok(Outcome::Last),
        Way::Remove { own, heir } => {
            // Refused where this member doesn't lead.
            match etcd.hand_leadership_over(heir).await {
                Ok(()) => info!(heir = format!("{heir:x}"), "handed etcd's lead over"),
                Err(error) => debug!(error = %error_chain(&error), "this member does not lead etcd"),
            }
            etcd.remove_member(own).await?;
            Ok(Outcome::Gone)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_member_has_no_heir() {
        let member = |id: u64, is_learner| EtcdMember {
            id,
            name: format!("m{id}"),
            peer_url: format!("u{id}"),
            is_learner,
        };
        let two = [member(1, false), member(2, false)];
        assert_eq!(way(&two, "u1"), Way::Remove { own: 1, heir: 2 });
        assert_eq!(way(&[member(1, false), member(2, true)], "u1"), Way::Last, "a learner is no heir");
        assert_eq!(way(&two, "u3"), Way::Gone);
    }
}

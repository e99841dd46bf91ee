//! The members of an etcd that managers run: who they are, and how they come and go.

use etcd_client::{Client, MemberAddOptions};

use super::{EtcdStore, REQUEST_DEADLINE, Repeat, StoreError};

/// etcd's words for a learner that has not caught up with the leader.
const NOT_IN_SYNC: &str = "in sync with leader";

/// A member of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdMember {
    /// Its id, which is never used again.
    pub id: u64,
    /// Its name; empty until it has started for the first time.
    pub name: String,
    /// The URL at which the other members reach it.
    pub peer_url: String,
    /// Whether it has no vote yet.
    pub is_learner: bool,
}

/// What became of a learner that was to get a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// It has one.
    Votes,
    /// It has not caught up yet.
    Lags,
}

impl EtcdStore {
    /// The members, as the member in use knows them.
    ///
    /// # Errors
    /// [`StoreError`] if no member answers.
    pub async fn members(&self) -> Result<Vec<EtcdMember>, StoreError> {
        let ask = async |mut client: Client| client.member_list().await;
        let answer = self.request("list members", REQUEST_DEADLINE, Repeat::Always, ask).await?;
        Ok(answer.members().iter().map(member).collect())
    }

    /// Adds a member without a vote. Returns its id.
    ///
    /// # Errors
    /// [`StoreError`]; etcd refuses a second learner, and a URL that a member has.
    pub async fn add_learner(&self, peer_url: &str) -> Result<u64, StoreError> {
        let ask = async |mut client: Client| {
            client.member_add([peer_url], Some(MemberAddOptions::new().with_is_learner())).await
        };
        let answer = self.request("add a member", REQUEST_DEADLINE, Repeat::Unsent, ask).await?;
        let id = answer.member().map(etcd_client::Member::id);
        id.ok_or_else(|| StoreError::Unavailable {
            operation: "add a member",
            message: "the answer names no member".to_owned(),
        })
    }

    /// Gives a learner its vote, if it has caught up.
    ///
    /// # Errors
    /// [`StoreError`] if there is no such learner, or no quorum.
    pub async fn promote_member(&self, id: u64) -> Result<Joined, StoreError> {
        let ask = async |mut client: Client| client.member_promote(id).await;
        match self.request("promote a member", REQUEST_DEADLINE, Repeat::Unsent, ask).await {
            Ok(_) => Ok(Joined::Votes),
            Err(StoreError::Refused { message, .. } | StoreError::Unavailable { message, .. })
                if message.contains(NOT_IN_SYNC) =>
            {
                Ok(Joined::Lags)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a member; one that is gone already is no error.
    ///
    /// # Errors
    /// [`StoreError`]; etcd refuses if too few healthy members would remain.
    pub async fn remove_member(&self, id: u64) -> Result<(), StoreError> {
        let ask = async |mut client: Client| client.member_remove(id).await;
        match self.request("remove a member", REQUEST_DEADLINE, Repeat::Unsent, ask).await {
            Err(StoreError::Refused { message, .. }) if message.contains("member not found") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Makes `heir` etcd's leader, if the member in use is it now.
    ///
    /// # Errors
    /// [`StoreError`] if the member in use is not the leader, or `heir` can't lead.
    pub async fn hand_leadership_over(&self, heir: u64) -> Result<(), StoreError> {
        let ask = async |mut client: Client| client.move_leader(heir).await;
        self.request("move the leader", REQUEST_DEADLINE, Repeat::Unsent, ask).await.map(drop)
    }
}

fn member(told: &etcd_client::Member) -> EtcdMember {
    EtcdMember {
        id: told.id(),
        name: told.name().to_owned(),
        peer_url: told.peer_urls().first().cloned().unwrap_or_default(),
        is_learner: told.is_learner(),
    }
}

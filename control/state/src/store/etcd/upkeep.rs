//! The upkeep of an etcd of one member: its status, defragmentation, and the end of its alarm.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client};

use super::{EtcdStore, REQUEST_DEADLINE, Repeat, StoreError};

/// How long a defragmentation may take: the member answers nobody meanwhile.
const DEFRAGMENT_DEADLINE: Duration = Duration::from_mins(2);

/// The size of a member's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberStatus {
    /// The bytes of its file.
    pub size_bytes: u64,
    /// The bytes of it that hold something.
    pub in_use_bytes: u64,
    /// Whether etcd refuses writes, as the file has reached its quota.
    pub no_space: bool,
}

impl EtcdStore {
    /// The status of the member in use.
    ///
    /// # Errors
    /// [`StoreError`] if no member answers.
    pub async fn member_status(&self) -> Result<MemberStatus, StoreError> {
        let ask = async |mut client: Client| client.status().await;
        let status = self.request("read the status", REQUEST_DEADLINE, Repeat::Always, ask).await?;
        let bytes = |size: i64| u64::try_from(size).unwrap_or_default();
        Ok(MemberStatus {
            size_bytes: bytes(status.db_size()),
            in_use_bytes: bytes(status.raft_used_db_size()),
            no_space: !self.full_members().await?.is_empty(),
        })
    }

    /// Gives the free space of the member in use back to its file system.
    ///
    /// # Errors
    /// [`StoreError`] if it doesn't answer in time.
    pub async fn defragment(&self) -> Result<(), StoreError> {
        let ask = async |mut client: Client| client.defragment().await;
        self.request("defragment", DEFRAGMENT_DEADLINE, Repeat::Unsent, ask).await.map(drop)
    }

    /// Ends the alarms of members that had no space. etcd raises them again if there is none.
    ///
    /// # Errors
    /// [`StoreError`] if no member answers.
    pub async fn disarm(&self) -> Result<(), StoreError> {
        for member in self.full_members().await? {
            let ask = async |mut client: Client| {
                let mut options = AlarmOptions::new();
                options.with_member(member);
                client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await
            };
            self.request("end the alarm", REQUEST_DEADLINE, Repeat::Always, ask).await?;
        }
        Ok(())
    }

    async fn full_members(&self) -> Result<Vec<u64>, StoreError> {
        let ask = async |mut client: Client| client.alarm(AlarmAction::Get, AlarmType::None, None).await;
        let answer = self.request("read the alarms", REQUEST_DEADLINE, Repeat::Always, ask).await?;
        let full = answer.alarms().iter().filter(|alarm| alarm.alarm() == AlarmType::Nospace);
        Ok(full.map(etcd_client::AlarmMember::member_id).collect())
    }
}

//! One member of etcd, connected to when it is first used and again when it was away.
//!
//! Invariant: a member that was away is connected to with the files as they are then: new
//! certificates need no restart.

use std::sync::Arc;

use etcd_client::{Client, Error as EtcdError};
use tokio::sync::Mutex;

use super::access::EtcdAccess;

/// A member.
pub(super) struct Member {
    address: String,
    access: Arc<EtcdAccess>,
    client: Mutex<Option<Client>>,
}

impl Member {
    pub(super) fn new(address: String, access: Arc<EtcdAccess>) -> Self {
        Self { address, access, client: Mutex::new(None) }
    }

    /// A client of it. Only an access with a user asks etcd for anything here.
    pub(super) async fn client(&self) -> Result<Client, EtcdError> {
        let mut known = self.client.lock().await;
        if let Some(client) = &*known {
            return Ok(client.clone());
        }
        let options = self.access.options(&self.address).await;
        let options = options.map_err(|error| EtcdError::InvalidArgs(with_source(&error)))?;
        let client = Client::connect([&self.address], Some(options)).await?;
        *known = Some(client.clone());
        Ok(client)
    }

    /// Makes the next request connect anew. A connection that is being made stays.
    pub(super) fn forget(&self) {
        if let Ok(mut known) = self.client.try_lock() {
            *known = None;
        }
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

//! One member of etcd: connects at first use, and again after the member was unreachable.
//!
//! Invariant: each new connection reads the files again: new certificates need no restart.

use std::sync::Arc;

use etcd_client::{Client, Error as EtcdError};
use tokio::sync::Mutex;

use super::access::EtcdAccess;

/// One member of etcd, with a client of its own.
pub(super) struct Member {
    address: String,
    access: Arc<EtcdAccess>,
    client: Mutex<Option<Client>>,
}

impl Member {
    pub(super) fn new(address: String, access: Arc<EtcdAccess>) -> Self {
        Self { address, access, client: Mutex::new(None) }
    }

    /// Where the member is reached.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// A client of the member. Contacts etcd only if the access has a user.
    pub(super) async fn client(&self) -> Result<Client, EtcdError> {
        let mut known = self.client.lock().await;
        if let Some(client) = &*known {
            return Ok(client.clone());
        }
        let client = self.connect().await?;
        *known = Some(client.clone());
        Ok(client)
    }

    /// Connects anew for later requests, with the files as they are now. Without success the
    /// connection of before stays.
    pub(super) async fn reconnect(&self) -> Result<(), EtcdError> {
        let client = self.connect().await?;
        *self.client.lock().await = Some(client);
        Ok(())
    }

    async fn connect(&self) -> Result<Client, EtcdError> {
        let options = self.access.options(&self.address).await;
        let options = options.map_err(|error| EtcdError::InvalidArgs(with_source(&error)))?;
        Client::connect([&self.address], Some(options)).await
    }

    /// Drops the connection, so that the next request connects again. A connection attempt in
    /// progress stays.
    pub(super) fn forget(&self) {
        if let Ok(mut known) = self.client.try_lock() {
            *known = None;
        }
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

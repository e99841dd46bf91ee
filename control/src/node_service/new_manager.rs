//! Makes a node's manager one of the cluster's: gives its etcd a place, and the manager what it
//! needs, sealed to the key that its process made.
//!
//! Invariants: only a member whose role is manager gets it; the box is made for one key and one
//! name; asked again, the same place is found again.
//!
//! Left to others: giving the new member its vote ([`crate::leader::etcd_members`]).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_runtime::error_chain;
use mesh_state::cluster::{Cluster, EtcdPlace};
use mesh_state::ids::NodeId;
use mesh_state::node::{Node, NodeRole};
use mesh_state::proto::{BecomeManagerRequest, BecomeManagerResponse};
use mesh_state::store::{Compare, EtcdMember, Op, StoreError, TxnOutcome};
use mesh_state::{codec, keys};
use tonic::{Response, Status};
use tracing::info;

use super::end::not_a_member;
use super::membership::Admission;
use super::own_etcd::OwnEtcd;
use crate::context::unlock_key;
use crate::handover::{Handover, PUBLIC_KEY_BYTES};
use crate::managed_etcd::peer_url;
use crate::managed_etcd::plan::{Opening, opening};

/// The longest name of a manager.
const NAME_BYTES: usize = 63;
/// The longest address.
const ADDRESS_BYTES: usize = 64;

impl Admission {
    /// What the node `id` needs to be a manager.
    ///
    /// # Errors
    /// Its role is another one, its request is invalid, or etcd can't take a member now.
    pub(super) async fn become_manager(
        &self,
        id: &NodeId,
        request: BecomeManagerRequest,
    ) -> Result<Response<BecomeManagerResponse>, Status> {
        let address = address(&request)?;
        let revision = self.check_role(id).await?;
        let Some(own) = &self.own_etcd else {
            return Err(Status::failed_precondition(
                "this cluster's etcd is its operator's: start mesh-control with --etcd on the new manager",
            ));
        };
        let place = EtcdPlace {
            name: request.name.clone(),
            peer_url: peer_url(address.ip()),
            address: address.to_string(),
        };
        let members = self.take_place(own, &place).await?;
        self.note(id, revision, &place).await?;
        let (sealer, pki) = (Arc::clone(&self.context.sealer), own.pki.clone());
        let cluster = self.cluster().await?;
        let unlock = unlock_key(&cluster, &sealer).map_err(|error| Status::internal(error_chain(&error)))?;
        let sealing = tokio::task::spawn_blocking(move || {
            Handover::gather(cluster.id, &sealer, unlock.as_ref(), &pki, members)?
                .seal(&request.public_key, &request.name)
        });
        let made = sealing.await.map_err(|error| Status::internal(error.to_string()))?;
        let package = made.map_err(|error| Status::internal(error_chain(&error)))?;
        info!(node = %id, name = place.name, %address, "a node becomes a manager");
        Ok(Response::new(BecomeManagerResponse { sealed: package }))
    }

    /// The cluster's record, from etcd: this manager's snapshot may be older than autolock.
    async fn cluster(&self) -> Result<Cluster, Status> {
        let stored = self.context.store.get(keys::CLUSTER).await.map_err(|error| unavailable(&error))?;
        let item = stored.ok_or_else(|| Status::unavailable("etcd holds no cluster"))?;
        codec::decode(&item.value)
            .map_err(|error| Status::internal(format!("read the cluster's record: {error}")))
    }

    /// The revision of the node's record, if its role is manager.
    async fn check_role(&self, id: &NodeId) -> Result<i64, Status> {
        let key = keys::node(id);
        let stored = self.context.store.get(&key).await.map_err(|error| unavailable(&error))?;
        let item = stored.ok_or_else(|| not_a_member(id))?;
        let node: Node =
            codec::decode(&item.value).map_err(|error| Status::internal(format!("read {key}: {error}")))?;
        if node.spec.role != NodeRole::Manager {
            return Err(Status::permission_denied(format!(
                "node {id} is no manager: promote it with docker node promote on a manager"
            )));
        }
        Ok(item.mod_revision)
    }

    /// Makes room for the member among those of etcd. Returns all members, the new one included.
    async fn take_place(&self, own: &OwnEtcd, place: &EtcdPlace) -> Result<BTreeMap<String, String>, Status> {
        let members = own.etcd.members().await.map_err(|error| unavailable(&error))?;
        let others: Vec<EtcdMember> =
            members.iter().filter(|member| member.peer_url != place.peer_url).cloned().collect();
        match opening(&members, &place.name, &place.peer_url) {
            Opening::NameTaken => {
                return Err(Status::failed_precondition(format!(
                    "another manager is called {}: give each mesh-control a --name of its own",
                    place.name
                )));
            }
            Opening::Busy => {
                return Err(Status::unavailable("another manager joins at the moment: try again in a while"));
            }
            Opening::Kept => {}
            Opening::Lost(id) => {
                own.etcd.remove_member(id).await.map_err(|error| unavailable(&error))?;
                own.etcd.add_learner(&place.peer_url).await.map_err(|error| unavailable(&error))?;
            }
            Opening::Free => {
                own.etcd.add_learner(&place.peer_url).await.map_err(|error| unavailable(&error))?;
            }
        }
        let named = others.into_iter().map(|member| {
            let name = if member.name.is_empty() { format!("{:x}", member.id) } else { member.name };
            (name, member.peer_url)
        });
        Ok(named.chain([(place.name.clone(), place.peer_url.clone())]).collect())
    }

    /// Notes the place of the node's manager, as long as its role is that.
    async fn note(&self, id: &NodeId, revision: i64, place: &EtcdPlace) -> Result<(), Status> {
        let value = codec::encode(place).map_err(|error| Status::internal(error.to_string()))?;
        let unchanged = Compare::ModRevision(keys::node(id), revision);
        match self.context.store.txn(vec![unchanged], vec![Op::put(keys::etcd_place(id), value)]).await {
            Ok(TxnOutcome::Committed(_)) => Ok(()),
            Ok(TxnOutcome::Conflict) => Err(Status::unavailable("the node's record changes: try again")),
            Err(error) => Err(unavailable(&error)),
        }
    }
}

fn unavailable(error: &StoreError) -> Status {
    Status::unavailable(error_chain(error))
}

/// The address of the new manager, once all fields are sound.
fn address(request: &BecomeManagerRequest) -> Result<SocketAddr, Status> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if request.name.is_empty() || request.name.len() > NAME_BYTES || !request.name.bytes().all(good) {
        return Err(Status::invalid_argument(format!(
            "a manager's name has 1 to {NAME_BYTES} characters of letters, digits, '-', '_' and '.'"
        )));
    }
    if request.public_key.len() != PUBLIC_KEY_BYTES {
        return Err(Status::invalid_argument(format!("a public key has {PUBLIC_KEY_BYTES} bytes")));
    }
    let text = request.advertise.get(..ADDRESS_BYTES).unwrap_or(&request.advertise);
    match text.parse::<SocketAddr>() {
        Ok(address) if !address.ip().is_unspecified() && !address.ip().is_loopback() => Ok(address),
        _ => Err(Status::invalid_argument("a manager's address is IP:PORT, as other managers reach it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_new_manager_says_is_checked_first() {
        let good = BecomeManagerRequest {
            public_key: vec![1; PUBLIC_KEY_BYTES],
            advertise: "10.0.0.2:2377".to_owned(),
            name: "node-2".to_owned(),
        };
        assert_eq!(address(&good).unwrap(), "10.0.0.2:2377".parse().unwrap());
        for bad in [
            BecomeManagerRequest { name: "a,b=https://x".to_owned(), ..good.clone() },
            BecomeManagerRequest { name: String::new(), ..good.clone() },
            BecomeManagerRequest { public_key: vec![1; 31], ..good.clone() },
            BecomeManagerRequest { advertise: "10.0.0.2".to_owned(), ..good.clone() },
            BecomeManagerRequest { advertise: "0.0.0.0:2377".to_owned(), ..good.clone() },
            BecomeManagerRequest { advertise: "127.0.0.1:2377".to_owned(), ..good.clone() },
        ] {
            assert!(address(&bad).is_err(), "taken: {bad:?}");
        }
    }
}

//! Attaches containers that are no tasks to networks, on request of their nodes.
//!
//! The node chooses the attachment's id, so that it can repeat a request whose answer was lost, and
//! add details of the container later. This call writes the record and waits; the leader gives the
//! address ([`crate::planners::addresses`]), so that two managers can't give one twice.
//!
//! Invariants: a node attaches and detaches its own containers only; requests are bounded; the
//! first request with an id rewrites the network's record, so a removal of the network at the same
//! moment fails its compare.

use std::net::Ipv4Addr;
use std::time::Duration;

use mesh_admission::figures::report::{HOSTNAME_BYTES, ID_BYTES};
use mesh_state::Timestamp;
use mesh_state::attachment::AttachedContainer;
use mesh_state::codec::{self, CodecError};
use mesh_state::ids::{AttachmentId, ID_LENGTH, NodeId};
use mesh_state::keys;
use mesh_state::network::{AssignedNetwork, Network};
use mesh_state::proto::{AttachRequest, AttachResponse, DetachRequest, DetachResponse};
use mesh_state::store::{Compare, Op, TxnOutcome};
use tokio::time::timeout;
use tonic::Status;
use tracing::info;

use crate::context::ApiContext;
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::slots::addresses::{Addresses, NoAddress, is_served};
use crate::slots::host_overlap;

/// The time that an address may take; Swarm's engines wait as long.
const ADDRESS_DEADLINE: Duration = Duration::from_secs(20);
/// The pause after a lost compare in which the snapshot may catch up.
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);
/// Tries of one write, including those that lost a compare.
const ATTEMPTS: usize = 8;
/// The most aliases of a container on a network, and the most attached containers of a node.
const ALIASES_MAX: usize = 64;
const CONTAINERS_MAX: usize = 4_096;
/// The most letters of a malformed address that are shown.
const ADDRESS_SHOWN: usize = 64;

/// A write's compares and operations; `None` if the record is up to date.
type Write = Option<(Vec<Compare>, Vec<Op>)>;

/// Attaches a container of `node`, and waits until it has an address.
///
/// # Errors
/// The network does not exist, is not attachable or has no address left; the request is malformed;
/// or no address came in time.
pub(super) async fn attach(
    cluster: &ApiContext,
    node: &NodeId,
    now: Timestamp,
    asked: AttachRequest,
) -> Result<AttachResponse, Status> {
    check(&asked)?;
    let id = AttachmentId::from(asked.attachment_id.as_str());
    write(cluster, |snapshot| attached(snapshot, node, now, &asked)).await?;
    let mut snapshots = cluster.feed.snapshots.clone();
    let ready = snapshots.wait_for(|snapshot| decided(snapshot, &id).is_some());
    // The awaited value borrows the snapshot, so it must not be kept.
    let ready = timeout(ADDRESS_DEADLINE, ready).await.map(|seen| seen.map(|seen| decided(&seen, &id)));
    match ready {
        Ok(Ok(Some(Err(refusal)))) => {
            write(cluster, |snapshot| detached(snapshot, node, &id)).await?;
            Err(refused(&refusal))
        }
        Ok(Ok(network)) => {
            let network = network.and_then(Result::ok).ok_or_else(|| Status::aborted("it was detached"))?;
            let network_json = serde_json::to_string(&network)
                .map_err(|error| Status::internal(format!("write the network down: {error}")))?;
            info!(%node, container = asked.container_name, network = network.name, "a container was attached");
            Ok(AttachResponse { network_json })
        }
        Ok(Err(_)) => Err(Status::unavailable("this manager stops")),
        Err(_) => {
            write(cluster, |snapshot| detached(snapshot, node, &id)).await?;
            Err(Status::deadline_exceeded(
                "attaching to network failed, make sure your network options are correct and check manager logs",
            ))
        }
    }
}

/// Detaches a container of `node`. Detaching one that isn't attached is no error.
///
/// # Errors
/// The attachment belongs to another node, or the store is unavailable.
pub(super) async fn detach(
    cluster: &ApiContext,
    node: &NodeId,
    asked: &DetachRequest,
) -> Result<DetachResponse, Status> {
    let id = AttachmentId::from(asked.attachment_id.as_str());
    write(cluster, |snapshot| detached(snapshot, node, &id)).await?;
    Ok(DetachResponse {})
}

/// Decides and commits, retries after a lost compare, and waits for the snapshot to have it.
async fn write(
    cluster: &ApiContext,
    mut decide: impl FnMut(&ClusterSnapshot) -> Result<Write, Status>,
) -> Result<(), Status> {
    for _ in 0..ATTEMPTS {
        let snapshot = cluster.snapshot();
        let Some((compares, ops)) = decide(&snapshot)? else { return Ok(()) };
        let outcome = cluster.store.txn(compares, ops).await;
        match outcome.map_err(|error| Status::unavailable(error.to_string()))? {
            TxnOutcome::Committed(revision) => {
                // A later read shows it in any case.
                drop(cluster.wait_for_revision(revision, ADDRESS_DEADLINE).await);
                return Ok(());
            }
            TxnOutcome::Conflict => {
                let mut snapshots = cluster.feed.snapshots.clone();
                let newer = snapshots.wait_for(|newer| newer.revision > snapshot.revision);
                drop(timeout(CONFLICT_PAUSE, newer).await);
            }
        }
    }
    Err(Status::aborted("the cluster changed while the request was carried out: try again"))
}

fn check(asked: &AttachRequest) -> Result<(), Status> {
    let id = &asked.attachment_id;
    let is_id = (1..=ID_LENGTH).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !is_id {
        return Err(Status::invalid_argument(format!(
            "an attachment's id has 1 to {ID_LENGTH} letters and digits"
        )));
    }
    let names = asked.aliases.iter().chain([&asked.network, &asked.container_name, &asked.hostname]);
    let too_long = names.into_iter().any(|name| name.len() > HOSTNAME_BYTES);
    if too_long || asked.container_id.len() > ID_BYTES || asked.aliases.len() > ALIASES_MAX {
        return Err(Status::invalid_argument(format!(
            "a container has at most {ALIASES_MAX} further names, each of at most {HOSTNAME_BYTES} bytes"
        )));
    }
    Ok(())
}

/// The network that a node names, by id or else by name.
fn find<'a>(snapshot: &'a ClusterSnapshot, asked: &str) -> Result<&'a Stored<Network>, Status> {
    let by_id = snapshot.networks.get(&asked.into());
    let found = by_id.or_else(|| snapshot.networks.values().find(|network| network.name == asked));
    let network = found.ok_or_else(|| Status::not_found(format!("network {asked} not found")))?;
    if !network.spec.attachable || !is_served(network) {
        return Err(Status::permission_denied(format!("network {} not manually attachable", network.name)));
    }
    Ok(network)
}

/// The record of a new attachment, or the existing one with the details of this request.
fn attached(
    snapshot: &ClusterSnapshot,
    node: &NodeId,
    now: Timestamp,
    asked: &AttachRequest,
) -> Result<Write, Status> {
    let network = find(snapshot, &asked.network)?;
    let encrypts = snapshot.nodes.get(node).is_some_and(|node| node.description.encryption.is_some());
    if network.is_encrypted() && !encrypts {
        return Err(Status::failed_precondition(format!(
            "network {} is encrypted, which this node can't do: its agent's log says why",
            network.name
        )));
    }
    let id = AttachmentId::from(asked.attachment_id.as_str());
    let known = snapshot.attachments.get(&id);
    if known.is_some_and(|known| known.node_id != *node || known.network_id != network.id) {
        return Err(Status::already_exists(format!("the attachment {id} is another's: choose another id")));
    }
    let container = AttachedContainer {
        id: id.clone(),
        network_id: network.id.clone(),
        node_id: node.clone(),
        container_id: asked.container_id.clone(),
        name: asked.container_name.clone(),
        hostname: asked.hostname.clone(),
        aliases: asked.aliases.clone(),
        wanted: None,
        address: known.and_then(|known| known.address),
        created_at: known.map_or(now, |known| known.created_at),
    };
    let wanted = match known {
        Some(known) => known.wanted,
        None => wanted(asked)?,
    };
    let container = AttachedContainer { wanted, ..container };
    let key = keys::attachment(&id);
    let record = Op::put(key.clone(), codec::encode(&container).map_err(|error| unwritten(&error))?);
    if let Some(known) = known {
        let stands = Compare::ModRevision(key, known.mod_revision);
        return Ok((known.value != container).then(|| (vec![stands], vec![record])));
    }
    let own = snapshot.attachments.values().filter(|attached| attached.node_id == *node);
    if own.count() >= CONTAINERS_MAX {
        return Err(Status::resource_exhausted(format!(
            "{CONTAINERS_MAX} containers of this node are attached: detach one first"
        )));
    }
    let mut addresses = Addresses::new(snapshot);
    addresses.for_container(&container).map_err(|error| refused(&error))?;
    if let Some(overlap) = host_overlap::of_node(snapshot, node, network.subnet) {
        return Err(Status::failed_precondition(format!(
            "network {} ({}) overlaps {overlap}",
            network.name, network.subnet
        )));
    }
    let network_key = keys::network(&network.id);
    let anew = codec::encode(&network.value).map_err(|error| unwritten(&error))?;
    let compares = vec![
        Compare::Absent(key),
        Compare::ModRevision(network_key.clone(), network.mod_revision),
        Compare::Exists(keys::node(node)),
    ];
    Ok(Some((compares, vec![record, Op::put(network_key, anew)])))
}

/// The address that a container's user chose.
fn wanted(asked: &AttachRequest) -> Result<Option<Ipv4Addr>, Status> {
    if asked.address.is_empty() {
        return Ok(None);
    }
    let address = asked.address.parse();
    address
        .map(Some)
        .map_err(|_| Status::invalid_argument(format!("invalid IPv4 address: {}", clipped(&asked.address))))
}

/// The beginning of a text from outside, for a message.
fn clipped(text: &str) -> String {
    text.chars().take(ADDRESS_SHOWN).collect()
}

fn refused(error: &NoAddress) -> Status {
    let message = error.to_string();
    match error {
        NoAddress::Taken { .. } => Status::failed_precondition(message),
        NoAddress::OutOfRange { .. } => Status::invalid_argument(message),
        _ => Status::resource_exhausted(message),
    }
}

fn unwritten(error: &CodecError) -> Status {
    Status::internal(error.to_string())
}

fn detached(snapshot: &ClusterSnapshot, node: &NodeId, id: &AttachmentId) -> Result<Write, Status> {
    let Some(known) = snapshot.attachments.get(id) else { return Ok(None) };
    if known.node_id != *node {
        return Err(Status::permission_denied(format!("the attachment {id} is another node's")));
    }
    let key = keys::attachment(id);
    Ok(Some((vec![Compare::ModRevision(key.clone(), known.mod_revision)], vec![Op::delete(key)])))
}

/// What became of an attachment: its network, or why it gets no address. `None` while that is open.
fn decided(snapshot: &ClusterSnapshot, id: &AttachmentId) -> Option<Result<AssignedNetwork, NoAddress>> {
    if let Some(network) = assigned(snapshot, id) {
        return Some(Ok(network));
    }
    let container = snapshot.attachments.get(id).filter(|container| container.address.is_none())?;
    // Others than a chosen address may become free.
    container.wanted?;
    Addresses::new(snapshot).for_container(container).err().map(Err)
}

/// The data that the node needs to connect an attached container, once the leader has given its
/// address.
fn assigned(snapshot: &ClusterSnapshot, id: &AttachmentId) -> Option<AssignedNetwork> {
    let container = snapshot.attachments.get(id)?;
    let network = snapshot.networks.get(&container.network_id)?;
    Some(AssignedNetwork {
        id: network.id.clone(),
        name: network.name.clone(),
        number: network.number,
        subnet: network.subnet,
        subnet6: network.subnet6,
        node_address: *network.node_addresses.get(&container.node_id)?,
        internal: network.spec.internal,
        mtu: network.mtu(),
        address: container.address?,
        aliases: container.aliases.clone(),
    })
}

#[cfg(test)]
mod tests;

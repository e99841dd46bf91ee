//! Keeps what managers know of this node's attached containers in step with the engine: tells them
//! the container of each attachment, and gives addresses back that no container has any more.
//!
//! Purpose: [`steps`] compares (pure), [`keep_attachments`] follows the engine's events and the
//! view. There is no record on this node: the mesh table has the attachments, the engine the
//! containers, and an address of a network says which belong together. So an agent that died at any
//! moment leaves nothing behind that the next one doesn't find.
//!
//! Invariant: an address is given back only after the engine has listed its containers and none has
//! it; a stopped container keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, StatusCode, Uri};
use mesh_state::ids::AttachmentId;
use mesh_state::proto::AttachRequest;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::attachments::Attachments;
use super::compose::{ANSWER_BYTES_MAX, ENGINE_TIMEOUT};
use super::error::{ApiError, Peer};
use super::events::Lines;
use super::filters::percent_encode;
use super::upstream::Upstream;
use crate::control_link::attach::AttachError;
use crate::view::NodeView;
use mesh_runtime::error_chain;

/// How often both sides are compared without an event.
const PERIOD: Duration = Duration::from_secs(30);
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// An attachment of this node, as the mesh table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Own {
    /// What managers are told of it again.
    told: AttachRequest,
    /// The network's name.
    network: String,
    address: Ipv4Addr,
}

/// A container of the engine's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    id: String,
    name: String,
    /// Its addresses by network, whether it runs or not.
    places: BTreeMap<String, Ipv4Addr>,
}

/// What to tell managers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum KeeperStep {
    /// No container has the address any more.
    Detach(AttachmentId),
    /// The container is another one, or has another name, than managers know.
    Tell(AttachRequest),
}

/// Keeps managers and engine in step until `shutdown`.
pub async fn keep_attachments(attachments: Arc<Attachments>, engine: PathBuf, shutdown: CancellationToken) {
    let engine = Upstream::new(Peer::Engine, engine);
    shutdown.run_until_cancelled(keep(&attachments, &engine)).await;
}

async fn keep(attachments: &Attachments, engine: &Upstream) {
    let mut views = attachments.views.clone();
    let mut events = None;
    // What the last pass was about; absent: another pass is due.
    let mut settled: Option<Vec<Own>> = None;
    loop {
        if events.is_none() {
            // Anything may have happened meanwhile.
            (events, settled) = (follow(engine).await, None);
        }
        let own = own(&views.borrow_and_update());
        if settled.as_ref() != Some(&own) {
            settled = pass(attachments, engine, &own).await.then_some(own);
        }
        let wait = if settled.is_some() && events.is_some() { PERIOD } else { RETRY };
        tokio::select! {
            went_on = next(&mut events) => {
                settled = None;
                if !went_on {
                    events = None;
                    tokio::time::sleep(RETRY).await;
                }
            }
            () = attachments.settled.notified() => settled = None,
            changed = views.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => settled = None,
        }
    }
}

/// The engine's events that can end an attachment or change what managers know of it.
async fn follow(engine: &Upstream) -> Option<Lines> {
    let filters = json!({"type": ["container", "network"], "event": ["destroy", "disconnect", "rename"]});
    let path = format!("/events?filters={}", percent_encode(&filters.to_string()));
    match get(engine, &path).await {
        Ok(body) => Some(Lines::new(body)),
        Err(error) => {
            debug!(error = error_chain(&error), "can't follow the engine's events; will try again");
            None
        }
    }
}

/// Waits for an event; whether there was one, and the stream hasn't ended. Cancel-safe.
async fn next(events: &mut Option<Lines>) -> bool {
    match events {
        Some(lines) => matches!(lines.next().await, Some(Ok(_))),
        None => std::future::pending().await,
    }
}

async fn get(engine: &Upstream, path: &str) -> Result<hyper::body::Incoming, ApiError> {
    let unreadable = |reason: String| ApiError::Unreadable { peer: Peer::Engine, reason };
    let uri: Uri = path.parse().map_err(|error| unreadable(format!("{error}")))?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = uri;
    let answer = engine.call_within(ENGINE_TIMEOUT, request).await?;
    match answer.status() {
        StatusCode::OK => Ok(answer.into_body()),
        status => Err(unreadable(format!("it answered {status}"))),
    }
}

/// Compares once, and tells managers; whether all of it was done.
async fn pass(attachments: &Attachments, engine: &Upstream, own: &[Own]) -> bool {
    if own.is_empty() {
        return true;
    }
    // Before the engine is asked: who isn't under way any more is in its answer.
    let under_way = attachments.under_way();
    let listing = async {
        let body = get(engine, "/containers/json?all=1").await?;
        engine.read_json(body, ANSWER_BYTES_MAX).await
    };
    let containers = match listing.await {
        Ok(containers) => listed(&containers),
        Err(error) => {
            debug!(error = error_chain(&error), "can't list attached containers; will try again");
            return false;
        }
    };
    let mut is_done = true;
    for step in steps(own, &under_way, &containers) {
        let told = match &step {
            KeeperStep::Detach(id) => attachments.attacher.detach(id).await,
            KeeperStep::Tell(asked) => attachments.attacher.attach(asked).await.map(drop),
        };
        match told {
            Ok(()) => info!(?step, "managers know of a change of an attached container"),
            // It would be refused again; it is tried with the next comparison.
            Err(error @ (AttachError::Refused(_) | AttachError::Unreadable(_))) => {
                warn!(
                    error = error_chain(&error),
                    ?step,
                    "managers refuse a change of an attached container"
                );
            }
            Err(error @ (AttachError::Away(_) | AttachError::Late)) => {
                debug!(error = error_chain(&error), ?step, "can't tell managers; will try again");
                is_done = false;
            }
        }
    }
    is_done
}

/// The attachments of this node, on networks that it knows.
fn own(view: &NodeView) -> Vec<Own> {
    let here =
        view.members.values().filter(|member| member.service_id.is_none() && member.node_id == view.node_id);
    let attached = here.filter_map(|member| {
        let place = member.attachments.first()?;
        let network = view.networks.get(&place.network_id)?;
        let told = AttachRequest {
            attachment_id: member.id.clone(),
            network: network.id.to_string(),
            container_id: member.container_id.clone(),
            container_name: member.name.clone(),
            hostname: member.hostname.clone(),
            aliases: place.aliases.clone(),
            // Managers keep it.
            address: String::new(),
        };
        Some(Own { told, network: network.name.clone(), address: place.address })
    });
    attached.collect()
}

/// The engine's list of containers.
fn listed(containers: &Value) -> Vec<Listed> {
    let containers = containers.as_array().into_iter().flatten();
    let read = |container: &Value| {
        let names = container["Names"].as_array().into_iter().flatten().filter_map(Value::as_str);
        // A name with a second slash is that of a link to it.
        let mut names = names.filter_map(|name| name.strip_prefix('/')).filter(|name| !name.contains('/'));
        let networks = container["NetworkSettings"]["Networks"].as_object().into_iter().flatten();
        let places = networks.filter_map(|(network, at)| {
            // Before it was first started, a container has only the address that it is to have.
            let wanted = at["IPAMConfig"]["IPv4Address"].as_str().filter(|address| !address.is_empty());
            let address = wanted.or_else(|| at["IPAddress"].as_str())?;
            Some((network.clone(), address.parse().ok()?))
        });
        Some(Listed {
            id: container["Id"].as_str()?.to_owned(),
            name: names.next().unwrap_or_default().to_owned(),
            places: places.collect(),
        })
    };
    containers.filter_map(read).collect()
}

/// Decides what managers are to be told.
fn steps(own: &[Own], under_way: &BTreeSet<String>, containers: &[Listed]) -> Vec<KeeperStep> {
    let settled = own.iter().filter(|own| !under_way.contains(&own.told.attachment_id));
    let step = |own: &Own| {
        let has_it = |container: &&Listed| container.places.get(&own.network) == Some(&own.address);
        let Some(container) = containers.iter().find(has_it) else {
            return Some(KeeperStep::Detach(own.told.attachment_id.as_str().into()));
        };
        let told = AttachRequest {
            container_id: container.id.clone(),
            container_name: container.name.clone(),
            ..own.told.clone()
        };
        (told != own.told).then_some(KeeperStep::Tell(told))
    };
    settled.filter_map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(id: &str, container: &str, last: u8) -> Own {
        let told = AttachRequest {
            attachment_id: id.to_owned(),
            network: "n5".to_owned(),
            container_id: container.to_owned(),
            container_name: "guest".to_owned(),
            aliases: vec!["visitor".to_owned()],
            ..AttachRequest::default()
        };
        Own { told, network: "app".to_owned(), address: [10, 0, 5, last].into() }
    }

    /// A stopped container on `app`, as the engine lists it.
    fn container(id: &str, name: &str, address: &str) -> Value {
        json!({"Id": id, "Names": ["/other/link", format!("/{name}")], "State": "exited",
               "NetworkSettings": {"Networks": {
                   "app": {"IPAMConfig": {"IPv4Address": address}, "IPAddress": ""},
                   "bridge": {"IPAMConfig": null, "IPAddress": "172.17.0.2"}}}})
    }

    fn check(own: &[Own], containers: Vec<Value>, expected: &[KeeperStep]) {
        let found = steps(own, &BTreeSet::new(), &listed(&Value::Array(containers)));
        assert_eq!(found, expected);
    }

    #[test]
    fn managers_hear_of_the_container_once_it_is_made() {
        let told = AttachRequest { container_id: "c1".to_owned(), ..own("a1", "", 7).told };
        check(&[own("a1", "", 7)], vec![container("c1", "guest", "10.0.5.7")], &[KeeperStep::Tell(told)]);
        check(&[own("a1", "c1", 7)], vec![container("c1", "guest", "10.0.5.7")], &[]);
    }

    #[test]
    fn managers_hear_of_a_new_name_and_keep_the_rest() {
        let told = AttachRequest { container_name: "renamed".to_owned(), ..own("a1", "c1", 7).told };
        check(&[own("a1", "c1", 7)], vec![container("c1", "renamed", "10.0.5.7")], &[KeeperStep::Tell(told)]);
    }

    #[test]
    fn an_address_that_no_container_has_is_given_back() {
        let gone = [KeeperStep::Detach("a1".into())];
        check(&[own("a1", "c1", 7)], vec![], &gone);
        check(&[own("a1", "c1", 7)], vec![json!({"Id": "c1", "NetworkSettings": {"Networks": {}}})], &gone);
        check(&[own("a1", "c1", 7)], vec![container("c1", "guest", "10.0.5.8")], &gone);
    }

    #[test]
    fn a_container_that_is_being_made_keeps_its_address() {
        let under_way = BTreeSet::from(["a1".to_owned()]);
        assert_eq!(steps(&[own("a1", "", 7)], &under_way, &[]), []);
    }
}

//! Families of virtual IPs on the networks that this node takes part in, and of their backends; and
//! of the containers that users put on networks.
//!
//! Invariants: pure; only what is in the view and in the kernel's maps has series.

use std::collections::BTreeMap;

use super::Observation;
use super::catalogue as names;
use super::samples::{Labels, Samples, number};
use super::traffic::{CONNECT_BOUNDS, FLOW_BOUNDS, REPLY, REQUEST, state_label, with};
use crate::cli::MetricsBackends;
use crate::datapath::contents::{Front, NetworkAddress};
use crate::datapath::{BackendSnapshot, FrontendSnapshot, StatsSnapshot};
use crate::view::{BackendState, MemberView, NetworkView, ServiceView};

/// Adds the families of every virtual IP that the programs know.
pub(super) fn add(samples: &mut Samples, seen: &Observation<'_>, kernel: &StatsSnapshot) {
    let known: BTreeMap<NetworkAddress, &FrontendSnapshot> = kernel
        .frontends
        .iter()
        .filter_map(|known| match known.front {
            Front::VirtualIp(place) => Some((place, known)),
            Front::Port(_) => None,
        })
        .collect();
    let backends: BTreeMap<u32, &BackendSnapshot> =
        kernel.backends.iter().map(|backend| (backend.id, backend)).collect();
    for service in seen.view.services.values() {
        for on in &service.networks {
            let (Some(network), Some(address)) = (seen.view.networks.get(&on.network_id), on.virtual_ip)
            else {
                continue;
            };
            let Some(known) = known.get(&NetworkAddress { network: network.number, address }) else {
                continue;
            };
            let labels: Labels<'_> =
                vec![("service", service.name.as_str()), ("network", network.name.as_str())];
            add_front(samples, known, &labels);
            add_backends(samples, seen, service, network, &backends, &labels);
        }
    }
}

/// Adds how many of this node's containers users have put on each attachable network.
pub(super) fn add_attached(samples: &mut Samples, seen: &Observation<'_>) {
    let view = seen.view;
    for network in view.networks.values().filter(|network| network.attachable) {
        let is_on = |member: &&MemberView| {
            let mut places = member.attachments.iter();
            member.service_id.is_none()
                && member.node_id == view.node_id
                && places.any(|place| place.network_id == network.id)
        };
        let count = view.members.values().filter(is_on).count();
        samples.add(&names::ATTACHED_CONTAINERS, &[("network", network.name.as_str())], number(count as u64));
    }
}

fn add_front(samples: &mut Samples, known: &FrontendSnapshot, labels: &Labels<'_>) {
    let counted = known.stats;
    samples.add(&names::VIP_CONNECTIONS, labels, number(counted.opened));
    let unassigned = with(labels, &[("reason", "no_backend")]);
    samples.add(&names::VIP_UNASSIGNED, &unassigned, number(counted.no_backend));
    for (direction, traffic) in [(REQUEST, counted.request), (REPLY, counted.reply)] {
        let labels = with(labels, &[("direction", direction)]);
        samples.add(&names::VIP_PACKETS, &labels, number(traffic.packets));
        samples.add(&names::VIP_BYTES, &labels, number(traffic.bytes));
    }
    samples.add_histogram(&names::VIP_CONNECT_DURATION, labels, &known.durations.connect, CONNECT_BOUNDS);
    samples.add_histogram(&names::VIP_FLOW_DURATION, labels, &known.durations.flow, FLOW_BOUNDS);
}

fn add_backends(
    samples: &mut Samples,
    seen: &Observation<'_>,
    service: &ServiceView,
    network: &NetworkView,
    known: &BTreeMap<u32, &BackendSnapshot>,
    labels: &Labels<'_>,
) {
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    for state in [BackendState::Active, BackendState::Draining, BackendState::Silent] {
        states.insert(state_label(state), 0);
    }
    let members = seen.view.members.values().filter(|member| member.service_id.as_ref() == Some(&service.id));
    for member in members {
        let place = member.attachments.iter().find(|attachment| attachment.network_id == network.id);
        let (Some(id), Some(state)) = (place.and_then(|place| place.backend_id), member.state) else {
            continue;
        };
        let is_ejected = seen.ejected.contains(&id);
        // A backend that the health check ejected is shown like a silent one.
        let state = if state == BackendState::Active && is_ejected { BackendState::Silent } else { state };
        *states.entry(state_label(state)).or_default() += 1;
        let counted = known.get(&id.get()).copied();
        if is_shown(seen, member, counted) {
            let node = seen.view.nodes.get(&member.node_id).map(|node| node.hostname.as_str());
            let about = [("task", member.name.as_str()), ("backend_node", node.unwrap_or_default())];
            add_backend(samples, state, counted, &with(labels, &about));
        }
    }
    for (state, count) in states {
        samples.add(&names::VIP_BACKENDS, &with(labels, &[("state", state)]), number(count));
    }
}

fn add_backend(
    samples: &mut Samples,
    state: BackendState,
    known: Option<&BackendSnapshot>,
    labels: &Labels<'_>,
) {
    let is_up = state == BackendState::Active;
    samples.add(&names::VIP_BACKEND_UP, labels, f64::from(u8::from(is_up)));
    let counted = known.map(|known| known.stats).unwrap_or_default();
    let live = known.map_or(0, |known| known.live);
    samples.add(&names::VIP_BACKEND_CONNECTIONS_TOTAL, labels, number(counted.opened));
    samples.add(&names::VIP_BACKEND_CONNECTIONS, labels, number(live));
    for (direction, traffic) in [(REQUEST, counted.request), (REPLY, counted.reply)] {
        let labels = with(labels, &[("direction", direction)]);
        samples.add(&names::VIP_BACKEND_BYTES, &labels, number(traffic.bytes));
    }
    let failed = counted.refused + counted.unanswered;
    for (result, count) in [("ok", counted.answered), ("failed", failed)] {
        samples.add(&names::VIP_BACKEND_HEALTH_CHECKS, &with(labels, &[("result", result)]), number(count));
    }
}

fn is_shown(seen: &Observation<'_>, member: &MemberView, known: Option<&BackendSnapshot>) -> bool {
    match seen.backends {
        MetricsBackends::All => true,
        MetricsBackends::Local => member.node_id == seen.view.node_id,
        MetricsBackends::Off => false,
        MetricsBackends::Seen => known.is_some_and(|known| known.stats.opened > 0),
    }
}

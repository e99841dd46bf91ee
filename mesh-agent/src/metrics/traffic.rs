//! Families of published ports and their backends: sums of the counters of the kernel programs and
//! of the proxy.
//!
//! Invariants: pure; only what is in the view has series, so that series vanish with their service
//! or backend.

use std::collections::BTreeMap;

use super::Observation;
use super::catalogue as names;
use super::samples::{Bounds, Labels, Samples, number};
use crate::cli::MetricsBackends;
use crate::codes::protocol_number;
use crate::datapath::contents::Front;
use crate::datapath::{BackendSnapshot, FrontendSnapshot};
use crate::lb::loads::LOAD_MAX;
use crate::lb::ramp::UNIT;
use crate::proxy::dial_error::FailureReason;
use crate::proxy::ledger::{BackendFigures, FrontendFigures};
use crate::view::{BackendState, BackendView, PortView, ServiceView};

pub(super) const REQUEST: &str = "request";
pub(super) const REPLY: &str = "reply";
/// 33 µs to 17 s, in steps of two.
pub(super) const CONNECT_BOUNDS: Bounds = Bounds { first: 1, last: 20, step: 1 };
/// 1 ms to 73 min, in steps of four.
pub(super) const FLOW_BOUNDS: Bounds = Bounds { first: 6, last: 28, step: 2 };

/// Adds the families of every published port in the view.
pub(super) fn add(samples: &mut Samples, seen: &Observation<'_>) {
    let kernel_frontends: BTreeMap<(u8, u16), &FrontendSnapshot> = seen
        .kernel
        .iter()
        .flat_map(|kernel| &kernel.frontends)
        .filter_map(|frontend| match frontend.front {
            Front::Port(port) => Some(((port.protocol, port.port), frontend)),
            Front::VirtualIp(_) => None,
        })
        .collect();
    let kernel_backends: BTreeMap<u32, &BackendSnapshot> =
        seen.kernel.iter().flat_map(|kernel| &kernel.backends).map(|backend| (backend.id, backend)).collect();
    for (service, port, backends) in seen.view.frontends_with_backends() {
        let published = port.published.to_string();
        let labels: Labels<'_> = vec![
            ("service", service.name.as_str()),
            ("port", published.as_str()),
            ("protocol", port.protocol.as_str()),
        ];
        let kernel = kernel_frontends.get(&(protocol_number(port.protocol), port.published)).copied();
        add_frontend(samples, seen, service, port, kernel, &labels);
        add_states(samples, seen, &backends, &labels);
        for backend in backends {
            let kernel = kernel_backends.get(&backend.id.get()).copied();
            let proxy = seen.proxy.backends.get(&backend.id).copied().unwrap_or_default();
            if is_shown(seen, backend, kernel, &proxy) {
                add_backend(samples, seen, backend, kernel, &proxy, &labels);
            }
        }
    }
}

fn add_frontend(
    samples: &mut Samples,
    seen: &Observation<'_>,
    service: &ServiceView,
    port: PortView,
    kernel: Option<&FrontendSnapshot>,
    labels: &Labels<'_>,
) {
    let key = (service.id.clone(), port.protocol, port.published);
    let proxy: FrontendFigures = seen.proxy.frontends.get(&key).copied().unwrap_or_default();
    let counted = kernel.map(|kernel| kernel.stats).unwrap_or_default();
    samples.add(&names::FRONTEND_CONNECTIONS, labels, number(counted.opened + proxy.opened));
    samples.add(&names::FRONTEND_UNREMEMBERED, labels, number(counted.unremembered));
    for (direction, traffic, payload) in
        [(REQUEST, counted.request, proxy.request_bytes), (REPLY, counted.reply, proxy.reply_bytes)]
    {
        let labels = with(labels, &[("direction", direction)]);
        samples.add(&names::FRONTEND_PACKETS, &labels, number(traffic.packets));
        samples.add(&names::FRONTEND_BYTES, &labels, number(traffic.bytes + payload));
    }
    let timed = kernel.map(|kernel| kernel.durations).unwrap_or_default();
    let connect = timed.connect.plus(&proxy.connect.into());
    samples.add_histogram(&names::CONNECT_DURATION, labels, &connect, CONNECT_BOUNDS);
    let lived = timed.flow.plus(&proxy.lived.into());
    samples.add_histogram(&names::FLOW_DURATION, labels, &lived, FLOW_BOUNDS);
    let unassigned = [
        ("no_backend", counted.no_backend + proxy.no_backend),
        ("all_refused", proxy.all_refused),
        ("not_allowed", proxy.denied),
        ("no_room", proxy.no_room),
    ];
    for (reason, count) in unassigned {
        samples.add(&names::FRONTEND_UNASSIGNED, &with(labels, &[("reason", reason)]), number(count));
    }
    let policy = with(labels, &[("policy", service.lb.policy.as_str())]);
    samples.add(&names::POLICY_INFO, &policy, 1.0);
    let changes = seen.policy_changes.get(&service.id).copied().unwrap_or_default();
    samples.add(&names::POLICY_CHANGES, labels, number(changes));
}

fn add_states(samples: &mut Samples, seen: &Observation<'_>, backends: &[&BackendView], labels: &Labels<'_>) {
    // A backend that the health check ejected is shown like a silent one.
    let shown = |backend: &BackendView| match backend.state {
        BackendState::Active if seen.ejected.contains(&backend.id) => state_label(BackendState::Silent),
        state => state_label(state),
    };
    for state in [BackendState::Active, BackendState::Draining, BackendState::Silent].map(state_label) {
        let count = backends.iter().filter(|backend| shown(backend) == state).count();
        let labels = with(labels, &[("state", state)]);
        samples.add(&names::FRONTEND_BACKENDS, &labels, number(count as u64));
    }
}

fn add_backend(
    samples: &mut Samples,
    seen: &Observation<'_>,
    backend: &BackendView,
    kernel: Option<&BackendSnapshot>,
    proxy: &BackendFigures,
    labels: &Labels<'_>,
) {
    let node = seen.view.nodes.get(&backend.node_id).map_or(backend.node_id.as_str(), |node| &node.hostname);
    let labels = &with(labels, &[("task", &backend.task_name), ("backend_node", node)]);
    let address = backend.address.to_string();
    let about = [
        ("task_id", backend.task_id.as_str()),
        ("container_id", &backend.container_id),
        ("address", address.as_str()),
    ];
    samples.add(&names::BACKEND_INFO, &with(labels, &about), 1.0);
    let is_up = backend.state == BackendState::Active && !seen.ejected.contains(&backend.id);
    samples.add(&names::BACKEND_UP, labels, f64::from(u8::from(is_up)));
    add_shares(samples, seen, backend, kernel, labels);
    let counted = kernel.map(|kernel| kernel.stats).unwrap_or_default();
    let live = kernel.map_or(0, |kernel| kernel.live);
    samples.add(&names::BACKEND_CONNECTIONS_TOTAL, labels, number(counted.opened + proxy.opened));
    samples.add(&names::BACKEND_CONNECTIONS, labels, number(live + proxy.live));
    for (direction, traffic, payload) in
        [(REQUEST, counted.request, proxy.request_bytes), (REPLY, counted.reply, proxy.reply_bytes)]
    {
        let labels = with(labels, &[("direction", direction)]);
        samples.add(&names::BACKEND_PACKETS, &labels, number(traffic.packets));
        samples.add(&names::BACKEND_BYTES, &labels, number(traffic.bytes + payload));
    }
    let by_proxy = proxy.handshakes();
    let failed = counted.refused + counted.unanswered + by_proxy.failed;
    for (result, count) in [("ok", counted.answered + by_proxy.answered), ("failed", failed)] {
        samples.add(&names::BACKEND_HEALTH_CHECKS, &with(labels, &[("result", result)]), number(count));
    }
    for reason in FailureReason::ALL {
        let by_kernel = match reason {
            FailureReason::Reset => counted.refused,
            FailureReason::Timeout => counted.unanswered,
            FailureReason::Unreachable => 0,
        };
        let labels = with(labels, &[("reason", reason.label())]);
        let count = by_kernel + proxy.failures[reason as usize];
        samples.add(&names::BACKEND_CONNECT_FAILURES, &labels, number(count));
    }
}

/// Adds the families of weights and loads, by which backends are selected.
fn add_shares(
    samples: &mut Samples,
    seen: &Observation<'_>,
    backend: &BackendView,
    kernel: Option<&BackendSnapshot>,
    labels: &Labels<'_>,
) {
    let weight = match kernel {
        Some(kernel) => f64::from(kernel.backend.weight) / f64::from(UNIT),
        None => f64::from(backend.weight.get()),
    };
    samples.add(&names::BACKEND_WEIGHT, labels, weight);
    let by_table = || {
        let load = seen.loads.get(&backend.id)?;
        Some((u32::from(load.level), load.seen.elapsed()))
    };
    if let Some((level, age)) = kernel.and_then(|kernel| kernel.load).or_else(by_table) {
        let ratio = f64::from(level.saturating_sub(1)) / f64::from(LOAD_MAX - 1);
        samples.add(&names::BACKEND_LOAD, labels, ratio);
        samples.add(&names::BACKEND_LOAD_AGE, labels, age.as_secs_f64());
    }
}

fn is_shown(
    seen: &Observation<'_>,
    backend: &BackendView,
    kernel: Option<&BackendSnapshot>,
    proxy: &BackendFigures,
) -> bool {
    match seen.backends {
        MetricsBackends::All => true,
        MetricsBackends::Local => seen.view.is_local(backend),
        MetricsBackends::Off => false,
        MetricsBackends::Seen => proxy.opened > 0 || kernel.is_some_and(|kernel| kernel.stats.opened > 0),
    }
}

pub(super) fn with<'a>(labels: &Labels<'a>, more: &[(&'static str, &'a str)]) -> Labels<'a> {
    labels.iter().chain(more).copied().collect()
}

/// The catalogue calls silent backends unhealthy: their node is silent, or their handshakes fail.
pub(super) fn state_label(state: BackendState) -> &'static str {
    match state {
        BackendState::Active => "active",
        BackendState::Draining | BackendState::Retired => "draining",
        BackendState::Silent => "unhealthy",
    }
}

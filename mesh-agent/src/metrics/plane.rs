//! Families of the data plane as a whole, and of the agent itself.
//!
//! Invariant: pure.

use std::collections::BTreeMap;

use mesh_ebpf::abi::{ABI_HASH, Evicted};

use mesh_state::origin;
use mesh_state::spec::Protocol;

use super::Observation;
use super::catalogue as names;
use super::samples::{Samples, number};
use crate::datapath::StatsSnapshot;

/// Adds the families of the agent and its node.
pub(super) fn add_node(samples: &mut Samples, seen: &Observation<'_>) {
    let abi = format!("{ABI_HASH:016x}");
    let build = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("revision", origin::REVISION),
        ("rustc", origin::RUSTC),
        ("bpf_abi", abi.as_str()),
    ];
    samples.add(&names::BUILD_INFO, &build, 1.0);
    let node = [
        ("node_id", seen.view.node_id.as_str()),
        ("hostname", seen.node.hostname.as_str()),
        ("role", seen.node.role.as_str()),
        ("kernel", seen.node.kernel.as_str()),
        ("datapath", seen.node.datapath.as_str()),
    ];
    samples.add(&names::NODE_INFO, &node, 1.0);
    if let Some(cause) = seen.node.fallback {
        samples.add(&names::FALLBACK, &[("cause", cause)], 1.0);
    }
    samples.add(&names::PROXY_KEPT, &[], f64::from(u8::from(seen.is_proxy_kept)));
    samples.add(&names::STORE_REVISION, &[], number(seen.view.generation));
    samples.add(&names::DATAPLANE_REVISION, &[], number(seen.applied));
    samples.add(&names::CONTROL_CONNECTED, &[], f64::from(u8::from(seen.connected)));
    if let Some(until) = seen.node.certificate_until {
        let label = [("certificate", "node")];
        samples.add(&names::CERTIFICATE_LEFT, &label, (until - seen.now).as_seconds_f64());
        samples.add(&names::CERTIFICATE_RENEWALS, &label, number(seen.node.certificate_renewals));
    }
    for collector in seen.collectors {
        let label = [("collector", collector.name)];
        samples.add(&names::COLLECTOR_SUCCESS, &label, f64::from(u8::from(collector.success)));
        samples.add(&names::COLLECTOR_DURATION, &label, collector.duration.as_secs_f64());
    }
    for ((protocol, port), bound) in &seen.proxy.listeners {
        let suffix = if *protocol == Protocol::Udp { "/udp" } else { "" };
        let address = format!(":{port}{suffix}");
        let labels = [("interface", address.as_str()), ("hook", "listener"), ("mode", "socket")];
        samples.add(&names::ATTACHED, &labels, f64::from(u8::from(*bound)));
    }
}

/// Adds the families of the kernel programs and their maps.
pub(super) fn add_kernel(samples: &mut Samples, kernel: &StatsSnapshot) {
    for (reason, direction, count) in &kernel.drops {
        let labels = [("reason", reason.label()), ("direction", direction.label())];
        samples.add(&names::DROPPED, &labels, number(*count));
    }
    for (direction, count) in &kernel.passed {
        samples.add(&names::PASSED, &[("direction", direction.label())], number(*count));
    }
    samples.add(&names::SYN_GUARD_ACTIVE, &[], f64::from(u8::from(kernel.is_guarding)));
    for (map, entries) in &kernel.conntrack {
        let table = map.to_lowercase();
        for (protocol, entries) in entries.named() {
            let labels = [("protocol", protocol), ("table", table.as_str())];
            samples.add(&names::CONNTRACK_ENTRIES, &labels, number(*entries));
        }
    }
    for (protocol, evictions) in kernel.evictions.named() {
        for cause in Evicted::ALL {
            let labels = [("protocol", protocol), ("cause", cause.label())];
            samples.add(&names::CONNTRACK_EVICTIONS, &labels, number(evictions.of(cause)));
        }
    }
    for fill in &kernel.maps {
        samples.add(&names::MAP_ENTRIES, &[("map", fill.map)], number(fill.entries));
        samples.add(&names::MAP_MAX_ENTRIES, &[("map", fill.map)], number(fill.capacity));
    }
    // Errors start at 0: an alert can't watch a series that doesn't exist before the first error.
    let none = kernel.maps.iter().map(|fill| ((fill.map, "update"), 0));
    let mut errors: BTreeMap<(&str, &str), u64> = none.collect();
    errors.extend(kernel.map_errors.iter().map(|(failed, count)| (*failed, *count)));
    for ((map, operation), count) in &errors {
        samples.add(&names::MAP_ERRORS, &[("map", *map), ("operation", *operation)], number(*count));
    }
    for (setting, count) in &kernel.host.restored {
        samples.add(&names::HOST_RESTORED, &[("setting", setting)], number(*count));
    }
    for setting in kernel.host.wrong.keys() {
        samples.add(&names::HOST_WRONG, &[("setting", setting)], 1.0);
    }
    for hook in &kernel.hooks {
        let labels = [("interface", hook.interface.as_str()), ("hook", hook.hook), ("mode", hook.mode)];
        samples.add(&names::ATTACHED, &labels, 1.0);
    }
}

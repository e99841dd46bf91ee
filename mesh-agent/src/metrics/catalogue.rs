//! The names, kinds and help texts of the agent's metrics, on which dashboards and alerts rely.
//!
//! Invariant: a name is written here and nowhere else. `L` in comments is (service, port,
//! protocol), `B` is `L` with (task, backend_node); `V` is (service, network), `W` is `V` with
//! (task, backend_node).

use prometheus::proto::MetricType;

/// One metric family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: MetricType,
    pub(super) help: &'static str,
}

macro_rules! families {
    ($($(#[doc = $doc:literal])+ $constant:ident = $kind:ident $name:literal, $help:literal;)+) => {
        $($(#[doc = $doc])+ pub(super) const $constant: Family =
            Family { name: $name, kind: MetricType::$kind, help: $help };)+

        /// Every family of the collector.
        pub(super) const ALL: &[Family] = &[$($constant),+];
    };
}

families! {
    /// version, revision (`MESH_REVISION` when it was built), rustc, bpf_abi
    BUILD_INFO = GAUGE "mesh_build_info", "What this agent was built from, always 1.";
    /// node_id, hostname, role, kernel, datapath
    NODE_INFO = GAUGE "mesh_node_info", "The node this agent runs on, always 1.";
    /// L
    FRONTEND_CONNECTIONS = COUNTER "mesh_frontend_connections_total", "New flows accepted on the published port by this node.";
    /// L, direction
    FRONTEND_PACKETS = COUNTER "mesh_frontend_packets_total", "Packets of the published port, by kernel programs.";
    /// L, direction
    FRONTEND_BYTES = COUNTER "mesh_frontend_bytes_total", "Bytes of the published port: layer 3 by kernel programs, payload by the proxy.";
    /// L, reason
    FRONTEND_UNASSIGNED = COUNTER "mesh_frontend_unassigned_total", "New flows for which no backend could be selected.";
    /// L
    FRONTEND_UNREMEMBERED = COUNTER "mesh_frontend_unremembered_syns_total", "SYNs above --syn-guard-rate: forwarded without a flow entry.";
    /// L, state
    FRONTEND_BACKENDS = GAUGE "mesh_frontend_backends", "Backends of the published port by state.";
    /// B, task_id, container_id, address
    BACKEND_INFO = GAUGE "mesh_backend_info", "What the backend is, always 1; to join on.";
    /// B
    BACKEND_UP = GAUGE "mesh_backend_up", "Whether the backend may get new flows.";
    /// B
    BACKEND_CONNECTIONS_TOTAL = COUNTER "mesh_backend_connections_total", "New flows that this node assigned to the backend.";
    /// B
    BACKEND_CONNECTIONS = GAUGE "mesh_backend_connections", "Flows of this node towards the backend, now.";
    /// B, direction
    BACKEND_PACKETS = COUNTER "mesh_backend_packets_total", "Packets of the backend through this node, by kernel programs.";
    /// B, direction
    BACKEND_BYTES = COUNTER "mesh_backend_bytes_total", "Bytes of the backend through this node: layer 3 by kernel programs, payload by the proxy.";
    /// B, reason
    BACKEND_CONNECT_FAILURES = COUNTER "mesh_backend_connect_failures_total", "Handshakes with the backend that failed.";
    /// B
    BACKEND_WEIGHT = GAUGE "mesh_backend_weight", "The backend's share of new flows; 1 is the usual one.";
    /// B
    BACKEND_LOAD = GAUGE "mesh_backend_load_ratio", "Load of the backend that the policy uses, from 0 (idle) to 1 (saturated).";
    /// B
    BACKEND_LOAD_AGE = GAUGE "mesh_backend_load_age_seconds", "Age of the backend's load.";
    /// B, result
    BACKEND_HEALTH_CHECKS = COUNTER "mesh_backend_health_checks_total", "Handshakes with the backend by result, on which the passive health check decides.";
    /// L
    CONNECT_DURATION = HISTOGRAM "mesh_backend_connect_duration_seconds", "Time from a client's SYN to the backend's SYN-ACK, as this node sees them; of UDP from the first datagram to the first reply.";
    /// L
    FLOW_DURATION = HISTOGRAM "mesh_flow_duration_seconds", "Lifetime of flows that have ended; of UDP and of idle ones from the first packet to the last.";
    /// V
    VIP_CONNECTIONS = COUNTER "mesh_vip_connections_total", "New flows of this node's tasks to the service's virtual IP.";
    /// V, direction
    VIP_PACKETS = COUNTER "mesh_vip_packets_total", "Packets between this node's tasks and the virtual IP.";
    /// V, direction
    VIP_BYTES = COUNTER "mesh_vip_bytes_total", "Bytes between this node's tasks and the virtual IP, layer 3.";
    /// V, reason
    VIP_UNASSIGNED = COUNTER "mesh_vip_unassigned_total", "New flows to the virtual IP for which no backend could be selected.";
    /// V, state
    VIP_BACKENDS = GAUGE "mesh_vip_backends", "Backends of the virtual IP by state.";
    /// W
    VIP_BACKEND_UP = GAUGE "mesh_vip_backend_up", "Whether the backend of the virtual IP may get new flows.";
    /// W
    VIP_BACKEND_CONNECTIONS_TOTAL = COUNTER "mesh_vip_backend_connections_total", "New flows of this node's tasks that were assigned to the backend.";
    /// W
    VIP_BACKEND_CONNECTIONS = GAUGE "mesh_vip_backend_connections", "Flows of this node's tasks towards the backend, now.";
    /// W, direction
    VIP_BACKEND_BYTES = COUNTER "mesh_vip_backend_bytes_total", "Bytes between this node's tasks and the backend, layer 3.";
    /// W, result
    VIP_BACKEND_HEALTH_CHECKS = COUNTER "mesh_vip_backend_health_checks_total", "Handshakes with the backend by result, on which the passive health check decides.";
    /// V
    VIP_CONNECT_DURATION = HISTOGRAM "mesh_vip_connect_duration_seconds", "Time from a task's SYN to the virtual IP to the backend's SYN-ACK; of UDP from the first datagram to the first reply.";
    /// V
    VIP_FLOW_DURATION = HISTOGRAM "mesh_vip_flow_duration_seconds", "Lifetime of flows to the virtual IP that have ended; of UDP and of idle ones from the first packet to the last.";
    /// L, policy
    POLICY_INFO = GAUGE "mesh_lb_policy_info", "The selection policy in force, always 1.";
    /// L
    POLICY_CHANGES = COUNTER "mesh_lb_policy_changes_total", "Changes of the selection policy since the agent started.";
    /// network
    ATTACHED_CONTAINERS = GAUGE "mesh_attached_containers", "Containers on this node that users put on the attachable network.";
    /// reason, direction
    DROPPED = COUNTER "mesh_dropped_packets_total", "Packets that kernel programs did not forward.";
    /// direction
    PASSED = COUNTER "mesh_passed_packets_total", "Packets that kernel programs left to the host stack.";
    /// –
    SYN_GUARD_ACTIVE = GAUGE "mesh_syn_guard_active", "Whether SYNs came faster than --syn-guard-rate, or evicted half-open flows from the full table, within the last 8 s: TCP flows are balanced by addresses and ports.";
    /// protocol, table
    CONNTRACK_ENTRIES = GAUGE "mesh_conntrack_entries", "Entries of the flow tables, as of the last sweep.";
    /// protocol, cause
    CONNTRACK_EVICTIONS = COUNTER "mesh_conntrack_evictions_total", "Flow entries evicted before the flow was seen to end; for UDP every entry, as nothing marks a flow's end.";
    /// map
    MAP_ENTRIES = GAUGE "mesh_bpf_map_entries", "Entries of the map in use.";
    /// map
    MAP_MAX_ENTRIES = GAUGE "mesh_bpf_map_max_entries", "Most entries of the map.";
    /// map, operation
    MAP_ERRORS = COUNTER "mesh_bpf_map_operation_errors_total", "Failed operations on the map.";
    /// interface, hook, mode
    ATTACHED = GAUGE "mesh_dataplane_attached", "Where published ports are served: programs attached (1), and the proxy's sockets bound (1) or in use by others (0).";
    /// cause: bpffs, load, program, attach, tunnel
    FALLBACK = GAUGE "mesh_dataplane_fallback", "Present and 1 if this node carries traffic in userspace because it can't run kernel programs.";
    /// setting
    HOST_RESTORED = COUNTER "mesh_host_settings_restored_total", "Settings of the host that another program had changed and this agent restored.";
    /// setting
    HOST_WRONG = GAUGE "mesh_host_setting_wrong", "Settings of the host that are wrong and that this agent can't restore, always 1.";
    /// –
    PROXY_KEPT = GAUGE "mesh_proxy_counters_kept", "Whether the userspace proxy's counters are on disk; 0: the disk refuses writes, and the counters fall at the agent's next start.";
    /// –
    STORE_REVISION = GAUGE "mesh_store_revision", "Generation of the newest mesh table heard of.";
    /// –
    DATAPLANE_REVISION = GAUGE "mesh_dataplane_revision", "Generation of the mesh table that carries traffic.";
    /// –
    CONTROL_CONNECTED = GAUGE "mesh_control_connected", "Whether the stream to a manager is up.";
    /// certificate
    CERTIFICATE_LEFT = GAUGE "mesh_certificate_seconds_left", "Seconds until the certificate expires; negative once it has.";
    /// certificate
    CERTIFICATE_RENEWALS = COUNTER "mesh_certificate_renewals_total", "How often the certificate was renewed.";
    /// collector
    COLLECTOR_SUCCESS = GAUGE "mesh_collector_success", "Whether the collector could read its source in this scrape.";
    /// collector
    COLLECTOR_DURATION = GAUGE "mesh_collector_duration_seconds", "How long the collector took to read its source.";
}

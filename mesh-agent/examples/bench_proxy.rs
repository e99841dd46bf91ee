//! The userspace data plane alone, for `cargo xtask bench peers`: no manager, no engine, a mesh of
//! two nodes and one task.
//!
//! Arguments: the number of this node, 1 or 2, and that of the task's node. Nodes are 10.99.0.1N,
//! tasks 10.128.N.2:8080, the published port is 80.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_admission::refusals::Refusals;
use mesh_agent::control_link::relay_keys::{RelayKey, RelayKeys};
use mesh_agent::lb::loads::Loads;
use mesh_agent::proxy::{Proxy, ProxySettings, UdpLimits};
use mesh_agent::view::NodeView;
use mesh_state::ids::NodeId;
use mesh_state::proto;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const RELAY_PORT: u16 = 4800;
const PUBLISHED: u32 = 80;
const TARGET: u32 = 8080;

fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 10 + number)
}

fn table(task_node: u8) -> proto::MeshTable {
    let node = |number: u8| proto::MeshNode {
        id: number.to_string(),
        address: node_address(number).to_string(),
        hostname: number.to_string(),
        ..proto::MeshNode::default()
    };
    proto::MeshTable {
        generation: 1,
        nodes: vec![node(1), node(2)],
        services: vec![proto::MeshService {
            id: "s".into(),
            name: "web".into(),
            policy: "round-robin".into(),
            ports: vec![proto::MeshPort { protocol: "tcp".into(), published: PUBLISHED, target: TARGET }],
            ..proto::MeshService::default()
        }],
        backends: vec![proto::MeshBackend {
            id: 1,
            service_id: "s".into(),
            task_name: "web.1".into(),
            node_id: task_node.to_string(),
            address: Ipv4Addr::new(10, 128, task_node, 2).to_string(),
            protocol: "tcp".into(),
            published: PUBLISHED,
            target: TARGET,
            state: proto::BackendState::Active.into(),
            weight: 1,
            ..proto::MeshBackend::default()
        }],
        ..proto::MeshTable::default()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).map(|argument| argument.parse::<u8>());
    let own = numbers.next().context("this node's number")??;
    let task_node = numbers.next().context("the number of the task's node")??;
    let view = NodeView::new(NodeId::from(own.to_string()), node_address(own)).apply(&table(task_node))?;
    let (_view, views) = watch::channel(Arc::new(view));
    let key = RelayKey::from_bytes(&[1; 32]).context("a relay key")?;
    let (_keys, keys) = watch::channel(RelayKeys::default().rotated(key));
    let settings = ProxySettings {
        listen_address: IpAddr::V4(node_address(own)),
        relay_listen: SocketAddr::new(node_address(own).into(), RELAY_PORT),
        relay_port: RELAY_PORT,
        own_ports: std::collections::BTreeMap::new(),
        connections_max: 16_384,
        idle_limit: Duration::from_mins(10),
        udp_limits: UdpLimits::default(),
        drain_limit: Duration::from_secs(1),
    };
    let (proxy, relay) = Proxy::bind(settings, views, keys, Arc::new(Loads::default()), Refusals::new()?)?;
    let (applied, _applied) = watch::channel(0);
    proxy.run(relay, applied, CancellationToken::new()).await;
    Ok(())
}

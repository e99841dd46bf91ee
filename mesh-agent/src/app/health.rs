//! Passive health check, once a second: [`Health`] gets the handshake counters of kernel programs
//! and proxy, and both leave out the backends that it ejects.
//!
//! Invariant: programs and proxy of a node leave out the same backends. When the programs' counters
//! can't be read, nothing changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_state::ids::BackendId;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::datapath::{Datapath, DatapathError};
use crate::lb::health::{Counted, Group, Health};
use crate::proxy::Proxy;
use crate::view::{BackendState, MemberView, NodeView};
use mesh_runtime::error_chain;

/// How often handshakes are checked.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Passive health check: ejects backends whose handshakes fail.
pub(super) struct PassiveHealth {
    pub(super) views: watch::Receiver<Arc<NodeView>>,
    pub(super) proxy: Arc<Proxy>,
    pub(super) datapath: Option<Arc<Datapath>>,
    /// The ejected backends.
    pub(super) ejected: watch::Sender<BTreeSet<BackendId>>,
}

impl PassiveHealth {
    /// Checks once a second until `shutdown`.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let this = Arc::new(self);
        let mut health = Health::default();
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = looks.tick() => {}
            }
            let looking = Arc::clone(&this);
            let looked = tokio::task::spawn_blocking(move || {
                let result = looking.look(&mut health);
                (health, result)
            });
            // A panic in the blocking task ends this future, and with it the agent.
            let Ok((after, result)) = looked.await else { return };
            health = after;
            if let Err(error) = result {
                tracing::error!(error = error_chain(&error), "can't follow backends' health: trying again");
            }
        }
    }

    /// One check. Blocks.
    fn look(&self, health: &mut Health) -> Result<(), DatapathError> {
        let view = Arc::clone(&self.views.borrow());
        let counted = self.counted(&view)?;
        health.observe(&counted, Instant::now());
        let ejected = health.ejected();
        self.log_changes(&view, ejected);
        self.proxy.eject(ejected);
        if let Some(datapath) = &self.datapath {
            datapath.eject(ejected)?;
        }
        Ok(())
    }

    /// The handshake counters of every active backend.
    fn counted(&self, view: &NodeView) -> Result<Vec<Counted>, DatapathError> {
        let active = active(view);
        let ids: Vec<BackendId> = active.iter().map(|(id, _)| *id).collect();
        let by_programs = match &self.datapath {
            Some(datapath) => datapath.handshakes(&ids)?,
            None => BTreeMap::default(),
        };
        let counted = active.into_iter().map(|(id, group)| Counted {
            id,
            group,
            handshakes: by_programs
                .get(&id)
                .copied()
                .unwrap_or_default()
                .plus(self.proxy.ledger().handshakes(id)),
        });
        Ok(counted.collect())
    }

    /// Logs which backends were ejected and which may have new flows again.
    fn log_changes(&self, view: &NodeView, ejected: &BTreeSet<BackendId>) {
        let task = |id: &BackendId| task_name(view, *id);
        self.ejected.send_if_modified(|present| {
            for id in ejected.difference(present) {
                tracing::warn!(
                    backend = id.get(),
                    task = task(id),
                    "its handshakes fail: no new flows for a while"
                );
            }
            for id in present.difference(ejected) {
                tracing::info!(backend = id.get(), task = task(id), "it may have new flows again");
            }
            let changed = present != ejected;
            if changed {
                present.clone_from(ejected);
            }
            changed
        });
    }
}

/// Every active backend, of published ports and of virtual IPs.
fn active(view: &NodeView) -> Vec<(BackendId, Group)> {
    let published = view.backends.values().filter(|backend| backend.state == BackendState::Active);
    let published = published.map(|backend| (backend.id, Group::Port(backend.protocol, backend.published)));
    let members = view.members.values().filter(|member| member.state == Some(BackendState::Active));
    let virtual_ips = members.flat_map(|member| {
        member.attachments.iter().filter_map(|attachment| {
            let group = Group::VirtualIp(member.service_id.clone()?, attachment.network_id.clone());
            Some((attachment.backend_id?, group))
        })
    });
    published.chain(virtual_ips).collect()
}

/// The name of the task of a backend.
fn task_name(view: &NodeView, id: BackendId) -> Option<&str> {
    let of_port = view.backends.get(&id).map(|backend| backend.task_name.as_str());
    let has_it =
        |member: &&MemberView| member.attachments.iter().any(|attachment| attachment.backend_id == Some(id));
    of_port.or_else(|| view.members.values().find(has_it).map(|member| member.name.as_str()))
}

#[cfg(test)]
mod tests {
    use mesh_admission::refusals::Refusals;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use mesh_state::ids::NodeId;
    use mesh_state::proto;

    use super::*;
    use crate::control_link::relay_keys::RelayKeys;
    use crate::proxy::dial_error::FailureReason;
    use crate::proxy::{ProxySettings, UdpLimits};

    /// Port 80 with these backends, all active.
    fn view(backends: std::ops::RangeInclusive<u32>) -> NodeView {
        let backend = |id| proto::MeshBackend {
            id,
            service_id: "s".into(),
            address: "10.128.0.2".into(),
            protocol: "tcp".into(),
            published: 80,
            target: 8080,
            state: proto::BackendState::Active.into(),
            weight: 1,
            ..proto::MeshBackend::default()
        };
        let table = proto::MeshTable {
            generation: 1,
            services: vec![proto::MeshService {
                id: "s".into(),
                policy: "round-robin".into(),
                ports: vec![proto::MeshPort { protocol: "tcp".into(), published: 80, target: 8080 }],
                ..proto::MeshService::default()
            }],
            backends: backends.map(backend).collect(),
            ..proto::MeshTable::default()
        };
        NodeView::new(NodeId::from("n"), Ipv4Addr::LOCALHOST).apply(&table).expect("a good table")
    }

    fn passive_health(view: NodeView) -> PassiveHealth {
        let settings = ProxySettings {
            listen_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            relay_listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            relay_port: 0,
            own_ports: std::collections::BTreeMap::new(),
            connections_max: 1,
            idle_limit: Duration::from_secs(1),
            udp_limits: UdpLimits::default(),
            drain_limit: Duration::ZERO,
        };
        let (_, views) = watch::channel(Arc::new(view));
        let (_, keys) = watch::channel(RelayKeys::default());
        let (proxy, _) =
            Proxy::bind(settings, views.clone(), keys, Arc::default(), Refusals::new().expect("a counter"))
                .expect("some port is free");
        PassiveHealth { views, proxy, datapath: None, ejected: watch::Sender::default() }
    }

    #[test]
    fn what_the_proxy_sees_fail_is_left_out_but_never_more_than_half() {
        let health = passive_health(view(1..=4));
        let mut judge = Health::default();
        let ids: Vec<BackendId> = (1..=4).filter_map(BackendId::new).collect();
        let mut look = |failing: &[BackendId]| {
            for id in &ids {
                let entry = health.proxy.ledger().backend(*id);
                for _ in 0..3 {
                    if failing.contains(id) {
                        entry.count_failure(FailureReason::Reset);
                    } else {
                        entry.count_answered();
                    }
                }
            }
            health.look(&mut judge).expect("nothing is read from the kernel");
            health.ejected.borrow().iter().copied().collect::<Vec<_>>()
        };
        assert_eq!(look(&[]), []);
        assert_eq!(look(&ids[1..2]), ids[1..2], "one that fails");
        assert_eq!(look(&ids[..]).len(), 2, "of four that all fail, half");
    }
}

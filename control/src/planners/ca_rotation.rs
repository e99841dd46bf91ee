//! Replaces the cluster's CA in steps that cut no connection.
//!
//! Managers learn to *trust* the new CA. Once all that live do, it *issues* nodes' certificates:
//! nodes renew theirs, and learn to trust it, too. Once every node has, it is the cluster's CA, and
//! managers *serve* with certificates of it. Once all that live do, the rotation ends, and CAs of
//! before are forgotten. So whoever meets a certificate trusts its CA already, also while others
//! are a step behind.
//!
//! A node that is down holds the rotation up, as in Swarm: without a certificate of the new CA it
//! would be shut out. It comes back, or its operator removes it.
//!
//! Invariants: pure; a step is one write.
//!
//! Left to others: beginning a rotation (`api`), signing and trusting (`trust`), and
//! telling nodes ([`crate::node_service`]).

use mesh_state::Timestamp;
use mesh_state::ca::{CaRotation, CaStage, ManagerCas, RootCa};
use mesh_state::cluster::Cluster;
use mesh_state::node::NodeDescription;
use rand::RngCore;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::{Action, Plan};

/// Plans the next step, if it is due.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let Some(stored) = &snapshot.cluster else { return plan };
    let managers = snapshot.managers.values().map(|manager| manager.cas.as_ref());
    let nodes = snapshot.nodes.values().map(|node| &node.description);
    if let Some((cluster, reason)) = next(&stored.value, managers, nodes) {
        plan.reasons.push(reason);
        let cluster = Cluster { updated_at: Some(now), ..cluster };
        plan.actions.push(Action::UpdateCluster { cluster, expected: stored.mod_revision });
    }
    plan
}

/// The record after the next step, with the reason; `None` while somebody isn't as far.
fn next<'a>(
    cluster: &Cluster,
    mut managers: impl Iterator<Item = Option<&'a ManagerCas>>,
    mut nodes: impl Iterator<Item = &'a NodeDescription>,
) -> Option<(Cluster, String)> {
    let rotation = cluster.ca_rotation.as_ref()?;
    let target = &rotation.target.digest;
    match rotation.stage {
        CaStage::Trust => {
            let trusted = rotation.trusted();
            let is_ready = |cas: Option<&ManagerCas>| cas.is_some_and(|cas| cas.trusts.is_superset(&trusted));
            let is_due = managers.all(is_ready);
            is_due.then(|| {
                let rotation = CaRotation { stage: CaStage::Issue, ..rotation.clone() };
                let reason = format!("all managers trust CA {target}: it issues nodes' certificates");
                (Cluster { ca_rotation: Some(rotation), ..cluster.clone() }, reason)
            })
        }
        CaStage::Issue => {
            let is_due = nodes.all(|node| node.certificate_issuer == *target && node.trusts.contains(target));
            is_due.then(|| {
                let reason = format!("all nodes have certificates of CA {target}: it is the cluster's");
                (succeeded(cluster, rotation), reason)
            })
        }
        CaStage::Serve => {
            // A manager that is a step behind may still sign with another CA, or have done so.
            let is_done = |cas: &ManagerCas| cas.issuer == *target && cas.signer == *target;
            let is_due = managers.all(|cas| cas.is_some_and(is_done))
                && nodes.all(|node| node.certificate_issuer == *target);
            is_due.then(|| {
                let reason =
                    format!("all managers serve with certificates of CA {target}: others are forgotten");
                (Cluster { ca_rotation: None, ..cluster.clone() }, reason)
            })
        }
    }
}

/// The record once the target is the cluster's CA.
fn succeeded(cluster: &Cluster, rotation: &CaRotation) -> Cluster {
    let target = rotation.target.clone();
    let mut former = rotation.former.clone();
    if rotation.current != target.digest {
        let certificate_pem = cluster.ca_certificate_pem.clone();
        former.push(RootCa { certificate_pem, digest: rotation.current.clone() });
    }
    Cluster {
        ca_certificate_pem: target.certificate_pem.clone(),
        ca_key: rotation.target_key.clone(),
        ca_rotation: Some(CaRotation {
            stage: CaStage::Serve,
            current: target.digest.clone(),
            target,
            former,
            ..rotation.clone()
        }),
        ..cluster.clone()
    }
}

#[cfg(test)]
mod tests;

//! Keeps the node's description for managers up to date with what its engine reports.
//!
//! Invariants: the description follows an engine that starts after the agent, or is upgraded; the
//! node joins without an engine, too; managers learn at once that the node can take no tasks, and
//! why.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::Components;
use mesh_state::node::{EncryptionEnd, NodeDescription, OwnPort};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::control_link::identity::Identity;
use crate::task::description::{EngineFacts, describe};
use crate::task::runtime::Runtime;
use mesh_runtime::error_chain;

/// The deadline of the engine's answer.
const ENGINE_DEADLINE: Duration = Duration::from_secs(5);
/// How long after a failure the engine is asked again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How often an engine that answers is asked again.
const REFRESH_INTERVAL: Duration = Duration::from_mins(1);

/// The inputs of a description.
pub(super) struct DescriptionFollower {
    pub(super) name: String,
    pub(super) kernel: String,
    pub(super) datapath: &'static str,
    pub(super) manager: Option<SocketAddr>,
    pub(super) own_ports: Vec<OwnPort>,
    /// The node's end of encrypted tunnels, if it has one.
    pub(super) encryption: Option<EncryptionEnd>,
    pub(super) engine: Arc<dyn Runtime>,
    /// Why the node can take no tasks: it has no network for them, or one that overlaps with the
    /// host's.
    pub(super) without_network: watch::Receiver<Option<String>>,
    pub(super) overlaps: watch::Receiver<Option<String>>,
    /// The node's certificate: managers learn of one of another CA, or of other trusted CAs, by a
    /// new session.
    pub(super) identity: watch::Receiver<Identity>,
}

impl DescriptionFollower {
    /// Describes the node now, as far as its engine answers, and follows changes from then on.
    pub(super) async fn follow(mut self, components: &Components) -> watch::Receiver<NodeDescription> {
        let first = self.ask().await;
        let answered = first.is_some();
        let (sender, receiver) = watch::channel(self.description(&first.unwrap_or_default()));
        let stop = components.stopping().clone();
        components.spawn("node description", async move {
            let keep = self.keep(&sender, answered);
            stop.run_until_cancelled(keep).await;
            Ok(())
        });
        receiver
    }

    async fn keep(&mut self, description: &watch::Sender<NodeDescription>, mut answered: bool) {
        loop {
            let pause = sleep(if answered { REFRESH_INTERVAL } else { RETRY_INTERVAL });
            let own_changed = tokio::select! {
                () = pause => false,
                Ok(()) = self.without_network.changed() => true,
                Ok(()) = self.overlaps.changed() => true,
                Ok(()) = self.identity.changed() => true,
            };
            let mut facts = None;
            if !own_changed {
                facts = self.ask().await;
                answered = facts.is_some();
            }
            description.send_if_modified(|current| {
                let newest = match &facts {
                    Some(facts) => self.description(facts),
                    // The engine is down: its last answer still describes the machine.
                    None => self.with_own(current.clone()),
                };
                let changed = *current != newest;
                *current = newest;
                changed
            });
        }
    }

    fn unfit_words(&self) -> String {
        let overlaps = self.overlaps.borrow().clone();
        overlaps.or_else(|| self.without_network.borrow().clone()).unwrap_or_default()
    }

    async fn ask(&self) -> Option<EngineFacts> {
        match timeout(ENGINE_DEADLINE, self.engine.engine()).await {
            Ok(Ok(facts)) => Some(facts),
            Ok(Err(error)) => {
                tracing::debug!(error = %error_chain(&error), "the engine doesn't describe this machine");
                None
            }
            Err(_) => None,
        }
    }

    fn description(&self, facts: &EngineFacts) -> NodeDescription {
        NodeDescription {
            datapath: self.datapath.to_owned(),
            kernel: self.kernel.clone(),
            takes_cookies: true,
            takes_networks: true,
            knows_encryption: true,
            encryption: self.encryption.clone(),
            manager_address: self.manager.map(|manager| manager.to_string()),
            own_ports: self.own_ports.clone(),
            ..self.with_own(describe(&self.name, facts))
        }
    }

    /// A description with what this agent knows without its engine.
    fn with_own(&self, description: NodeDescription) -> NodeDescription {
        let identity = self.identity.borrow();
        NodeDescription {
            unfit: self.unfit_words(),
            certificate_issuer: identity.issuer().ok().flatten().unwrap_or_default(),
            trusts: identity.trusts(),
            ..description
        }
    }
}

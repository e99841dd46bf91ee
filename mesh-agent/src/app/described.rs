//! What the node says of itself to managers, kept up to date with what its engine says.
//!
//! Invariant: an engine that starts after the agent, or is upgraded, is heard of; the node joins without it, too.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_state::node::NodeDescription;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::error_chain;
use crate::shutdown::Components;
use crate::task::description::{EngineFacts, describe};
use crate::task::runtime::Runtime;

/// How long the engine may take to answer.
const ENGINE_DEADLINE: Duration = Duration::from_secs(5);
/// How soon an engine that doesn't answer is asked again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How often an engine that answers is asked again.
const REFRESH_INTERVAL: Duration = Duration::from_mins(1);

/// What a description is made of.
pub(super) struct Described {
    pub(super) name: String,
    pub(super) kernel: String,
    pub(super) datapath: &'static str,
    pub(super) manager: Option<SocketAddr>,
    pub(super) engine: Arc<dyn Runtime>,
}

impl Described {
    /// Describes the node now, as far as its engine answers, and from then on.
    pub(super) async fn follow(self, components: &Components) -> watch::Receiver<NodeDescription> {
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

    async fn keep(&self, description: &watch::Sender<NodeDescription>, mut answered: bool) {
        loop {
            sleep(if answered { REFRESH_INTERVAL } else { RETRY_INTERVAL }).await;
            let facts = self.ask().await;
            answered = facts.is_some();
            // What an engine that is down said before still holds for the machine.
            let Some(facts) = facts else { continue };
            description.send_if_modified(|current| {
                let newest = self.description(&facts);
                let changed = *current != newest;
                *current = newest;
                changed
            });
        }
    }

    async fn ask(&self) -> Option<EngineFacts> {
        match timeout(ENGINE_DEADLINE, self.engine.engine()).await {
            Ok(Ok(facts)) => Some(facts),
            Ok(Err(error)) => {
                tracing::debug!(error = %error_chain(&error), "ask the engine about this machine");
                None
            }
            Err(_) => None,
        }
    }

    fn description(&self, facts: &EngineFacts) -> NodeDescription {
        NodeDescription {
            datapath: self.datapath.to_owned(),
            kernel: self.kernel.clone(),
            manager_address: self.manager.map(|manager| manager.to_string()),
            ..describe(&self.name, facts)
        }
    }
}

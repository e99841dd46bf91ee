//! The steps before a container's start: its files, its image, and the container itself.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::{BridgeState, Driver, Goal, KnownContainer, Taken};
use crate::task::container::ContainerFacts;
use crate::task::container_spec::{self, ContainerPlan, NodeNames};
use crate::task::dependencies::Missing;
use crate::task::image;
use crate::task::runtime::{Made, RuntimeError};

/// The host's resolver settings.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the node offers for names, when its name server is at `server`.
async fn names_of_node(server: Option<Ipv4Addr>) -> NodeNames {
    match tokio::fs::read_to_string(RESOLV_CONF).await {
        Ok(text) => NodeNames::new(server, &text),
        Err(error) => {
            warn!(%error, file = RESOLV_CONF, "a container gets none of the host's search domains");
            NodeNames::new(server, "")
        }
    }
}

impl Driver {
    /// Writes the task's secrets and configs and creates the container.
    pub(super) async fn prepare(&mut self, goal: &Goal) -> Taken {
        let bridge = self.context.bridge.borrow().clone();
        let server = match bridge {
            BridgeState::Ready { address } => address,
            BridgeState::NotYet(reason) => {
                self.note(&reason).await;
                return Taken::Retry(reason);
            }
            BridgeState::Unfit(reason) => return self.fail(&reason).await,
        };
        let names = names_of_node(server).await;
        let (node, files_root) = (&self.context.node, self.context.dependencies.root());
        let plan = match container_spec::plan(&goal.assignment, node, &names, files_root) {
            Ok(plan) => plan,
            Err(error) => return self.fail(&error.to_string()).await,
        };
        let dependencies = Arc::clone(&self.context.dependencies);
        let placed = tokio::select! {
            placed = dependencies.place(&self.id, &plan.files, &plan.payload, plan.resolv_conf.as_ref()) => placed,
            _ = self.goal.changed() => return Taken::Done,
        };
        match placed {
            Ok(()) => {}
            Err(Missing::Waiting(reason)) => {
                self.note(&reason).await;
                return Taken::Retry(reason);
            }
            Err(Missing::Refused(reason)) => return self.fail(&reason).await,
        }
        // A task that waits for its predecessor's end has them made meanwhile; the start looks at
        // them again.
        self.made_networks = match self.ensure_networks(goal).await {
            Ok(made) => made,
            Err(taken) => return taken,
        };
        self.make(goal, &plan).await
    }

    /// Creates the container. A tag is pulled before, as it may have moved: all nodes must run the
    /// same image. A digest can't move: it is pulled only if it is missing. A pull that fails is
    /// only logged: the engine's answer to the creation decides, so that a local copy is used while
    /// the registry is down.
    async fn make(&mut self, goal: &Goal, plan: &ContainerPlan) -> Taken {
        let runtime = Arc::clone(&self.context.runtime);
        if !image::is_pinned(&plan.image) && !self.pull(goal, plan, image::FRESHNESS_PATIENCE).await {
            return Taken::Done;
        }
        let mut made = runtime.create(plan).await;
        if let Ok(Made::NoImage(_)) = made {
            if !self.pull(goal, plan, image::PULL_PATIENCE).await {
                return Taken::Done;
            }
            made = runtime.create(plan).await;
        }
        match made {
            Ok(Made::Container(id)) => {
                self.hindered_since = None;
                self.known = KnownContainer::Made(ContainerFacts {
                    networks: plan.places(),
                    ..ContainerFacts::made(id)
                });
                Taken::Done
            }
            Ok(Made::NoImage(reason)) | Err(RuntimeError::Refused(reason)) => {
                match runtime.inspect(&plan.name).await {
                    // An agent that died before it could report has created it.
                    Ok(Some(_)) => Taken::Done,
                    Ok(None) => self.fail(&reason).await,
                    Err(error) => Taken::Retry(error.to_string()),
                }
            }
            Err(error) => Taken::Retry(error.to_string()),
        }
    }

    /// Pulls the task's image; `false` if the task was cancelled meanwhile.
    async fn pull(&mut self, goal: &Goal, plan: &ContainerPlan, patience: Duration) -> bool {
        let (runtime, auth) = (Arc::clone(&self.context.runtime), goal.assignment.registry_auth.as_ref());
        let pulled = tokio::select! {
            pulled = runtime.pull_image(&plan.image, auth, patience) => pulled,
            _ = self.goal.changed() => return false,
        };
        if let Err(error) = pulled {
            warn!(task = %self.id, image = plan.image, error = mesh_runtime::error_chain(&error), "can't pull the image");
        }
        true
    }
}

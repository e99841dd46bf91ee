//! Delivers secrets and configs to one node.
//!
//! Invariants: a node gets what a task needs that is assigned to it and has not started yet, and
//! nothing else; each object once for as long as a task needs it, as the node keeps it that long.
//! Waiting for the store happens outside the session. What was sent is not kept; only gRPC's own
//! buffers hold it until they are reused.
//!
//! Left to others: sending.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_state::dependency::{DependencyKind, TemplateDriver};
use mesh_state::ids::{DependencyId, NodeId};
use mesh_state::proto;
use mesh_state::proto::dependency::Found;
use mesh_state::store::Store;
use mesh_state::task::TaskState;
use tokio::task::{Id, JoinSet};
use tracing::{error, warn};

use super::assignments::is_withheld;
use crate::context::ApiContext;
use crate::feed::snapshot::ClusterSnapshot;
use crate::seal::Sealer;
use crate::slots::references::{Named, of_spec};
use crate::vault::{self, VaultError};
use mesh_runtime::backoff::Backoff;

/// First pause before the store is asked again.
const PAUSE_SHORTEST: Duration = Duration::from_millis(100);
/// Longest pause before the store is asked again.
const PAUSE_LONGEST: Duration = Duration::from_secs(3);

/// The deliveries to one node in one session.
pub(super) struct Deliveries {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    /// What the node needs and was sent, or is being fetched for it.
    needed: BTreeSet<Named>,
    fetches: JoinSet<proto::Dependency>,
    /// The object that each fetch is for.
    fetched: BTreeMap<Id, Named>,
    has_failed: bool,
}

impl Deliveries {
    /// Deliveries of a new session: nothing was sent yet.
    pub(super) fn new(context: &ApiContext) -> Self {
        Self {
            store: Arc::clone(&context.store),
            sealer: Arc::clone(&context.sealer),
            needed: BTreeSet::new(),
            fetches: JoinSet::new(),
            fetched: BTreeMap::new(),
            has_failed: false,
        }
    }

    /// Starts fetching what `node` needs and was not sent.
    pub(super) fn follow(&mut self, node: &NodeId, snapshot: &ClusterSnapshot) {
        let needed = needed(node, snapshot);
        for (kind, id) in needed.difference(&self.needed) {
            let object = snapshot.dependencies.get(&(*kind, id.clone()));
            let name = object.map(|found| found.name.clone());
            let driver = object.and_then(|found| found.templating).map_or("", TemplateDriver::as_str);
            let fetch = fetch(Arc::clone(&self.store), Arc::clone(&self.sealer), *kind, id.clone(), name);
            let fetch =
                async move { proto::Dependency { template_driver: driver.to_owned(), ..fetch.await } };
            let id_of_fetch = self.fetches.spawn(fetch).id();
            self.fetched.insert(id_of_fetch, (*kind, id.clone()));
        }
        self.needed = needed;
        self.has_failed = false;
    }

    /// Whether a fetch is running, so that [`Self::next`] returns something.
    pub(super) fn is_waiting(&self) -> bool {
        !self.fetches.is_empty()
    }

    /// Whether a fetch failed, so that [`Self::follow`] has to start it again.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// The next object that is ready to be sent. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<proto::Dependency> {
        match self.fetches.join_next_with_id().await? {
            Ok((id, found)) => {
                self.fetched.remove(&id);
                Some(found)
            }
            Err(failure) => {
                error!(error = %failure, "can't fetch a secret or config: it is started again");
                if let Some(named) = self.fetched.remove(&failure.id()) {
                    self.needed.remove(&named);
                }
                self.has_failed = true;
                None
            }
        }
    }
}

/// What the tasks of a node refer to that are to run there, that it was told of and that have not
/// started. A node keeps nothing for tasks that it doesn't know, so what came before its task would
/// be lost.
fn needed(node: &NodeId, snapshot: &ClusterSnapshot) -> BTreeSet<Named> {
    let waiting = snapshot.tasks_on(node).filter(|task| {
        task.desired_state <= TaskState::Running && snapshot.state_of(task) < TaskState::Starting
    });
    let specs = waiting.filter_map(|task| {
        let spec = snapshot.spec_of(task)?;
        (!is_withheld(task, spec, snapshot)).then_some(spec)
    });
    specs.flat_map(of_spec).collect()
}

/// Reads an object's data from the store; retries until the store answers.
async fn fetch(
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    kind: DependencyKind,
    id: DependencyId,
    name: Option<String>,
) -> proto::Dependency {
    let mut backoff = Backoff::new(PAUSE_SHORTEST, PAUSE_LONGEST);
    let found = loop {
        match vault::read(store.as_ref(), &sealer, kind, &id).await {
            Ok(Some(mut data)) => break Found::Data(std::mem::take(&mut *data)),
            Ok(None) => {
                let name = name.unwrap_or_else(|| id.to_string());
                break Found::Refusal(format!("{kind} {name} was removed"));
            }
            Err(VaultError::Store(failure)) => {
                warn!(%kind, %id, error = %failure, "can't fetch for a node: will try again");
                let pause = backoff.pause(&mut rand::rng());
                tokio::time::sleep(pause).await;
            }
            Err(failure @ (VaultError::Seal(_) | VaultError::Newer { .. })) => {
                error!(%kind, %id, error = %failure, "can't fetch for a node");
                break Found::Refusal(failure.to_string());
            }
        }
    };
    proto::Dependency {
        kind: kind.as_str().to_owned(),
        id: id.to_string(),
        found: Some(found),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::network::Attachment;
    use mesh_state::spec::SecretReference;

    use super::*;
    use crate::fixtures::{World, network, service, task};

    fn world() -> World {
        let mut world = World::with_nodes(["a", "b"]);
        let mut web = service("web", 2);
        let secret = SecretReference { secret_id: "s".into(), ..SecretReference::default() };
        web.spec.task_template.container_spec.get_or_insert_default().secrets = vec![secret];
        world.put_service(&web);
        world.put_service(&service("plain", 1));
        world
    }

    fn assign(world: &mut World, id: &str, service: &str, node: &str, desired: TaskState) {
        let mut task = task(id, service, 1);
        task.node_id = Some(node.into());
        task.desired_state = desired;
        world.put_task(&task);
    }

    fn needs(world: &World, node: &str) -> usize {
        needed(&node.into(), &world.snapshot).len()
    }

    #[test]
    fn only_nodes_whose_tasks_have_yet_to_start_need_anything() {
        let mut world = world();
        assign(&mut world, "t1", "web", "a", TaskState::Running);
        assign(&mut world, "t2", "plain", "b", TaskState::Running);
        assert_eq!((needs(&world, "a"), needs(&world, "b")), (1, 0));
        assign(&mut world, "t3", "web", "a", TaskState::Ready);
        assert_eq!(needs(&world, "a"), 1, "one object, however many tasks");

        world.report(&"t1".into(), TaskState::Starting);
        assert_eq!(needs(&world, "a"), 1, "another task has yet to start");
        assign(&mut world, "t3", "web", "a", TaskState::Shutdown);
        assert_eq!(needs(&world, "a"), 0, "one has its files, the other is called off");
    }

    #[test]
    fn nothing_is_sent_for_a_task_that_its_node_is_not_told_of_yet() {
        let mut world = world();
        let mut app = network("app", "10.0.5.0/24", 7);
        world.put_network(&app);
        let mut one = task("t1", "web", 1);
        one.node_id = Some("a".into());
        one.attachments = vec![Attachment {
            network_id: "app".into(),
            address: Some([10, 0, 5, 9].into()),
            backend_id: None,
        }];
        world.put_task(&one);
        assert_eq!(needs(&world, "a"), 0, "its node has no address on the network");
        app.node_addresses.insert("a".into(), [10, 0, 5, 3].into());
        world.put_network(&app);
        assert_eq!(needs(&world, "a"), 1);
    }

    #[tokio::test]
    async fn a_fetch_that_was_aborted_is_started_again() {
        let mut world = world();
        assign(&mut world, "t1", "web", "a", TaskState::Running);
        let mut deliveries = Deliveries {
            store: Arc::new(mesh_state::store::MemoryStore::new()),
            sealer: Arc::new(Sealer::new(&zeroize::Zeroizing::new([7; 32]))),
            needed: BTreeSet::new(),
            fetches: JoinSet::new(),
            fetched: BTreeMap::new(),
            has_failed: false,
        };
        deliveries.follow(&"a".into(), &world.snapshot);
        deliveries.fetches.abort_all();
        assert!(deliveries.next().await.is_none() && deliveries.has_failed());
        deliveries.follow(&"a".into(), &world.snapshot);
        let found = deliveries.next().await.expect("the object is fetched again");
        assert!(matches!(found.found, Some(Found::Refusal(_))), "the store holds no data of it");
        assert!(!deliveries.has_failed());
    }
}

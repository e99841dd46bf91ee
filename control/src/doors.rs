//! Admission to mesh-control's listeners, and how they divide its file descriptors.
//!
//! Invariant: together they leave descriptors for everything else: etcd, files, logs.

use std::sync::Arc;

use mesh_admission::descriptors::{self, Want};
use mesh_admission::door::Door;
use mesh_admission::figures::Listener;
use mesh_admission::refusals::Refusals;
use prometheus::Registry;
use tracing::warn;

/// Descriptors for everything that is not a listener's: etcd's connections, files, the runtime.
const RESERVED: usize = 256;
/// Each connection takes one descriptor.
const WANTS: [Want; 4] = [
    (Listener::Nodes, 1),
    (Listener::ControlSocket, 1),
    (Listener::ControlMetrics, 1),
    (Listener::RemoteApi, 1),
];

/// Admission to each listener.
#[derive(Debug, Clone)]
pub struct Doors {
    /// The node service.
    pub nodes: Arc<Door>,
    /// The Docker API.
    pub docker: Arc<Door>,
    /// Metrics and health.
    pub admin: Arc<Door>,
    /// The Docker API for clients on other machines.
    pub remote: Arc<Door>,
}

impl Doors {
    /// Raises the limit of open files as far as the listeners need, and divides it.
    ///
    /// # Errors
    /// The counter of refusals is already registered.
    pub fn open(registry: &Registry) -> prometheus::Result<Self> {
        let wanted = descriptors::needed(&WANTS) + RESERVED;
        let files = usize::try_from(descriptors::raise(wanted as u64)).unwrap_or(usize::MAX);
        if files < wanted {
            let step = "raise it (LimitNOFILE= of the unit)";
            warn!(files, wanted, "the limit of open files leaves room for fewer connections: {step}");
        }
        let share = descriptors::share_out(files.saturating_sub(RESERVED.min(files / 2)), &WANTS);
        let refusals = Refusals::register(registry)?;
        let door = |index: usize| Door::new(WANTS[index].0, share[index], refusals.clone());
        Ok(Self { nodes: door(0), docker: door(1), admin: door(2), remote: door(3) })
    }
}

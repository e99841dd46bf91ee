//! What the leader does beside planning: it compacts etcd, and makes scheduled backups.

use std::sync::Arc;

use prometheus::Registry;
use tokio::sync::watch;

use super::DaemonParts;
use crate::backup_schedule::Schedule;
use crate::config::Config;
use crate::context::ApiContext;
use crate::leader::compaction;
use crate::leader::election::Leadership;

/// Starts it; each part does nothing while another manager leads.
pub(super) fn start(
    config: &Config,
    context: &ApiContext,
    leadership: &watch::Receiver<Option<Leadership>>,
    registry: &Registry,
    parts: &DaemonParts,
) -> anyhow::Result<()> {
    let (store, feed) = (Arc::clone(&context.store), context.feed.clone());
    let compaction =
        compaction::run(Arc::clone(&store), feed.clone(), leadership.clone(), parts.shutdown.clone());
    parts.start("compaction", compaction);
    if let Some(backups) = config.backups.clone() {
        let (name, sealer) = (config.name.clone(), Arc::clone(&context.sealer));
        let schedule = Schedule::new(backups, (store, feed), sealer, name, leadership.clone(), registry)?;
        parts.start("scheduled backups", schedule.run(parts.shutdown.clone()));
    }
    Ok(())
}

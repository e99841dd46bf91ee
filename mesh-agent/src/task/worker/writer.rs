//! Writes tasks to the cache on disk, off the worker's loop.

use mesh_state::ids::TaskId;
use tracing::error;

use crate::task::cache::{CachedTask, TaskCache};

/// Runs one batch of disk writes at a time, off the async threads.
#[derive(Default)]
pub(super) struct Writer {
    batch: Option<tokio::task::JoinHandle<()>>,
}

impl Writer {
    pub(super) fn busy(&self) -> bool {
        self.batch.is_some()
    }

    pub(super) fn begin(&mut self, cache: TaskCache, changes: Vec<(TaskId, Option<CachedTask>)>) {
        self.batch = Some(tokio::task::spawn_blocking(move || {
            for (id, task) in changes {
                let written = match &task {
                    Some(task) => cache.put(task),
                    None => cache.remove(&id),
                };
                if let Err(error) = written {
                    error!(task = %id, error = mesh_runtime::error_chain(&error), "can't cache a task: a restarted agent would not know it");
                }
            }
        }));
    }

    /// Returns when the batch is written. Cancel-safe.
    pub(super) async fn done(&mut self) {
        if let Some(batch) = &mut self.batch {
            if let Err(error) = batch.await {
                error!(error = mesh_runtime::error_chain(&error), "can't cache tasks");
            }
            self.batch = None;
        }
    }
}

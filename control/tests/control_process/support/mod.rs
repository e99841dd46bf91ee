//! Real managers, a real etcd and nodes played by the test, all on loopback.

pub(crate) mod control_process;
pub(crate) mod docker;
pub(crate) mod node;

use std::time::Duration;

/// The deadline of everything that is waited for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `probe` yields something; a panic after the deadline names `what`.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, found)
        .await
        .unwrap_or_else(|_| panic!("expected {what} within {DEADLINE:?}, never saw it"))
}

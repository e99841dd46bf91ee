//! Runs the child: starts it, starts it again when it ends, renews its certificates, and stops it.
//!
//! Invariant: the child gets SIGTERM when this process ends in whatever way (`setpriv
//! --pdeathsig`): an etcd that lives on would keep its directory locked for the next one.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::backoff::Backoff;
use mesh_runtime::error_chain;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{ManagedEtcd, ManagedEtcdError};
use crate::seal::Sealer;

/// The program that makes the kernel signal a child when its parent dies (util-linux).
const SETPRIV: &str = "setpriv";
const RESTART_FIRST: Duration = Duration::from_millis(500);
const RESTART_CAP: Duration = Duration::from_secs(30);
/// A child that lived this long is restarted after the shortest pause.
const STABLE: Duration = Duration::from_mins(1);
/// How long the child may take to end once asked to.
const STOP_LIMIT: Duration = Duration::from_secs(4);
/// How often the age of the certificates is checked. Often, as those that were made before the
/// machine's clock was set may be of no use.
const CERTIFICATE_INTERVAL: Duration = Duration::from_mins(1);

/// Keeps the child running until `shutdown`; `sealer` opens its CA for new certificates. Publishes
/// why it doesn't run in `failure`.
///
/// # Errors
/// The program can't be started at all.
pub async fn supervise(
    mut etcd: ManagedEtcd,
    sealer: Arc<Sealer>,
    failure: watch::Sender<Option<String>>,
    shutdown: CancellationToken,
) -> Result<(), ManagedEtcdError> {
    let mut backoff = Backoff::new(RESTART_FIRST, RESTART_CAP);
    loop {
        let mut child = start(&etcd)?;
        // A later start must not forget members that came since.
        etcd.force_new_cluster = false;
        let begun = Instant::now();
        info!(pid = child.id(), directory = %etcd.directory.display(), "etcd runs");
        let Some(ended) = attend(&etcd, &sealer, &mut child, &shutdown).await else {
            stop(child).await;
            return Ok(());
        };
        let how = ended.map_or_else(|error| error_chain(&error), |status| status.to_string());
        error!(how, "etcd ended; it is started again");
        failure.send_replace(Some(format!("etcd ended ({how}): its reason is in this manager's log")));
        if begun.elapsed() >= STABLE {
            backoff.reset();
        }
        let pause = backoff.pause(&mut rand::rng());
        if shutdown.run_until_cancelled(sleep(pause)).await.is_none() {
            return Ok(());
        }
    }
}

fn start(etcd: &ManagedEtcd) -> Result<Child, ManagedEtcdError> {
    let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
    // `setpriv` would start in its place, and end at once.
    find(&etcd.program)
        .ok_or_else(missing)
        .map_err(|source| ManagedEtcdError::Start { program: etcd.program.clone(), source })?;
    Command::new(SETPRIV)
        .args(["--pdeathsig", "TERM", "--"])
        .arg(&etcd.program)
        .args(etcd.arguments())
        // etcd takes flags from variables, too: those for an operator's etcdctl must not reach it.
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ManagedEtcdError::Start { program: etcd.program.clone(), source })
}

/// The program's file, by its path or in the directories of `PATH`.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.exists().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.exists())
}

/// Waits for the child's end, and renews certificates meanwhile; `None` at `shutdown`.
async fn attend(
    etcd: &ManagedEtcd,
    sealer: &Arc<Sealer>,
    child: &mut Child,
    shutdown: &CancellationToken,
) -> Option<std::io::Result<ExitStatus>> {
    let mut checks = interval(CERTIFICATE_INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return None,
            ended = child.wait() => return Some(ended),
            _ = checks.tick() => {
                let (etcd, sealer) = (etcd.clone(), Arc::clone(sealer));
                match tokio::task::spawn_blocking(move || etcd.prepare(&sealer)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!(error = %error_chain(&error), "can't renew etcd's certificates; will try again"),
                    Err(error) => warn!(error = %error_chain(&error), "can't renew etcd's certificates; will try again"),
                }
            }
        }
    }
}

/// Ends the child in order, or by force if it takes too long.
async fn stop(mut child: Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, Signal::TERM)
    {
        warn!(error = %error_chain(&error), "can't ask etcd to end");
    }
    match tokio::time::timeout(STOP_LIMIT, child.wait()).await {
        Ok(Ok(status)) => info!(%status, "etcd ended"),
        Ok(Err(error)) => warn!(error = %error_chain(&error), "can't wait for the end of etcd"),
        Err(_) => {
            warn!("etcd doesn't end: kill it");
            if let Err(error) = child.kill().await {
                warn!(error = %error_chain(&error), "can't kill etcd");
            }
        }
    }
}

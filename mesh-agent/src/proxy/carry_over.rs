//! The proxy's counters across a restart of the agent.
//!
//! Why: they are added to counters in the kernel's maps, which outlive the agent. A sum that falls looks to Prometheus like a
//! counter that began anew, and all that the kernel ever counted would count again.
//!
//! Invariant: what a scrape has shown is on disk before the scrape is answered, so no figure ever falls below what was shown.

use std::io;
use std::path::{Path, PathBuf};

use mesh_state::ids::{BackendId, ServiceId};
use mesh_state::spec::Protocol;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ledger::{BackendFigures, FrontendFigures, ProxyStats};
use crate::control_link::private_file;

const FILE: &str = "proxy-counters.json";

/// Why counters could not be kept or taken up again.
#[derive(Debug, Error)]
#[error("access {}", path.display())]
pub struct CarryOverError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    backends: Vec<(BackendId, BackendFigures)>,
    frontends: Vec<(ServiceId, Protocol, u16, FrontendFigures)>,
}

/// Keeps the counters of `stats` in `data_dir`. Blocking.
///
/// # Errors
/// The file can't be written.
pub fn store(data_dir: &Path, stats: &ProxyStats) -> Result<(), CarryOverError> {
    let path = data_dir.join(FILE);
    let kept = Kept {
        backends: stats.backends.iter().map(|(id, figures)| (*id, *figures)).collect(),
        frontends: stats
            .frontends
            .iter()
            .map(|((service, protocol, port), figures)| (service.clone(), *protocol, *port, *figures))
            .collect(),
    };
    serde_json::to_vec(&kept)
        .map_err(io::Error::from)
        .and_then(|bytes| private_file::replace(&path, &bytes))
        .map_err(|source| CarryOverError { path, source })
}

/// What was kept in `data_dir`; nothing at the first start. Blocking.
///
/// # Errors
/// The file is there and can't be read.
pub fn load(data_dir: &Path) -> Result<ProxyStats, CarryOverError> {
    let path = data_dir.join(FILE);
    let read = || {
        let Some(contents) = private_file::read(&path)? else { return Ok(ProxyStats::default()) };
        let kept: Kept = serde_json::from_slice(&contents)?;
        Ok(ProxyStats {
            backends: kept.backends.into_iter().collect(),
            frontends: kept
                .frontends
                .into_iter()
                .map(|(service, protocol, port, figures)| ((service, protocol, port), figures))
                .collect(),
            ..ProxyStats::default()
        })
    };
    read().map_err(|source| CarryOverError { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Ledger;
    use super::*;

    #[test]
    fn counters_go_on_where_they_were_and_nothing_is_live() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(load(directory.path()).expect("no file is no error"), ProxyStats::default());
        let id = BackendId::new(1).expect("an id");
        let key = (ServiceId::from("s"), Protocol::Tcp, 80);
        let before = Ledger::default();
        let _live = before.backend(id).open();
        before.frontend(&key).count_opened();
        store(directory.path(), &before.stats()).expect("it is stored");

        let after = Ledger::default();
        after.resume(&load(directory.path()).expect("it is read"));
        let (figures, frontend) = (after.stats().backends[&id], after.stats().frontends[&key]);
        assert_eq!((figures.opened, figures.live, frontend.opened), (1, 0, 1));
        let _next = after.backend(id).open();
        assert_eq!((after.stats().backends[&id].opened, after.backend(id).live()), (2, 1));
    }
}

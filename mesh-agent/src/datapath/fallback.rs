//! What a node does with `--datapath auto` where the kernel takes no programs: it carries traffic
//! in userspace, and says why.
//!
//! Invariant: a node falls back only if it has no programs of an earlier agent. Where some run, the
//! kernel takes programs, and these go on forwarding by their maps: the agent ends with the error,
//! and its supervisor tries again.

use std::sync::Arc;

use mesh_runtime::error_chain;
use tracing::{debug, warn};

use super::config::{DatapathConfig, DatapathMode};
use super::engine::{Datapath, has_programs, open, take_off_programs};
use super::error::DatapathError;

/// The longest reason that is shown, in bytes: the verifier's log may have a megabyte.
const REASON_MAX: usize = 400;

/// Why a node carries traffic in userspace though it needn't by its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    /// What failed: `bpffs`, `load`, `program`, `attach` or `tunnel`.
    pub cause: &'static str,
    /// The error, with the next step.
    pub reason: String,
}

impl Fallback {
    /// The fallback in one sentence.
    pub fn sentence(&self) -> String {
        format!(
            "this node carries traffic in userspace, as it can't run kernel programs: {}; once that is \
             mended, restart mesh-agent",
            self.reason
        )
    }
}

/// Loads the programs and attaches them, or adopts those that run; with `--datapath auto`, a kernel
/// that takes none is no error.
///
/// # Errors
/// As for [`open`]. If some programs were attached before the failure, and can't be detached again.
pub fn open_or_fall_back(config: &DatapathConfig) -> Result<Result<Arc<Datapath>, Fallback>, DatapathError> {
    let had_programs = config.mode == DatapathMode::Auto && has_programs(config)?;
    let failure = match open(config.clone()) {
        Ok(datapath) => return Ok(Ok(datapath)),
        Err(failure) => failure,
    };
    let Some(fallback) = judge(config.mode, had_programs, &failure) else { return Err(failure) };
    take_off_programs(config)?;
    warn!(cause = fallback.cause, "{}", fallback.sentence());
    debug!(error = error_chain(&failure), "the whole failure");
    Ok(Err(fallback))
}

/// The fallback after this failure; `None` if the agent is to end with it.
fn judge(mode: DatapathMode, had_programs: bool, failure: &DatapathError) -> Option<Fallback> {
    if mode != DatapathMode::Auto || had_programs {
        return None;
    }
    let cause = match failure {
        DatapathError::Bpffs { .. } => "bpffs",
        DatapathError::Load(_) => "load",
        DatapathError::Program { .. } => "program",
        DatapathError::Attach { .. } => "attach",
        // A kernel without the module vxlan.
        DatapathError::Netlink { source, .. } if source.raw_os_error() == Some(libc::EOPNOTSUPP) => "tunnel",
        _ => return None,
    };
    Some(Fallback { cause, reason: shortened(&error_chain(failure)) })
}

/// One line of at most [`REASON_MAX`] bytes.
fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.len() <= REASON_MAX {
        return line.to_owned();
    }
    format!("{}…", &line[..line.floor_char_boundary(REASON_MAX)])
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn refused() -> DatapathError {
        DatapathError::Attach {
            program: "mesh_uplink",
            interface: "eth0".to_owned(),
            advice: "load the module cls_bpf",
            source: Box::new(io::Error::from_raw_os_error(libc::ENOENT)),
        }
    }

    #[test]
    fn only_auto_without_programs_falls_back_and_says_why() {
        let fallback = judge(DatapathMode::Auto, false, &refused()).expect("it falls back");
        assert_eq!(fallback.cause, "attach");
        let said = fallback.sentence();
        assert!(said.contains("load the module cls_bpf") && said.contains("restart mesh-agent"), "{said}");
        assert_eq!(judge(DatapathMode::Auto, true, &refused()), None, "programs of an earlier agent run");
        assert_eq!(judge(DatapathMode::Tc, false, &refused()), None, "tc was asked for");
        assert_eq!(judge(DatapathMode::Xdp, false, &refused()), None, "xdp was asked for");
        let mistake = DatapathError::NoUplink("no interface has a default route".to_owned());
        assert_eq!(judge(DatapathMode::Auto, false, &mistake), None, "a mistake in the settings");
    }

    #[test]
    fn a_long_reason_is_cut() {
        assert_eq!(shortened("no\nverifier's log"), "no");
        assert_eq!(shortened(&"ä".repeat(REASON_MAX)).len(), REASON_MAX + "…".len());
    }
}

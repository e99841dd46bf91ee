//! What can go wrong in the data plane, each with the next step.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use thiserror::Error;

/// A failed step of the data plane.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// Nowhere to pin to.
    #[error(
        "can't prepare the bpffs directory {}: run as root, or mount bpf there and pass it with --bpffs",
        path.display()
    )]
    Bpffs {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the object.
    #[error(
        "the kernel refuses the programs: it must be 6.6 or newer and allow CAP_BPF and CAP_NET_ADMIN; \
         --datapath userspace works without"
    )]
    Load(#[source] Box<EbpfError>),
    /// One program was refused.
    #[error("the kernel refuses program {program}: --datapath userspace works without it")]
    Program {
        /// Its name in the object.
        program: &'static str,
        /// The reason, with the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program couldn't be attached.
    #[error("can't attach {program} to {interface}: {advice}")]
    Attach {
        /// Its name in the object.
        program: &'static str,
        /// The interface.
        interface: String,
        /// What to do.
        advice: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map is not what the object says.
    #[error("map {map} can't be opened: run `mesh-agent uninstall` and start the agent again")]
    Map {
        /// Its name.
        map: &'static str,
        /// The reason.
        #[source]
        source: Box<MapError>,
    },
    /// A map operation failed.
    #[error("{operation} of map {map} failed{}", full_map_advice(source))]
    MapOperation {
        /// The map's name.
        map: &'static str,
        /// `lookup`, `update`, `delete` or `dump`.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No interface to take traffic from.
    #[error("no uplink: {0}; name the interface that clients arrive on with --interface")]
    NoUplink(String),
    /// The uplink has no address.
    #[error("uplink {0} has no IPv4 address: give it one, or pass the node's address with --address")]
    NoAddress(String),
    /// The kernel refused a question or a change of its network configuration.
    #[error("{action} failed")]
    Netlink {
        /// What was asked for.
        action: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The task's end of the cable can't be found.
    #[error("task {task}: {reason}")]
    TaskLink {
        /// The task's id.
        task: String,
        /// What is wrong, and what to look at.
        reason: String,
        /// What the system said.
        #[source]
        source: Option<io::Error>,
    },
    /// Blocking work was not carried out, as the agent stops.
    #[error("the agent stops before this was done: the next one resumes from the maps")]
    Interrupted,
}

/// A full map deserves more than an error number.
fn full_map_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => ": the map is full, what was applied before stays in force",
        _ => "",
    }
}

impl DatapathError {
    /// Names what was asked of the kernel's network configuration.
    pub(super) fn netlink(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Netlink { action: action.into(), source }
    }

    /// Names the map operation that failed.
    pub(super) fn map(map: &'static str, operation: &'static str, error: MapError) -> Self {
        let source = match error {
            MapError::SyscallError(error) => error.io_error,
            other => io::Error::other(other),
        };
        Self::MapOperation { map, operation, source }
    }
}

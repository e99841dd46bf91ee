//! Errors of the data plane, each with the next step.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use thiserror::Error;

/// Failed map operations, by map and operation.
pub(super) type MapErrors = BTreeMap<(&'static str, &'static str), u64>;

/// A failed operation of the data plane.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// There is no directory for pins.
    #[error(
        "can't prepare the bpffs directory {}: run as root, or mount bpf there and pass it with --bpffs",
        path.display()
    )]
    Bpffs {
        /// The directory that pins go to.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the object.
    #[error(
        "the kernel refuses the programs: it must be 6.1 or newer and allow CAP_BPF and CAP_NET_ADMIN; \
         --datapath userspace works without"
    )]
    Load(#[source] Box<EbpfError>),
    /// The kernel refused one program.
    #[error("the kernel refuses program {program}: --datapath userspace works without it")]
    Program {
        /// The program's name in the object.
        program: &'static str,
        /// The reason, with the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program couldn't be attached.
    #[error("can't attach {program} to {interface}: {advice}")]
    Attach {
        /// The program's name in the object.
        program: &'static str,
        /// The interface that the program was for.
        interface: String,
        /// The next step.
        advice: &'static str,
        /// The kernel's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map is not of the kind that the object declares.
    #[error("map {map} can't be opened: run `mesh-agent uninstall` and start the agent again")]
    Map {
        /// The map's name.
        map: &'static str,
        /// Why the map can't be opened.
        #[source]
        source: Box<MapError>,
    },
    /// A map operation failed.
    #[error("{operation} of map {map} failed{}", full_map_advice(source))]
    MapOperation {
        /// The map's name.
        map: &'static str,
        /// The operation: `lookup`, `update`, `delete` or `dump`.
        operation: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// There is no interface on which clients arrive.
    #[error("no uplink: {0}; name the interface that clients arrive on with --interface")]
    NoUplink(String),
    /// The uplink has no address.
    #[error("uplink {0} has no IPv4 address: give it one, or pass the node's address with --address")]
    NoAddress(String),
    /// The kernel refused a query or a change of its network configuration.
    #[error("{action} failed")]
    Netlink {
        /// The query or change.
        action: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The task's end of its veth pair can't be found.
    #[error("task {task}: {reason}")]
    TaskLink {
        /// The task's id.
        task: String,
        /// What is wrong, and where to look.
        reason: String,
        /// The kernel's error.
        #[source]
        source: Option<io::Error>,
    },
    /// The connections of a task that is to stop can't be listed.
    #[error("listing the connections of task {task} in its network namespace failed")]
    TaskSockets {
        /// The task's id.
        task: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Blocking work was not carried out because the agent stops.
    #[error("the agent stops before this was done: the next one resumes from the maps")]
    Interrupted,
}

/// The next step if a map is full; otherwise empty.
fn full_map_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => ": the map is full, what was applied before stays in force",
        _ => "",
    }
}

impl DatapathError {
    /// Wraps the error of a network query or change, `action`.
    pub(super) fn netlink(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Netlink { action: action.into(), source }
    }

    /// Wraps the error of a map operation.
    pub(super) fn map(map: &'static str, operation: &'static str, error: MapError) -> Self {
        let source = match error {
            MapError::SyscallError(error) => error.io_error,
            other => io::Error::other(other),
        };
        Self::MapOperation { map, operation, source }
    }
}

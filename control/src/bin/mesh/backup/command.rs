//! The command line of `mesh backup`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use mesh_state::api_paths::CONTROL_SOCKET;

/// Where mesh-control keeps its scheduled backups unless it is told otherwise.
const DIRECTORY: &str = "/var/lib/mesh/control/backups";
/// What is done with backups.
#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Save the cluster's state, its secrets and its key to a file, sealed with a passphrase. On a
    /// manager, as root.
    Save {
        /// The file, or the directory that gets it [default: the present directory].
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// How the file is sealed, and which manager is asked.
        #[command(flatten)]
        access: Access,
    },
    /// List the backups in a directory, the oldest first. Contacts no server.
    Ls {
        /// The directory of the backups; subdirectories are not looked at.
        #[arg(value_name = "DIR", default_value = DIRECTORY)]
        directory: PathBuf,
    },
    /// Show what a backup is of. With its passphrase, also check that it opens and is whole.
    /// Contacts no server.
    Inspect {
        /// A file that `save` or the schedule made.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// File with the backup's passphrase; `-` for standard input.
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Remove all but the newest backups of each cluster in a directory. Contacts no server.
    Prune {
        /// The directory of the backups; subdirectories are not looked at.
        #[arg(value_name = "DIR", default_value = DIRECTORY)]
        directory: PathBuf,
        /// How many backups of each cluster stay.
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
    },
    /// Restore a backup on this manager, as root. A manager without a cluster gets the backup's, as
    /// its first manager. On a manager of a cluster that runs, services, networks, secrets,
    /// configs, join tokens and settings become those of the backup; what doesn't differ is not
    /// touched.
    Restore {
        /// A file that `save` or the schedule made.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// How the file is sealed, and which manager is asked.
        #[command(flatten)]
        access: Access,
        /// Only show what differs from the backup.
        #[arg(long)]
        dry_run: bool,
        /// Restore onto another cluster than the backup's: its services, networks, secrets and
        /// configs, not its tokens and settings.
        #[arg(long)]
        force: bool,
        /// Address or interface by which other nodes reach this one, if it gets a cluster; needed
        /// if it has several.
        #[arg(long, value_name = "ADDRESS|INTERFACE")]
        advertise_addr: Option<String>,
    },
}

/// The passphrase, and the manager.
#[derive(Debug, Args)]
pub(crate) struct Access {
    /// File with the passphrase that seals the backup, readable by its owner alone (mode 0600); `-`
    /// for standard input.
    #[arg(long, value_name = "FILE")]
    pub(super) passphrase_file: PathBuf,
    /// The socket of mesh-control on this machine.
    #[arg(long, env = "MESH_CONTROL_SOCKET", value_name = "PATH", default_value = CONTROL_SOCKET)]
    pub(super) control_socket: PathBuf,
}

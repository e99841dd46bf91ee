//! The settings of scheduled backups.

use std::path::PathBuf;
use std::time::Duration;

use crate::cli::Cli;

/// The directory of backups in the data directory.
const DIRECTORY: &str = "backups";

/// When, where and how backups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backups {
    /// The time between two.
    pub every: Duration,
    /// The directory of the files.
    pub directory: PathBuf,
    /// How many of this cluster stay.
    pub keep: usize,
    /// The file with the passphrase, read for each backup.
    pub passphrase_file: PathBuf,
}

impl Backups {
    /// The backups that a command line asks for; `None`: none.
    pub(super) fn new(cli: &Cli) -> Option<Self> {
        let (every, passphrase_file) =
            cli.backup_every.filter(|every| !every.is_zero()).zip(cli.backup_passphrase_file.clone())?;
        let directory = cli.backup_dir.clone().unwrap_or_else(|| cli.data_dir.join(DIRECTORY));
        Some(Self { every, directory, keep: usize::from(cli.backup_keep), passphrase_file })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_schedule_needs_its_passphrase_and_has_a_directory() {
        let cli = |arguments: &[&str]| Cli::try_parse_from(["mesh-control"].iter().chain(arguments));
        assert_eq!(Backups::new(&cli(&[]).unwrap()), None);
        assert!(cli(&["--backup-every", "12h"]).is_err(), "without a passphrase");
        let asked = cli(&["--backup-every", "12h", "--backup-passphrase-file", "/p", "--data-dir", "/d"]);
        let wanted = Backups::new(&asked.unwrap()).unwrap();
        assert_eq!((wanted.every, wanted.keep), (Duration::from_hours(12), 14));
        assert_eq!(wanted.directory, PathBuf::from("/d/backups"));
    }
}

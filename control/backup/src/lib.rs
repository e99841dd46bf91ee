//! mesh-backup: backups of a cluster.
//!
//! Purpose: one portable form of a cluster's state, independent of etcd's version and members, for
//! mesh-control, which makes and restores backups, and for `mesh backup`, which keeps their files.
//!
//! Code map: [`families`] says which keys are state; [`content`] is a backup in memory and on the
//! control socket; [`sealed`] is its encrypted form; [`files`] are backups in a directory.
//!
//! Invariants: a backup reaches a disk in its sealed form only; one that was changed, cut or made
//! by a newer version does not open, and the error says which.
//!
//! Left to others: reading and writing the cluster (mesh-control).

pub mod content;
pub mod families;
pub mod files;
pub mod sealed;

pub use content::{Backup, BackupError, Entry, KEY_BYTES, Manifest};
pub use sealed::{Cost, Passphrase, SealedError};

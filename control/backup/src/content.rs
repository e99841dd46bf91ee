//! A backup: every key of the cluster's state at one revision, the cluster's key, and a manifest.
//!
//! Invariants: [`Backup::decode`] yields exactly what [`Backup::encode`] was given, or an error;
//! the cluster's key is wiped when dropped and never shown by `Debug`.
//!
//! The form is a line of JSON, the manifest, and a body: the cluster's key, then for each entry the
//! length of the key, the key, the length of the value, the value. Lengths are 32 bits, big endian.

use std::fmt;

use mesh_state::Timestamp;
use mesh_state::ids::ClusterId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

/// The length of the cluster's key, bytes.
pub const KEY_BYTES: usize = 32;
/// The form that this version writes.
pub const FORMAT: u32 = 1;
/// The most bytes of a backup.
pub const BYTES_MAX: usize = 512 << 20;
/// The longest manifest, bytes.
const MANIFEST_BYTES_MAX: usize = 64 << 10;

/// What a backup says of itself, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The form of the body.
    pub format: u32,
    /// The cluster that it is of.
    pub cluster: ClusterId,
    /// The cluster's revision at which all of it was read.
    pub revision: i64,
    /// The version of mesh that made it.
    pub mesh: String,
    /// When it was made, by the clock of the manager that made it.
    pub taken_at: Timestamp,
    /// The manager that made it.
    pub manager: String,
    /// How many keys it has.
    pub keys: usize,
    /// The SHA-256 of the body, in hex.
    pub sha256: String,
}

/// One key of etcd with its value.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key that holds the value.
    pub key: String,
    /// The bytes that the key holds.
    pub value: Vec<u8>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({}, {} bytes)", self.key, self.value.len())
    }
}

/// Where and when a backup is made.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The cluster whose state it is.
    pub cluster: ClusterId,
    /// The revision of the listing.
    pub revision: i64,
    /// The version of mesh.
    pub mesh: String,
    /// The manager's name.
    pub manager: String,
    /// The present moment.
    pub now: Timestamp,
}

/// A whole backup.
#[derive(Clone)]
pub struct Backup {
    manifest: Manifest,
    key: Zeroizing<[u8; KEY_BYTES]>,
    entries: Vec<Entry>,
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backup").field(&self.manifest).finish()
    }
}

/// Why bytes are no good backup.
#[derive(Debug, Error)]
pub enum BackupError {
    /// They never were one.
    #[error("this is no backup of mesh")]
    Foreign,
    /// A later version of mesh made it.
    #[error(
        "the backup has form {found}, this mesh reads up to {FORMAT}: upgrade mesh before you restore it"
    )]
    Newer {
        /// The backup's form.
        found: u32,
    },
    /// Its end is missing.
    #[error("the backup is cut: copy the file again, or take an older backup")]
    Cut,
    /// Its contents are not those that its manifest names.
    #[error(
        "the backup is damaged: its contents don't have the hash in its manifest; copy the file again, or take an older backup"
    )]
    Damaged,
    /// It is larger than any that is accepted.
    #[error("the backup has {bytes} bytes, more than the limit of {BYTES_MAX}")]
    TooLarge {
        /// The size of its body.
        bytes: usize,
    },
}

impl Backup {
    /// A backup of `entries`, with the cluster's key.
    ///
    /// # Errors
    /// [`BackupError::TooLarge`].
    pub fn new(
        origin: Origin,
        key: Zeroizing<[u8; KEY_BYTES]>,
        entries: Vec<Entry>,
    ) -> Result<Self, BackupError> {
        let Origin { cluster, revision, mesh, manager, now } = origin;
        let body = body(&key, &entries)?;
        let manifest = Manifest {
            format: FORMAT,
            cluster,
            revision,
            mesh,
            taken_at: now,
            manager,
            keys: entries.len(),
            sha256: hash(&body),
        };
        Ok(Self { manifest, key, entries })
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The cluster's key.
    pub fn key(&self) -> &Zeroizing<[u8; KEY_BYTES]> {
        &self.key
    }

    /// The keys, as they were listed.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The body alone, for sealing.
    ///
    /// # Errors
    /// [`BackupError::TooLarge`].
    pub fn body(&self) -> Result<Zeroizing<Vec<u8>>, BackupError> {
        body(&self.key, &self.entries)
    }

    /// The whole, in clear: for the control socket, never for a disk.
    ///
    /// # Errors
    /// [`BackupError::TooLarge`].
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, BackupError> {
        let mut bytes = Zeroizing::new(serde_json::to_vec(&self.manifest).map_err(|_| BackupError::Foreign)?);
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.body()?);
        Ok(bytes)
    }

    /// Reads what [`Backup::encode`] made.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BackupError> {
        let end = bytes.iter().take(MANIFEST_BYTES_MAX).position(|byte| *byte == b'\n');
        let (line, body) = bytes.split_at(end.ok_or(BackupError::Foreign)?);
        Self::of_parts(manifest(line)?, body.get(1..).unwrap_or_default())
    }

    /// The backup with this manifest and body.
    ///
    /// # Errors
    /// [`BackupError::Damaged`] if the body is not the manifest's, [`BackupError::Cut`].
    pub fn of_parts(manifest: Manifest, body: &[u8]) -> Result<Self, BackupError> {
        if hash(body) != manifest.sha256 {
            return Err(BackupError::Damaged);
        }
        let (key, mut rest) = body.split_at_checked(KEY_BYTES).ok_or(BackupError::Cut)?;
        let key = <[u8; KEY_BYTES]>::try_from(key).map_err(|_| BackupError::Cut)?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (name, value);
            (name, rest) = field(rest)?;
            (value, rest) = field(rest)?;
            let name = String::from_utf8(name.to_vec()).map_err(|_| BackupError::Damaged)?;
            entries.push(Entry { key: name, value: value.to_vec() });
        }
        if entries.len() != manifest.keys {
            return Err(BackupError::Damaged);
        }
        Ok(Self { manifest, key: Zeroizing::new(key), entries })
    }
}

/// Parses a manifest, but for one of a newer form.
pub(crate) fn manifest(line: &[u8]) -> Result<Manifest, BackupError> {
    #[derive(Deserialize)]
    struct FormatOnly {
        format: u32,
    }
    let FormatOnly { format } = serde_json::from_slice(line).map_err(|_| BackupError::Foreign)?;
    if format > FORMAT {
        return Err(BackupError::Newer { found: format });
    }
    serde_json::from_slice(line).map_err(|_| BackupError::Foreign)
}

fn body(key: &[u8; KEY_BYTES], entries: &[Entry]) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let fields = || entries.iter().flat_map(|entry| [entry.key.as_bytes(), &entry.value]);
    let bytes = KEY_BYTES + fields().map(|field| 4 + field.len()).sum::<usize>();
    if bytes > BYTES_MAX {
        return Err(BackupError::TooLarge { bytes });
    }
    // One allocation: a vector that grows leaves copies of the key behind.
    let mut body = Zeroizing::new(Vec::with_capacity(bytes));
    body.extend_from_slice(key);
    for field in fields() {
        let length = u32::try_from(field.len()).map_err(|_| BackupError::TooLarge { bytes })?;
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(field);
    }
    Ok(body)
}

/// The field at the start of `bytes`, and what follows it.
fn field(bytes: &[u8]) -> Result<(&[u8], &[u8]), BackupError> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(BackupError::Cut)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| BackupError::Cut)?;
    rest.split_at_checked(length).ok_or(BackupError::Cut)
}

fn hash(body: &[u8]) -> String {
    format!("{:x}", Sha256::digest(body))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn backup(entries: Vec<Entry>) -> Backup {
        let origin = Origin {
            cluster: "c1".into(),
            revision: 77,
            mesh: "0.1.0".to_owned(),
            manager: "m1".to_owned(),
            now: Timestamp::default(),
        };
        Backup::new(origin, Zeroizing::new([7; KEY_BYTES]), entries).unwrap()
    }

    pub(crate) fn some() -> Backup {
        let entry = |key: &str, value: &[u8]| Entry { key: key.to_owned(), value: value.to_vec() };
        backup(vec![entry("/mesh/v1/a", b"1"), entry("/mesh/v1/b", b"")])
    }

    proptest! {
        #[test]
        fn a_backup_reads_back(
            entries in prop::collection::vec((".{0,20}", prop::collection::vec(any::<u8>(), 0..50)), 0..20)
        ) {
            let entries = entries.into_iter().map(|(key, value)| Entry { key, value }).collect::<Vec<_>>();
            let made = backup(entries.clone());
            let read = Backup::decode(&made.encode().unwrap()).unwrap();
            prop_assert_eq!(read.entries(), entries.as_slice());
            prop_assert_eq!(read.manifest(), made.manifest());
            prop_assert_eq!(read.key(), made.key());
        }
    }

    #[test]
    fn what_was_changed_or_cut_is_refused() {
        let good = some().encode().unwrap();
        for length in 0..good.len() {
            assert!(Backup::decode(&good[..length]).is_err(), "the first {length} bytes were taken");
        }
        let begin = good.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for place in begin..good.len() {
            let mut bad = good.to_vec();
            bad[place] ^= 1;
            let read = Backup::decode(&bad);
            assert!(matches!(read, Err(BackupError::Damaged)), "byte {place} was changed: {read:?}");
        }
        assert!(matches!(Backup::decode(b"SQLite format 3\n"), Err(BackupError::Foreign)));
        let newer = br#"{"format":2,"shape":"other"}"#;
        let read = Backup::decode(&[newer.as_slice(), b"\n"].concat());
        assert!(matches!(read, Err(BackupError::Newer { found: 2 })), "{read:?}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?} {:?}", some(), some().entries());
        assert!(!shown.contains("7, 7") && shown.contains("/mesh/v1/a, 1 bytes"), "{shown}");
    }
}

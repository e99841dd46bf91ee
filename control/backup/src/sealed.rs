//! The sealed form of a backup, the only one that reaches a disk: XChaCha20-Poly1305 under a key
//! that Argon2id derives from a passphrase.
//!
//! The form is a line that names it, a line of JSON (the manifest and the cost of the derivation),
//! and the body in chunks. Each file has a salt of its own, so a key seals one file only, and a
//! chunk's nonce is its number with a mark on the last one. The hash of both lines is
//! authenticated with each chunk.
//!
//! Invariants: chunks that were swapped, dropped, added or cut, and a changed manifest, don't open;
//! the cost in a file is bounded before it is paid.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use rand::RngCore as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::content::{self, Backup, BackupError, Manifest};

/// The first line.
const MAGIC: &[u8] = b"mesh backup\n";
/// The longest header, bytes.
pub const HEADER_BYTES_MAX: usize = 64 << 10;
/// The bytes of a chunk, in clear.
const CHUNK_BYTES: usize = 64 << 10;
/// What sealing adds to a chunk, bytes.
const TAG_BYTES: usize = 16;
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 24;
/// The shortest passphrase, characters.
pub const PASSPHRASE_MIN: usize = 8;

/// What seals backups.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

impl Passphrase {
    /// The passphrase in a file: its first line.
    ///
    /// # Errors
    /// [`SealedError::ShortPassphrase`].
    pub fn of_text(text: &str) -> Result<Self, SealedError> {
        let line = text.lines().next().unwrap_or_default().trim();
        if line.chars().count() < PASSPHRASE_MIN {
            return Err(SealedError::ShortPassphrase);
        }
        Ok(Self(Zeroizing::new(line.to_owned())))
    }
}

/// What deriving a key from a passphrase costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Memory, KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
}

impl Cost {
    /// The cost of new backups: the second choice of RFC 9106, about a quarter of a second.
    pub const USUAL: Self = Self { memory_kib: 64 << 10, passes: 3 };
    /// The highest cost that is paid to open a backup.
    const MOST: Self = Self { memory_kib: 1 << 20, passes: 16 };
}

/// The second line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    manifest: Manifest,
    cost: Cost,
    /// Random bytes of this file alone, base64.
    salt: String,
}

/// Why a backup can't be sealed or opened.
#[derive(Debug, Error)]
pub enum SealedError {
    /// The bytes are no backup, or not a whole one.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// Another passphrase, or the bytes were changed.
    #[error("the backup doesn't open: the passphrase is another one, or the file was changed")]
    Refused,
    /// Anybody could guess it.
    #[error("the passphrase is shorter than {PASSPHRASE_MIN} characters: choose a longer one")]
    ShortPassphrase,
    /// Opening would take more than any backup of mesh does.
    #[error("the backup asks for {memory_kib} KiB and {passes} passes to be opened, more than mesh pays")]
    Cost {
        /// Memory, KiB.
        memory_kib: u32,
        /// Passes over the memory.
        passes: u32,
    },
    /// Argon2 refuses its parameters.
    #[error("derive a key from the passphrase: {0}")]
    Derive(argon2::Error),
    /// The cipher refuses.
    #[error("seal the backup")]
    Seal,
}

/// Seals `backup`.
///
/// # Errors
/// [`SealedError`].
pub fn seal(backup: &Backup, passphrase: &Passphrase, cost: Cost) -> Result<Vec<u8>, SealedError> {
    let mut salt = [0; SALT_BYTES];
    rand::rng().fill_bytes(&mut salt);
    let header = Header { manifest: backup.manifest().clone(), cost, salt: BASE64.encode(salt) };
    let line = serde_json::to_vec(&header).map_err(|_| SealedError::Seal)?;
    let mut sealed = [MAGIC, &line, b"\n"].concat();
    let bound = Sha256::digest(&sealed);
    let cipher = XChaCha20Poly1305::new(&Key::from(*derive(passphrase, &salt, cost)?));
    let body = backup.body()?;
    let mut chunks = body.chunks(CHUNK_BYTES).peekable();
    let mut number = 0;
    while let Some(chunk) = chunks.next() {
        let nonce = nonce(number, chunks.peek().is_none());
        let payload = Payload { msg: chunk, aad: &bound };
        sealed.extend(cipher.encrypt(&nonce, payload).map_err(|_| SealedError::Seal)?);
        number += 1;
    }
    Ok(sealed)
}

/// Opens what [`seal`] made.
///
/// # Errors
/// [`SealedError`].
pub fn open(sealed: &[u8], passphrase: &Passphrase) -> Result<Backup, SealedError> {
    if sealed.len() > 2 * content::BYTES_MAX {
        return Err(BackupError::TooLarge { bytes: sealed.len() }.into());
    }
    let (header, length) = header(sealed)?;
    let (lines, chunks) = sealed.split_at(length);
    if header.cost.memory_kib > Cost::MOST.memory_kib || header.cost.passes > Cost::MOST.passes {
        let Cost { memory_kib, passes } = header.cost;
        return Err(SealedError::Cost { memory_kib, passes });
    }
    let salt = BASE64.decode(&header.salt).map_err(|_| BackupError::Foreign)?;
    let bound = Sha256::digest(lines);
    let cipher = XChaCha20Poly1305::new(&Key::from(*derive(passphrase, &salt, header.cost)?));
    let mut body = Zeroizing::new(Vec::with_capacity(chunks.len()));
    let mut chunks = chunks.chunks(CHUNK_BYTES + TAG_BYTES).peekable();
    if chunks.peek().is_none() {
        return Err(BackupError::Cut.into());
    }
    let mut number = 0;
    while let Some(chunk) = chunks.next() {
        let nonce = nonce(number, chunks.peek().is_none());
        let payload = Payload { msg: chunk, aad: &bound };
        let opened = cipher.decrypt(&nonce, payload).map(Zeroizing::new).map_err(|_| SealedError::Refused)?;
        body.extend_from_slice(&opened);
        number += 1;
    }
    Ok(Backup::of_parts(header.manifest, &body)?)
}

/// The manifest at the start of a sealed backup. Without the passphrase nothing says that it is
/// true.
///
/// # Errors
/// [`BackupError`].
pub fn manifest(beginning: &[u8]) -> Result<Manifest, BackupError> {
    header(beginning).map(|(header, _)| header.manifest)
}

/// The header, and the bytes of both lines.
fn header(bytes: &[u8]) -> Result<(Header, usize), BackupError> {
    #[derive(Deserialize)]
    struct ManifestOnly {
        manifest: serde_json::Value,
    }
    let rest = bytes.strip_prefix(MAGIC).ok_or(BackupError::Foreign)?;
    let end = rest.iter().take(HEADER_BYTES_MAX).position(|byte| *byte == b'\n').ok_or(BackupError::Cut)?;
    let line = &rest[..end];
    let known: ManifestOnly = serde_json::from_slice(line).map_err(|_| BackupError::Foreign)?;
    // A newer form is told as such before the rest of the line must make sense.
    content::manifest(known.manifest.to_string().as_bytes())?;
    let header = serde_json::from_slice(line).map_err(|_| BackupError::Foreign)?;
    Ok((header, MAGIC.len() + end + 1))
}

fn derive(passphrase: &Passphrase, salt: &[u8], cost: Cost) -> Result<Zeroizing<[u8; 32]>, SealedError> {
    let params = Params::new(cost.memory_kib, cost.passes, 1, None).map_err(SealedError::Derive)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.0.as_bytes(), salt, key.as_mut_slice())
        .map_err(SealedError::Derive)?;
    Ok(key)
}

fn nonce(number: u64, is_last: bool) -> XNonce {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..8].copy_from_slice(&number.to_be_bytes());
    nonce[8] = u8::from(is_last);
    XNonce::from(nonce)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::content::Entry;
    use crate::content::tests::{backup, some};

    /// The least that Argon2 takes.
    pub(crate) const CHEAP: Cost = Cost { memory_kib: 8, passes: 1 };

    pub(crate) fn passphrase() -> Passphrase {
        Passphrase::of_text("correct horse\n").unwrap()
    }

    #[test]
    fn what_was_sealed_opens_with_its_passphrase_alone() {
        for bytes in [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES] {
            let made = backup(vec![Entry { key: "/mesh/v1/a".to_owned(), value: vec![9; bytes] }]);
            let sealed = seal(&made, &passphrase(), CHEAP).unwrap();
            let opened = open(&sealed, &passphrase()).unwrap();
            assert_eq!((opened.entries(), opened.key()), (made.entries(), made.key()), "{bytes} bytes");
            let other = Passphrase::of_text("correct house").unwrap();
            assert!(matches!(open(&sealed, &other), Err(SealedError::Refused)), "another passphrase");
            assert_eq!(manifest(&sealed).unwrap(), *made.manifest());
        }
        let twice = [(); 2].map(|()| seal(&some(), &passphrase(), CHEAP).unwrap());
        assert_ne!(twice[0], twice[1], "each file has its own salt");
        assert!(!twice[0].windows(4).any(|part| part == [7; 4]), "the cluster's key in clear");
    }

    #[test]
    fn no_byte_can_be_changed_and_none_may_miss() {
        let sealed = seal(&some(), &passphrase(), CHEAP).unwrap();
        for place in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[place] ^= 1;
            assert!(open(&bad, &passphrase()).is_err(), "byte {place} was changed");
            assert!(open(&sealed[..place], &passphrase()).is_err(), "cut after {place} bytes");
        }
    }

    #[test]
    fn chunks_keep_their_order_and_number() {
        let made = backup(vec![Entry { key: "/mesh/v1/a".to_owned(), value: vec![9; 3 * CHUNK_BYTES] }]);
        let sealed = seal(&made, &passphrase(), CHEAP).unwrap();
        let (_, begin) = header(&sealed).unwrap();
        let chunks: Vec<&[u8]> = sealed[begin..].chunks(CHUNK_BYTES + TAG_BYTES).collect();
        let with = |chosen: &[usize]| {
            let chosen: Vec<&[u8]> = chosen.iter().map(|number| chunks[*number]).collect();
            open(&[&sealed[..begin], &chosen.concat()].concat(), &passphrase())
        };
        assert!(with(&[0, 1, 2, 3]).is_ok());
        for bad in [&[1, 0, 2, 3][..], &[0, 1, 2], &[0, 1, 3], &[0, 1, 2, 3, 3], &[]] {
            assert!(with(bad).is_err(), "chunks {bad:?} were taken");
        }
    }

    #[test]
    fn a_file_can_not_ask_for_any_cost() {
        let sealed = seal(&some(), &passphrase(), CHEAP).unwrap();
        let text = String::from_utf8_lossy(&sealed[..200.min(sealed.len())]).into_owned();
        assert!(text.contains("\"memory_kib\":8") || sealed.len() > 200, "{text}");
        let place = sealed.windows(14).position(|part| part == b"\"memory_kib\":8").unwrap();
        let greedy = [&sealed[..place], b"\"memory_kib\":9999999", &sealed[place + 14..]].concat();
        let opened = open(&greedy, &passphrase());
        assert!(matches!(opened, Err(SealedError::Cost { memory_kib: 9_999_999, .. })), "{opened:?}");
        assert!(matches!(Passphrase::of_text("short\n"), Err(SealedError::ShortPassphrase)));
    }
}

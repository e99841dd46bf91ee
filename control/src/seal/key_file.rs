//! The key file, `DATA/key`: the cluster's key, in clear or wrapped with the unlock key.
//!
//! Invariants: only its owner can read it; it is replaced as a whole, so that a manager that is
//! killed meanwhile finds the old form or the new one.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use mesh_runtime::private_file;
use rand::RngCore as _;
use zeroize::Zeroizing;

use super::unlock_key::UnlockKey;
use super::{KEY_BYTES, SealError, Sealer};

/// The key file's name in the data directory.
pub const KEY_FILE: &str = "key";
/// The name of the file with the key of a cluster whose record may not be in etcd yet. While the
/// key file is replaced, its new contents have that name too.
pub const FRESH_KEY_FILE: &str = "key.new";
/// The beginning of a wrapped key file. With it, no wrapped key is as short as one in clear.
const WRAPPED: &[u8] = b"mesh wrapped key 1\n";
/// The purpose that the cluster's key is sealed for when it is wrapped.
const PURPOSE: &str = "the cluster's key";

/// The contents of a key file.
pub enum KeyFile {
    /// The cluster's key in clear.
    Clear(Sealer),
    /// The cluster's key, wrapped.
    Wrapped(WrappedKey),
}

/// The cluster's key, wrapped with an unlock key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey(Vec<u8>);

impl WrappedKey {
    /// The sealer with the wrapped key; `None` if it was wrapped with another unlock key.
    pub fn open(&self, key: &UnlockKey) -> Option<Sealer> {
        let opened = Sealer::new(key.bytes()).open_bytes(PURPOSE, &self.0).ok()?;
        let bytes = <[u8; KEY_BYTES]>::try_from(opened.as_slice()).ok()?;
        Some(Sealer::new(&Zeroizing::new(bytes)))
    }
}

impl KeyFile {
    /// Reads the key file at `path`; `None` if there is none. Blocks.
    ///
    /// # Errors
    /// [`SealError::KeyFile`] and [`SealError::KeyLength`].
    pub fn read(path: &Path) -> Result<Option<Self>, SealError> {
        let failed = |source| SealError::KeyFile { operation: "read", path: path.to_owned(), source };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES));
        file.read_to_end(&mut bytes).map_err(failed)?;
        if let Some(sealed) = bytes.strip_prefix(WRAPPED) {
            return Ok(Some(Self::Wrapped(WrappedKey(sealed.to_vec()))));
        }
        let key = <[u8; KEY_BYTES]>::try_from(bytes.as_slice())
            .map_err(|_| SealError::KeyLength { path: path.to_owned(), found: bytes.len() })?;
        if let Ok(metadata) = file.metadata()
            && metadata.permissions().mode() & 0o077 != 0
        {
            tracing::warn!(path = %path.display(), "others may read the key file: chmod it to 0600");
        }
        Ok(Some(Self::Clear(Sealer::new(&Zeroizing::new(key)))))
    }
}

impl Sealer {
    /// The sealer with the key file at `path`, which `unlock` opens if it is wrapped; `None` if
    /// there is no file. Blocks.
    ///
    /// # Errors
    /// As for [`KeyFile::read`]; [`SealError::Locked`] if the file is wrapped, and not with
    /// `unlock`.
    pub fn load(path: &Path, unlock: Option<&UnlockKey>) -> Result<Option<Self>, SealError> {
        match KeyFile::read(path)? {
            None => Ok(None),
            Some(KeyFile::Clear(sealer)) => Ok(Some(sealer)),
            Some(KeyFile::Wrapped(wrapped)) => {
                let sealer = unlock.and_then(|key| wrapped.open(key));
                sealer.map(Some).ok_or_else(|| SealError::Locked { path: path.to_owned() })
            }
        }
    }

    /// Makes a key and writes it to `path`, which must not exist, readable by its owner alone.
    ///
    /// # Errors
    /// [`SealError::KeyFile`].
    pub fn create(path: &Path) -> Result<Self, SealError> {
        let failed = |source| SealError::KeyFile { operation: "create", path: path.to_owned(), source };
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        rand::rng().fill_bytes(key.as_mut_slice());
        private_file::create(path, key.as_slice()).map_err(failed)?;
        Ok(Self::new(&key))
    }

    /// Replaces the key file at `path`: wrapped with `lock`, or in clear without it. Blocks.
    ///
    /// # Errors
    /// [`SealError::KeyFile`]; the old file still exists then.
    pub fn store(&self, path: &Path, lock: Option<&UnlockKey>) -> Result<(), SealError> {
        let contents = match lock {
            None => Zeroizing::new(self.key.to_vec()),
            Some(lock) => {
                let sealed = Self::new(lock.bytes()).seal_bytes(PURPOSE, self.key.as_slice())?;
                Zeroizing::new([WRAPPED, &sealed].concat())
            }
        };
        private_file::replace(path, &contents).map_err(|source| SealError::KeyFile {
            operation: "replace",
            path: path.to_owned(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_file_is_private_and_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert!(Sealer::load(&path, None).unwrap().is_none(), "no file, no sealer");
        let sealed = Sealer::create(&path).unwrap().seal("token", b"abc").unwrap();
        assert_eq!(mode(&path), 0o600, "the key file's mode");
        let loaded = Sealer::load(&path, None).unwrap().unwrap();
        assert_eq!(loaded.open("token", &sealed).unwrap().as_slice(), b"abc");
        assert!(matches!(Sealer::create(&path), Err(SealError::KeyFile { .. })), "a key was overwritten");
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(Sealer::load(&path, None), Err(SealError::KeyLength { found: 5, .. })));
    }

    #[test]
    fn a_wrapped_key_opens_with_its_unlock_key_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let sealer = Sealer::create(&path).unwrap();
        let clear = std::fs::read(&path).unwrap();
        let token = sealer.seal("token", b"abc").unwrap();
        let (first, second) = (UnlockKey::random(), UnlockKey::random());
        let opens = |unlock: Option<&UnlockKey>| {
            let loaded = Sealer::load(&path, unlock).map(Option::unwrap);
            loaded.map(|loaded| loaded.open("token", &token).unwrap().as_slice() == b"abc")
        };
        for lock in [&first, &second] {
            sealer.store(&path, Some(lock)).unwrap();
            let stored = std::fs::read(&path).unwrap();
            assert!(!stored.windows(8).any(|part| clear.windows(8).any(|key| key == part)), "in clear");
            assert_eq!(mode(&path), 0o600);
            assert!(matches!(opens(Some(lock)), Ok(true)), "its own unlock key");
            let other = if lock == &first { &second } else { &first };
            for wrong in [None, Some(other)] {
                assert!(matches!(opens(wrong), Err(SealError::Locked { .. })), "opened with {wrong:?}");
            }
        }
        sealer.store(&path, None).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), clear, "in clear again");
        assert!(matches!(opens(None), Ok(true)));
    }
}

//! The sealed data of secrets and configs.
//!
//! Invariants: stored data opens only as the object that it was stored for; decrypted bytes are
//! wiped when dropped. Data is decrypted only to be sent to a node that needs it, or, for a config,
//! to a client that asks for it; nothing decrypted is kept.
//!
//! Left to others: what a client may ask for (`api`), sending data to nodes (`node_service`).

use mesh_state::dependency::DependencyKind;
use mesh_state::ids::DependencyId;
use mesh_state::keys;
use mesh_state::store::{Store, StoreError};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::seal::{SealError, Sealer};

/// The first byte of stored data: its form. What [`Sealer::seal_bytes`] made follows. Binary, as
/// base64 in JSON would take a third more of etcd's 1.5 MB per request.
const FORM: u8 = 1;

/// Why data can't be read.
#[derive(Debug, Error)]
pub enum VaultError {
    /// The store failed; a retry may succeed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data doesn't open with this key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A later version of mesh stored it.
    #[error("{kind} {id} is stored in a newer form: upgrade this manager")]
    Newer {
        /// Secret or config.
        kind: DependencyKind,
        /// The object's id.
        id: DependencyId,
    },
}

/// The stored form of an object's data.
///
/// # Errors
/// [`SealError::Seal`]
pub fn seal(
    sealer: &Sealer,
    kind: DependencyKind,
    id: &DependencyId,
    data: &[u8],
) -> Result<Vec<u8>, SealError> {
    let bytes = sealer.seal_bytes(&purpose(kind, id), data)?;
    Ok([&[FORM], bytes.as_slice()].concat())
}

/// Reads an object's data; `None` if the object doesn't exist (any more).
///
/// # Errors
/// [`VaultError`]
pub async fn read(
    store: &dyn Store,
    sealer: &Sealer,
    kind: DependencyKind,
    id: &DependencyId,
) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
    let Some(stored) = store.get(&keys::sealed(kind, id)).await? else { return Ok(None) };
    open(sealer, kind, id, &stored.value).map(Some)
}

/// The stored form under the key of `to` of data that is stored under the key of `from`.
///
/// # Errors
/// [`VaultError::Seal`] and [`VaultError::Newer`].
pub fn seal_anew(
    from: &Sealer,
    to: &Sealer,
    kind: DependencyKind,
    id: &DependencyId,
    stored: &[u8],
) -> Result<Vec<u8>, VaultError> {
    Ok(seal(to, kind, id, &open(from, kind, id, stored)?)?)
}

fn open(
    sealer: &Sealer,
    kind: DependencyKind,
    id: &DependencyId,
    stored: &[u8],
) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    match stored.split_first() {
        Some((&FORM, bytes)) => Ok(sealer.open_bytes(&purpose(kind, id), bytes)?),
        _ => Err(VaultError::Newer { kind, id: id.clone() }),
    }
}

/// The sealing purpose: it ties the data to its object, so that no object's data can replace
/// another's.
fn purpose(kind: DependencyKind, id: &DependencyId) -> String {
    format!("{kind} {id}")
}

#[cfg(test)]
mod tests {
    use mesh_state::store::{MAX_TXN_BYTES, MemoryStore, Op};

    use super::*;
    use crate::seal::KEY_BYTES;

    #[tokio::test]
    async fn data_opens_as_its_own_object_only() {
        let store = MemoryStore::new();
        let sealer = Sealer::new(&Zeroizing::new([7; KEY_BYTES]));
        let (kind, a, b) = (DependencyKind::Secret, "a".into(), "b".into());
        let stored = seal(&sealer, kind, &a, b"value").unwrap();
        assert!(!stored.windows(5).any(|bytes| bytes == b"value"), "stored in clear");
        let put = |key: String, value: &[u8]| Op::put(key, value.to_vec());
        let newer = [9, 9];
        let ops = vec![
            put(keys::sealed(kind, &a), &stored),
            put(keys::sealed(kind, &b), &stored),
            put(keys::sealed(DependencyKind::Config, &a), &newer),
        ];
        store.txn(vec![], ops).await.unwrap();
        let opened = read(&store, &sealer, kind, &a).await.unwrap().unwrap();
        assert_eq!(opened.as_slice(), b"value");
        let swapped = read(&store, &sealer, kind, &b).await;
        assert!(matches!(swapped, Err(VaultError::Seal(SealError::Open { .. }))), "another object's data");
        let newer = read(&store, &sealer, DependencyKind::Config, &a).await;
        assert!(matches!(newer, Err(VaultError::Newer { .. })), "a newer form");
        assert!(read(&store, &sealer, kind, &"c".into()).await.unwrap().is_none(), "an object without data");
    }

    #[test]
    fn the_largest_config_fits_a_transaction_with_room_for_its_labels() {
        let data = vec![7; DependencyKind::Config.data_limit()];
        let sealer = Sealer::new(&Zeroizing::new([7; KEY_BYTES]));
        let stored = seal(&sealer, DependencyKind::Config, &"a".into(), &data).unwrap();
        assert!(stored.len() + 128 * 1024 < MAX_TXN_BYTES, "{} bytes", stored.len());
    }
}

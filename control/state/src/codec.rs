//! The stored form of objects: JSON in an envelope with a version.
//!
//! Invariant: a reader that meets a newer version fails instead of guessing.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The version that this build writes.
pub const VERSION: u32 = 1;

#[derive(Serialize)]
struct EnvelopeRef<'a, T> {
    v: u32,
    data: &'a T,
}

#[derive(Deserialize)]
struct Envelope<T> {
    v: u32,
    data: T,
}

#[derive(Deserialize)]
struct VersionOnly {
    v: u32,
}

/// Why a value could not be encoded or decoded.
#[derive(Debug, Error)]
pub enum CodecError {
    /// The value is not the expected JSON.
    #[error("decode stored value")]
    Decode(#[source] serde_json::Error),
    /// The value can't be encoded as JSON.
    #[error("encode value to store")]
    Encode(#[source] serde_json::Error),
    /// A newer version of mesh wrote it.
    #[error("stored value has version {found}, this mesh reads up to {VERSION}: upgrade this manager")]
    Newer {
        /// The version of the value.
        found: u32,
    },
}

/// Encodes `value` for the store.
///
/// # Errors
/// [`CodecError::Encode`] if `value` has no JSON form.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    serde_json::to_vec(&EnvelopeRef { v: VERSION, data: value }).map_err(CodecError::Encode)
}

/// Decodes a stored value.
///
/// # Errors
/// [`CodecError::Newer`] for a later version's value, [`CodecError::Decode`] for anything else that
/// can't be decoded.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let version: VersionOnly = serde_json::from_slice(bytes).map_err(CodecError::Decode)?;
    if version.v > VERSION {
        return Err(CodecError::Newer { found: version.v });
    }
    let envelope: Envelope<T> = serde_json::from_slice(bytes).map_err(CodecError::Decode)?;
    debug_assert_eq!(envelope.v, version.v);
    Ok(envelope.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_newer_ones_are_refused() {
        let bytes = encode(&vec![1, 2]).unwrap();
        assert_eq!(decode::<Vec<i32>>(&bytes).unwrap(), vec![1, 2]);
        assert!(matches!(decode::<Vec<i32>>(br#"{"v":2,"data":{}}"#), Err(CodecError::Newer { found: 2 })));
        assert!(matches!(decode::<Vec<i32>>(b"{"), Err(CodecError::Decode(_))));
    }
}

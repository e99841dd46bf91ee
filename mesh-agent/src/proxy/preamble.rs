//! What a node sends to another node's relay before the bytes of a session, and the relay's answer.
//!
//! The relay begins with a challenge of 16 random bytes; so connections can wait in a pool, ready
//! for use, and no preamble is valid twice. A connection whose session has ended ([`super::pipe`])
//! takes another preamble; that one answers the [`next`] challenge, which both sides can compute.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 4 | `mesh` |
//! | 4 | 1 | version, 3 |
//! | 5 | 3 | zero |
//! | 8 | 4 | backend id |
//! | 12 | 16 + 2 | the client's address (v4-mapped) and port |
//! | 30 | 16 + 2 | the address and port that the client spoke to |
//! | 48 | 16 | the challenge |
//! | 64 | 32 | HMAC-SHA256 of all before it, under the relay key |
//!
//! Numbers are in network order. Invariants: pure; no field of a preamble is used before its MAC is
//! verified.
//!
//! Left to others: whether the sender is a member, and whether the challenge is the one that was
//! sent ([`super::relay`]).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use hmac::{Hmac, Mac};
use mesh_state::ids::BackendId;
use sha2::Sha256;
use thiserror::Error;

use crate::control_link::relay_keys::RelayKey;

/// Length of a preamble in bytes.
pub const PREAMBLE_LENGTH: usize = 96;
/// Length of a challenge in bytes.
pub const CHALLENGE_LENGTH: usize = 16;

const MAGIC: &[u8; 4] = b"mesh";
const VERSION: u8 = 3;
const SIGNED_LENGTH: usize = 64;

/// Random bytes that a relay sends to each new connection; never the same twice.
pub type Challenge = [u8; CHALLENGE_LENGTH];

/// The challenge of the session that follows the one with `challenge`.
pub fn next(challenge: Challenge) -> Challenge {
    u128::from_be_bytes(challenge).wrapping_add(1).to_be_bytes()
}

/// The request to relay one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preamble {
    /// The backend to connect to.
    pub backend: BackendId,
    /// The client's address.
    pub client: SocketAddr,
    /// The published address that the client connected to.
    pub destination: SocketAddr,
    /// The challenge that the relay sent, or the next one after it.
    pub challenge: Challenge,
}

/// Why bytes are no valid preamble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PreambleError {
    /// No valid key made this MAC.
    #[error("the MAC is wrong: the sender holds none of the relay keys")]
    Forged,
    /// A member made it, but with another version of mesh.
    #[error("magic {magic:02x?}, version {version}: upgrade the older agent")]
    Version {
        /// The first four bytes.
        magic: [u8; 4],
        /// The version that the preamble says it has.
        version: u8,
    },
    /// The backend id is zero or too high.
    #[error("{0} is no backend id")]
    Backend(u32),
}

impl Preamble {
    /// The bytes of the preamble, with a MAC by `key`.
    pub fn sign(&self, key: &RelayKey) -> [u8; PREAMBLE_LENGTH] {
        let mut bytes = [0; PREAMBLE_LENGTH];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = VERSION;
        bytes[8..12].copy_from_slice(&self.backend.get().to_be_bytes());
        bytes[12..30].copy_from_slice(&write_address(self.client));
        bytes[30..48].copy_from_slice(&write_address(self.destination));
        bytes[48..64].copy_from_slice(&self.challenge);
        let mac = mac(key, &bytes[..SIGNED_LENGTH]).finalize().into_bytes();
        bytes[SIGNED_LENGTH..].copy_from_slice(&mac);
        bytes
    }

    /// Verifies and parses bytes whose MAC is by one of `keys`.
    ///
    /// # Errors
    /// See [`PreambleError`].
    pub fn verify<'a>(
        bytes: &[u8; PREAMBLE_LENGTH],
        mut keys: impl Iterator<Item = &'a RelayKey>,
    ) -> Result<Self, PreambleError> {
        let (signed, tag) = bytes.split_at(SIGNED_LENGTH);
        if !keys.any(|key| mac(key, signed).verify_slice(tag).is_ok()) {
            return Err(PreambleError::Forged);
        }
        let (magic, version) = (take(bytes, 0), bytes[4]);
        if &magic != MAGIC || version != VERSION {
            return Err(PreambleError::Version { magic, version });
        }
        let backend = u32::from_be_bytes(take(bytes, 8));
        Ok(Self {
            backend: BackendId::new(backend).ok_or(PreambleError::Backend(backend))?,
            client: read_address(bytes, 12),
            destination: read_address(bytes, 30),
            challenge: take(bytes, 48),
        })
    }
}

/// A relay's answer: one byte.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The backend is connected; the session's frames follow.
    Connected = 0,
    /// The relay refused the preamble.
    Denied = 1,
    /// This node runs no such backend.
    UnknownBackend = 2,
    /// The task refused the connection.
    Refused = 3,
    /// The task could not be reached.
    Unreachable = 4,
    /// The task did not answer in time.
    Timeout = 5,
    /// The relay is full.
    Busy = 6,
}

impl Answer {
    const ALL: [Self; 7] = [
        Self::Connected,
        Self::Denied,
        Self::UnknownBackend,
        Self::Refused,
        Self::Unreachable,
        Self::Timeout,
        Self::Busy,
    ];

    /// The byte on the wire.
    pub fn to_byte(self) -> u8 {
        self as u8
    }

    /// Parses a byte; unknown ones come from newer agents.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|answer| answer.to_byte() == byte)
    }
}

fn mac(key: &RelayKey, bytes: &[u8]) -> Hmac<Sha256> {
    // A key of 32 bytes is shorter than a block, so it is used as it is (RFC 2104, section 2).
    let mut mac = <Hmac<Sha256> as hmac::digest::KeyInit>::new(&block(key).into());
    mac.update(bytes);
    mac
}

fn block(key: &RelayKey) -> [u8; 64] {
    let mut block = [0; 64];
    block[..key.as_bytes().len()].copy_from_slice(key.as_bytes());
    block
}

fn write_address(address: SocketAddr) -> [u8; 18] {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
    bytes
}

fn read_address(bytes: &[u8; PREAMBLE_LENGTH], offset: usize) -> SocketAddr {
    let ip = Ipv6Addr::from(take::<16>(bytes, offset)).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes(take(bytes, offset + 16)))
}

fn take<const N: usize>(bytes: &[u8; PREAMBLE_LENGTH], offset: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[offset + index])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> RelayKey {
        RelayKey::from_bytes(&[byte; 32]).expect("a key")
    }

    fn preamble() -> Preamble {
        Preamble {
            backend: BackendId::new(7).expect("an id"),
            client: "10.77.0.1:40000".parse().expect("an address"),
            destination: "[2001:db8::1]:80".parse().expect("an address"),
            challenge: [9; CHALLENGE_LENGTH],
        }
    }

    #[test]
    fn a_preamble_comes_back_under_any_good_key() {
        let bytes = preamble().sign(&key(1));
        assert_eq!(Preamble::verify(&bytes, [key(2), key(1)].iter()), Ok(preamble()));
        assert_eq!(Preamble::verify(&bytes, [key(2)].iter()), Err(PreambleError::Forged));
        assert_eq!(Preamble::verify(&bytes, [].iter()), Err(PreambleError::Forged), "without a key");
    }

    #[test]
    fn no_byte_may_be_changed() {
        let good = preamble().sign(&key(1));
        for index in 0..PREAMBLE_LENGTH {
            let mut bytes = good;
            bytes[index] ^= 1;
            let seen = Preamble::verify(&bytes, [key(1)].iter());
            assert_eq!(seen, Err(PreambleError::Forged), "byte {index} was changed");
        }
    }

    #[test]
    fn other_versions_and_bad_ids_are_named() {
        let resign = |spoil: fn(&mut [u8; PREAMBLE_LENGTH])| {
            let mut bytes = preamble().sign(&key(1));
            spoil(&mut bytes);
            let tag = mac(&key(1), &bytes[..SIGNED_LENGTH]).finalize().into_bytes();
            bytes[SIGNED_LENGTH..].copy_from_slice(&tag);
            Preamble::verify(&bytes, [key(1)].iter())
        };
        let version = PreambleError::Version { magic: *MAGIC, version: 2 };
        assert_eq!(resign(|bytes| bytes[4] = 2), Err(version));
        assert_eq!(resign(|bytes| bytes[11] = 0), Err(PreambleError::Backend(0)));
    }

    #[test]
    fn no_two_sessions_have_one_challenge() {
        let first = [0xff; CHALLENGE_LENGTH];
        assert_eq!(next(first), [0; CHALLENGE_LENGTH]);
        assert_ne!(next(next(first)), next(first));
    }

    #[test]
    fn the_mac_is_plain_hmac_sha256() {
        // RFC 4231 has no case with a 32-byte key, so the oracle is the crate's own reading of a
        // short key.
        let mut oracle = Hmac::<Sha256>::new_from_slice(key(5).as_bytes()).expect("any length is good");
        oracle.update(b"text");
        assert!(mac(&key(5), b"text").verify_slice(&oracle.finalize().into_bytes()).is_ok());
    }

    #[test]
    fn answers_are_bytes() {
        for answer in Answer::ALL {
            assert_eq!(Answer::from_byte(answer.to_byte()), Some(answer));
        }
        assert_eq!(Answer::from_byte(200), None);
    }
}

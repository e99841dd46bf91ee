//! The join token, `SWMTKN-1-<digest of the CA>-<secret>`: it tells a node which CA to trust, and
//! proves to managers that the node may join.
//!
//! Invariant: pure. The secret half is never shown: [`JoinToken`]'s `Debug` leaves it out.
//!
//! Left to others: which role a secret stands for; only the control plane knows.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use thiserror::Error;

const PREFIX: &str = "SWMTKN-1-";
const DIGEST_LENGTH: usize = 64;
const SECRET_LENGTH: usize = 25;

/// A join token of valid form.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    text: String,
}

/// The token's form is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "not a join token: expected SWMTKN-1-<64 hex digits>-<25 characters>, as `docker swarm join-token worker` shows it"
)]
pub struct TokenError;

impl JoinToken {
    /// The whole token, as it is sent to a manager.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// SHA-256 of the CA certificate (DER), in lowercase hex.
    pub fn ca_digest(&self) -> &str {
        &self.text[PREFIX.len()..PREFIX.len() + DIGEST_LENGTH]
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digest, secret) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).ok_or(TokenError)?;
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let base36 = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
        let good = digest.len() == DIGEST_LENGTH
            && digest.bytes().all(hex)
            && secret.len() == SECRET_LENGTH
            && secret.bytes().all(base36);
        if good { Ok(Self { text: text.to_owned() }) } else { Err(TokenError) }
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({PREFIX}{}-…)", self.ca_digest())
    }
}

/// The digest of a certificate, as a token holds it.
pub fn certificate_digest(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate.as_ref()).iter().fold(String::with_capacity(DIGEST_LENGTH), |mut hex, byte| {
        hex.push(char::from(HEX[usize::from(byte >> 4)]));
        hex.push(char::from(HEX[usize::from(byte & 15)]));
        hex
    })
}

const HEX: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_apart_or_refused() {
        let digest = "0123456789abcdef".repeat(4);
        let secret = "abcdefghijklmnopqrstuvwx1";
        let good = format!("SWMTKN-1-{digest}-{secret}");
        let token: JoinToken = good.parse().expect("a good token");
        assert_eq!((token.as_str(), token.ca_digest()), (good.as_str(), digest.as_str()));
        assert!(!format!("{token:?}").contains(secret), "the secret shows in {token:?}");
        for bad in [
            String::new(),
            format!("SWMTKN-2-{digest}-{secret}"),
            format!("SWMTKN-1-{digest}"),
            format!("SWMTKN-1-{}-{secret}", &digest[1..]),
            format!("SWMTKN-1-{}-{secret}", digest.to_uppercase()),
            format!("SWMTKN-1-{digest}-{secret}x"),
            format!("SWMTKN-1-{digest}-{}", secret.replace('a', "A")),
        ] {
            assert_eq!(bad.parse::<JoinToken>(), Err(TokenError), "{bad} was taken");
        }
    }

    #[test]
    fn digests_are_sha256_in_lowercase_hex() {
        let digest = certificate_digest(&CertificateDer::from(b"abc".to_vec()));
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}

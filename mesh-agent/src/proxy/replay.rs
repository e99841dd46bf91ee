//! Which preambles a relay has seen: each is good once, and only for a while.
//!
//! Invariants: pure, time comes in. Memory is bounded; a full window refuses rather than forgets.

use std::collections::HashSet;

use thiserror::Error;

use super::preamble::NONCE_LENGTH;

/// A preamble is good for this long after (and, for clocks that differ, before) it was made, milliseconds.
pub const FRESH_MS: u64 = 30_000;

/// Nonces kept of each generation.
const NONCES_MAX: usize = 1 << 18;

/// A generation of nonces is kept for this long at least, milliseconds: as long as any of its preambles is good.
const GENERATION_MS: u64 = 2 * FRESH_MS;

/// Why a preamble is not good now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// Made too long ago, or in the future.
    #[error("it was made {apart_ms} ms from now by our clock: synchronise the nodes' clocks")]
    Stale {
        /// How far its time is from ours, milliseconds.
        apart_ms: u64,
    },
    /// Its nonce was used before.
    #[error("its nonce was used before")]
    Replayed,
    /// More connections than can be remembered.
    #[error("{NONCES_MAX} preambles within a minute are remembered, and no more")]
    Full,
}

/// The nonces seen lately.
#[derive(Debug, Default)]
pub struct ReplayWindow {
    current: HashSet<[u8; NONCE_LENGTH]>,
    previous: HashSet<[u8; NONCE_LENGTH]>,
    current_since_ms: u64,
}

impl ReplayWindow {
    /// Takes a preamble's nonce, once.
    ///
    /// # Errors
    /// It must not be taken; see [`ReplayError`].
    pub fn admit(
        &mut self,
        now_unix_ms: u64,
        made_unix_ms: u64,
        nonce: [u8; NONCE_LENGTH],
    ) -> Result<(), ReplayError> {
        let apart_ms = now_unix_ms.abs_diff(made_unix_ms);
        if apart_ms > FRESH_MS {
            return Err(ReplayError::Stale { apart_ms });
        }
        self.turn(now_unix_ms);
        if self.current.contains(&nonce) || self.previous.contains(&nonce) {
            return Err(ReplayError::Replayed);
        }
        if self.current.len() >= NONCES_MAX {
            return Err(ReplayError::Full);
        }
        self.current.insert(nonce);
        Ok(())
    }

    fn turn(&mut self, now_unix_ms: u64) {
        if now_unix_ms.saturating_sub(self.current_since_ms) >= GENERATION_MS {
            self.previous = std::mem::take(&mut self.current);
            self.current_since_ms = now_unix_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    #[test]
    fn a_nonce_is_good_once_while_its_preamble_is_fresh() {
        let mut window = ReplayWindow::default();
        assert_eq!(window.admit(NOW, NOW + FRESH_MS, [1; 16]), Ok(()));
        for later in [0, 1, FRESH_MS, 2 * FRESH_MS] {
            let seen = window.admit(NOW + later, NOW + FRESH_MS, [1; 16]);
            assert_eq!(seen, Err(ReplayError::Replayed), "{later} ms later");
        }
        assert_eq!(window.admit(NOW, NOW, [2; 16]), Ok(()), "another nonce");
    }

    #[test]
    fn old_and_future_preambles_are_refused() {
        let mut window = ReplayWindow::default();
        for made in [NOW - FRESH_MS - 1, NOW + FRESH_MS + 1] {
            let seen = window.admit(NOW, made, [1; 16]);
            assert_eq!(seen, Err(ReplayError::Stale { apart_ms: FRESH_MS + 1 }), "made at {made}");
        }
    }

    #[test]
    fn nonces_are_forgotten_once_no_preamble_of_theirs_is_good() {
        let mut window = ReplayWindow::default();
        for minute in 0..5 {
            let now = NOW + minute * GENERATION_MS;
            assert_eq!(window.admit(now, now, [1; 16]).is_ok(), minute % 2 == 0, "minute {minute}");
        }
        assert!(window.current.len() + window.previous.len() <= 2, "old nonces are kept");
    }
}

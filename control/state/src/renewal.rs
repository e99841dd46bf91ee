//! When a certificate is renewed: one rule for managers and agents.
//!
//! Invariant: pure.

use std::time::Duration;

use rand::{Rng as _, RngCore};

use crate::Timestamp;

/// The share of its validity, in percent, after which a certificate may be renewed …
const FIRST_PERCENT: i64 = 50;
/// … and the share by which it is attempted at the latest.
const LAST_PERCENT: i64 = 80;

/// How long ago a certificate may have expired to be renewed; after that its node must join again.
pub const GRACE: Duration = Duration::from_hours(7 * 24);

/// The moment of renewal, between half and four fifths of a certificate's validity. It is random,
/// so that nodes that joined together don't renew together.
pub fn moment(since: Timestamp, until: Timestamp, rng: &mut dyn RngCore) -> Timestamp {
    let life = (until - since).num_seconds().max(0);
    let (first, last) = (life * FIRST_PERCENT / 100, life * LAST_PERCENT / 100);
    since + chrono::Duration::seconds(rng.random_range(first..=last))
}

/// Whether a certificate that expires at `until` may still be renewed.
pub fn is_possible(until: Timestamp, now: Timestamp) -> bool {
    (now - until).to_std().is_ok_and(|past| past <= GRACE) || now <= until
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn renewal_falls_between_half_and_four_fifths_of_a_life() {
        let since = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        for days in [0, 1, 90] {
            let until = since + chrono::Duration::days(days);
            let moments: Vec<_> =
                (0..200).map(|seed| moment(since, until, &mut StdRng::seed_from_u64(seed))).collect();
            let (half, fifths) = ((until - since) / 2, (until - since) * 4 / 5);
            for moment in &moments {
                assert!((since + half..=since + fifths).contains(moment), "{moment} of {days} days");
            }
            let spread = *moments.iter().max().unwrap() - *moments.iter().min().unwrap();
            assert!(days == 0 || spread > (fifths - half) / 2, "moments of {days} days lie within {spread}");
        }
    }

    #[test]
    fn an_expired_certificate_has_a_grace() {
        let until = Timestamp::from_timestamp(1_800_000_000, 0).unwrap();
        assert!(is_possible(until, until - chrono::Duration::days(10)), "not expired");
        assert!(is_possible(until, until + chrono::Duration::days(7)), "just expired");
        assert!(!is_possible(until, until + chrono::Duration::days(8)), "expired long ago");
    }
}

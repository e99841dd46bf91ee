//! Names for services that are created without one: `<adjective>_<surname>`, as Docker's clients
//! expect.
//!
//! Invariant: a generated name is a valid service name and is not taken.

use rand::Rng;
use rand::seq::IndexedRandom;

const ADJECTIVES: [&str; 48] = [
    "agile", "amber", "bold", "brave", "bright", "brisk", "calm", "candid", "careful", "cheerful", "clear",
    "clever", "crisp", "curious", "deft", "eager", "earnest", "fair", "fervent", "frank", "gentle", "glad",
    "golden", "grand", "honest", "jolly", "keen", "kind", "lively", "lucid", "mellow", "merry", "modest",
    "neat", "nimble", "patient", "plain", "proud", "quick", "quiet", "ready", "sharp", "steady", "sunny",
    "swift", "tidy", "vivid", "warm",
];

/// Pioneers of networks, queues and distributed systems.
const SURNAMES: [&str; 48] = [
    "allen",
    "backus",
    "baran",
    "borg",
    "cerf",
    "clark",
    "cocke",
    "conway",
    "davies",
    "dijkstra",
    "erlang",
    "feinler",
    "floyd",
    "goldberg",
    "gray",
    "hamilton",
    "hamming",
    "hoare",
    "hopper",
    "jackson",
    "jacobson",
    "johnson",
    "kahn",
    "kay",
    "keller",
    "kilburn",
    "kleinrock",
    "knuth",
    "lamport",
    "liskov",
    "lovelace",
    "lynch",
    "mccarthy",
    "metcalfe",
    "milner",
    "moore",
    "perlman",
    "postel",
    "ritchie",
    "roberts",
    "shannon",
    "shaw",
    "simon",
    "sutherland",
    "tanenbaum",
    "thompson",
    "turing",
    "wilkes",
];

/// How many names are tried before a number is added.
const PLAIN_DRAWS: usize = 16;

/// A name for which `taken` is false.
pub(crate) fn generate<R: Rng + ?Sized>(rng: &mut R, taken: impl Fn(&str) -> bool) -> String {
    let mut draws = 0_usize;
    loop {
        let adjective = ADJECTIVES.choose(rng).copied().unwrap_or("plain");
        let surname = SURNAMES.choose(rng).copied().unwrap_or("shannon");
        let name = match draws.checked_sub(PLAIN_DRAWS) {
            None => format!("{adjective}_{surname}"),
            Some(number) => format!("{adjective}_{surname}{number}"),
        };
        if !taken(&name) {
            return name;
        }
        draws += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::validate;

    #[test]
    fn every_name_is_valid_and_has_two_words() {
        for adjective in ADJECTIVES {
            for surname in SURNAMES {
                let name = format!("{adjective}_{surname}");
                assert_eq!(validate::service_name(&name), Ok(()), "checking {name}");
            }
        }
    }

    #[test]
    fn a_taken_name_is_not_given_out() {
        let mut rng = rand::rng();
        let first = generate(&mut rng, |_| false);
        assert_eq!(first.split('_').count(), 2, "expected two words, saw {first}");
        let crowded = generate(&mut rng, |name| !name.ends_with(char::is_numeric));
        assert!(crowded.ends_with(char::is_numeric), "all plain names are taken, yet {crowded} was given");
    }
}

//! The limit of open files: raised as far as the system allows, and divided among listeners.
//!
//! Invariant: listeners together never use the descriptors that are reserved for the rest of the
//! daemon, so flooding one listener can't keep another one, or the store, from being served.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::figures::{Figures, Listener};

/// Raises the limit of open files to `wanted`, as far as the system allows. Returns the resulting
/// limit.
pub fn raise(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.map_or(wanted, |maximum| maximum.max(wanted));
    // Beyond the hard limit it takes a privilege.
    let raised = [hard, limit.maximum.unwrap_or(hard)].into_iter().find(|files| {
        let maximum = limit.maximum.map(|maximum| maximum.max(*files));
        setrlimit(Resource::Nofile, Rlimit { current: Some(*files), maximum }).is_ok()
    });
    raised.or(limit.current).unwrap_or(wanted)
}

/// A listener, and how many descriptors each of its connections takes.
pub type Want = (Listener, usize);

/// The descriptors that `wants` use together when all their connections are open.
pub fn needed(wants: &[Want]) -> usize {
    wants.iter().map(|(listener, each)| listener.figures().connections.saturating_mul(*each)).sum()
}

/// The limits of each of `wants` when they have `files` descriptors together: their full figures,
/// or a share of them.
pub fn share_out(files: usize, wants: &[Want]) -> Vec<Figures> {
    let needed = needed(wants).max(1);
    let scaled = |(listener, _): &Want| {
        let figures = listener.figures();
        if needed <= files {
            return figures;
        }
        figures.scaled_to(figures.connections.saturating_mul(files) / needed)
    };
    wants.iter().map(scaled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTS: [Want; 3] =
        [(Listener::Nodes, 1), (Listener::ControlSocket, 1), (Listener::ControlMetrics, 1)];

    #[test]
    fn listeners_keep_to_the_descriptors_that_there_are() {
        let whole: Vec<Figures> = WANTS.iter().map(|(listener, _)| listener.figures()).collect();
        assert_eq!(share_out(100_000, &WANTS), whole);
        for files in [256, 768, 4096] {
            let shares = share_out(files, &WANTS);
            let taken: usize = shares.iter().map(|figures| figures.connections).sum();
            assert!(taken <= files, "{taken} connections of {files} descriptors: {shares:?}");
            assert!(shares[1].connections >= files / 16, "the API has hardly any: {:?}", shares[1]);
        }
    }

    #[test]
    fn the_limit_is_raised() {
        let before = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!(raise(before.saturating_add(1)) >= before);
    }
}

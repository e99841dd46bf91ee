//! The faults, the order in which they are made, and what each may cost. Pure.

use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Something that goes wrong on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Fault {
    /// mesh-agent is killed, and started again
    AgentKilled,
    /// mesh-control is killed, and started again
    ControlKilled,
    /// etcd is killed, and started again
    EtcdKilled,
    /// The Docker engine is killed, and started again
    EngineKilled,
    /// The power is cut, and the node boots again
    NodeKilled,
    /// The node's link is cut
    NodeCutOff,
    /// The link of the leader's node is cut
    LeaderCutOff,
    /// mesh-agent is stopped by SIGSTOP
    AgentStopped,
    /// mesh-control is stopped by SIGSTOP
    ControlStopped,
    /// etcd is stopped by SIGSTOP
    EtcdStopped,
    /// The Docker engine is stopped by SIGSTOP, so that it takes calls and answers none
    EngineHung,
    /// The Docker engine gets a twentieth of a CPU
    EngineSlow,
    /// The agent's disk is full
    AgentDiskFull,
    /// etcd's disk is full
    EtcdDiskFull,
    /// The clock of agent and mesh-control jumps an hour ahead, and back
    ClockAhead,
    /// The clock of agent and mesh-control jumps an hour back, and forth
    ClockBehind,
    /// One of twenty packets from and to the node is lost
    PacketLoss,
    /// All firewall rules of the host are flushed
    FirewallFlushed,
    /// The host's settings for forwarding and reverse-path filters are reset
    SysctlsReset,
    /// The uplink is set down, and up again
    UplinkDown,
    /// The uplink loses its address, and gets it again
    AddressLost,
    /// The uplink's MTU is lowered, and raised again
    MtuChanged,
}

impl Fault {
    /// How long the fault lasts before it is undone.
    pub(super) fn lasts(self) -> Duration {
        Duration::from_secs(match self {
            Self::AddressLost => 3,
            Self::AgentKilled
            | Self::ControlKilled
            | Self::EtcdKilled
            | Self::EngineKilled
            | Self::FirewallFlushed
            | Self::SysctlsReset
            | Self::UplinkDown => 5,
            Self::MtuChanged => 10,
            // Longer than the 15 s after which a silent node is down.
            Self::NodeKilled
            | Self::NodeCutOff
            | Self::LeaderCutOff
            | Self::EngineSlow
            | Self::AgentDiskFull
            | Self::EtcdDiskFull
            | Self::ClockAhead
            | Self::ClockBehind
            | Self::PacketLoss => 20,
            Self::AgentStopped | Self::ControlStopped | Self::EtcdStopped | Self::EngineHung => 30,
        })
    }

    /// Which connections the fault may break.
    pub(crate) fn bound(self) -> Bound {
        let (own, others) = match self {
            // Two seconds until a silent node's backends leave the selection, and as long again
            // for a handshake that was under way.
            Self::NodeKilled
            | Self::NodeCutOff
            | Self::LeaderCutOff
            | Self::UplinkDown
            | Self::AddressLost => {
                (Allowed::UntilHealed(Duration::from_secs(5)), Allowed::First(Duration::from_secs(5)))
            }
            // Nobody can tell the node that a task is gone. Managers wait for the node before they
            // let a task stop, until it is down.
            Self::AgentStopped => (Allowed::OnceDown(Duration::from_secs(5)), Allowed::Nothing),
            // The agent restores a setting within a second of its reset.
            Self::SysctlsReset => {
                (Allowed::First(Duration::from_secs(2)), Allowed::First(Duration::from_secs(2)))
            }
            _ => (Allowed::Nothing, Allowed::Nothing),
        };
        Bound { own, others }
    }

    /// Which connections that were open before it the fault may break.
    pub(super) fn severs(self) -> Severed {
        match self {
            Self::NodeKilled
            | Self::NodeCutOff
            | Self::LeaderCutOff
            | Self::UplinkDown
            | Self::AddressLost => Severed::ThroughIt,
            // The node is down for managers, so its tasks are replaced; once it is back, they have
            // the drain's 30 s.
            Self::AgentStopped | Self::EngineHung => Severed::ToItsTasks,
            _ => Severed::None,
        }
    }
}

/// Which connections that were open before a fault it may break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severed {
    /// The fault leaves every connection its path.
    None,
    /// Those to tasks on the faulty node.
    ToItsTasks,
    /// Those to tasks on the faulty node, and those to its own address.
    ThroughIt,
}

/// The connections that a fault may break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    /// Those to the faulty node's own address.
    pub(crate) own: Allowed,
    /// Those to the addresses of the other nodes.
    pub(crate) others: Allowed,
}

/// When connections that are opened may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// At no time.
    Nothing,
    /// From the fault's begin on, for this long.
    First(Duration),
    /// From the fault's begin until this long after it was undone.
    UntilHealed(Duration),
    /// From when managers take the node for down until this long after the fault was undone.
    OnceDown(Duration),
}

/// When a fault began and was undone, since the load began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) begun: Duration,
    pub(crate) healed: Duration,
}

/// A node is down for managers after this long without a heartbeat.
const DOWN: Duration = Duration::from_secs(15);
/// A request that is under way when the fault begins may be broken too.
const UNDER_WAY: Duration = Duration::from_secs(1);

impl Allowed {
    /// Whether a connection that was opened at this moment may have failed.
    pub(crate) fn covers(self, opened: Duration, span: Span) -> bool {
        let (from, until) = match self {
            Self::Nothing => return false,
            Self::First(after) => (span.begun, span.begun + after),
            Self::UntilHealed(after) => (span.begun, span.healed + after),
            Self::OnceDown(after) => (span.begun + DOWN, span.healed + after),
        };
        opened + UNDER_WAY >= from && opened <= until
    }
}

/// A fault and the node that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Round {
    pub(super) fault: Fault,
    /// The node's index in the lab.
    pub(super) node: usize,
}

/// The rounds of a seed: the same seed gives the same rounds. Every fault comes once before any
/// comes again, in an order of the seed's, each on a node of the seed's.
pub(super) fn plan(seed: u64, rounds: usize, nodes: usize, only: &[Fault]) -> Vec<Round> {
    let mut random = StdRng::seed_from_u64(seed);
    let known = if only.is_empty() { Fault::value_variants() } else { only };
    let mut planned = Vec::with_capacity(rounds);
    while planned.len() < rounds {
        let mut deck = known.to_vec();
        deck.shuffle(&mut random);
        planned.extend(deck.into_iter().map(|fault| Round { fault, node: random.random_range(0..nodes) }));
    }
    planned.truncate(rounds);
    planned
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_seed_is_replayed_and_every_fault_comes_in_turn() {
        let faults = Fault::value_variants().len();
        let rounds = plan(7, 2 * faults, 3, &[]);
        assert_eq!(rounds, plan(7, 2 * faults, 3, &[]), "the same seed twice");
        assert_ne!(rounds, plan(8, 2 * faults, 3, &[]), "another seed");
        for half in rounds.chunks(faults) {
            let mut seen: Vec<Fault> = half.iter().map(|round| round.fault).collect();
            seen.sort_unstable();
            assert_eq!(seen, Fault::value_variants(), "each fault once in {half:?}");
        }
        assert!(rounds.iter().all(|round| round.node < 3), "nodes of {rounds:?}");
    }

    #[test]
    fn only_the_named_faults_are_made() {
        let rounds = plan(1, 5, 3, &[Fault::MtuChanged]);
        assert_eq!(rounds.len(), 5);
        assert!(rounds.iter().all(|round| round.fault == Fault::MtuChanged), "{rounds:?}");
    }

    #[test]
    fn failures_are_allowed_within_their_time_alone() {
        let span = Span { begun: seconds(10), healed: seconds(30) };
        let first = Allowed::First(seconds(5));
        let healed = Allowed::UntilHealed(seconds(5));
        let down = Allowed::OnceDown(seconds(5));
        for (allowed, opened, expected) in [
            (Allowed::Nothing, 12, false),
            (first, 8, false),
            (first, 9, true),
            (first, 15, true),
            (first, 16, false),
            (healed, 8, false),
            (healed, 35, true),
            (healed, 36, false),
            (down, 23, false),
            (down, 25, true),
            (down, 36, false),
        ] {
            assert_eq!(allowed.covers(seconds(opened), span), expected, "{allowed:?} at {opened} s");
        }
    }
}

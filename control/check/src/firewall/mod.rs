//! Judges whether a firewall lets other nodes reach a port of this node. Pure.
//!
//! Invariant: what can't be judged counts in the node's favour. A rule with a condition that this
//! module doesn't know may accept the packet, but never drops it; so a finding is always true, and
//! some blocks are not found.
//!
//! Left to others: forwarded packets (the agent watches the engine's chains and says so on
//! `/readyz`), and what the agent itself puts into nftables.

mod iptables;
mod nft;

pub use iptables::parse as parse_iptables;
pub use nft::parse as parse_nft;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::facts::Transport;

/// The deepest nesting of chains that is followed; the kernel allows 16.
const DEPTH_MAX: usize = 16;

/// The rules of one table of one program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// As in `nft table inet filter` or `iptables`.
    pub title: String,
    /// The chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A list of rules that packets go through in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// Whether packets for this machine itself begin here.
    pub is_input: bool,
    /// Whether a packet that no rule judges is dropped.
    pub drops_the_rest: bool,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A rule: what it does with packets that meet all conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What a packet must meet, all of it.
    pub conditions: Vec<Condition>,
    /// What it does.
    pub action: Action,
    /// The rule as its program shows it, shortened.
    pub text: String,
}

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The packet has this protocol.
    Transport(Transport),
    /// Its destination port is one of these.
    Ports(Vec<RangeInclusive<u16>>),
    /// It belongs to no new connection.
    KnownConnection,
    /// It comes from this machine.
    Loopback,
    /// A match that no packet meets.
    Never,
    /// Something that this module doesn't know.
    Unknown,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Lets the packet through.
    Accept,
    /// Drops or rejects it.
    Drop,
    /// Goes on in another chain, and comes back if that one doesn't judge.
    Jump(String),
    /// Goes on in another chain for good.
    Goto(String),
    /// Goes back to the chain that jumped here.
    Return,
    /// Counts, logs or marks, and goes on.
    Nothing,
    /// Something that this module doesn't know.
    Unknown,
}

/// The first packet of a connection from another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The protocol that it comes by.
    pub transport: Transport,
    /// Its destination port.
    pub port: u16,
}

/// Whether a condition or a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applies {
    Yes,
    No,
    Perhaps,
}

/// How the way through a chain ends.
enum Fate {
    Accepted,
    Dropped(String),
    /// No rule judged it.
    Unjudged,
}

impl Ruleset {
    /// What drops `packet`, if something surely does.
    pub fn blocks(&self, packet: Packet) -> Option<String> {
        self.chains.iter().filter(|(_, chain)| chain.is_input).find_map(|(name, chain)| {
            // Once a rule may have accepted the packet, nothing later surely drops it.
            let mut may_be_accepted = false;
            match self.walk(name, packet, 0, &mut may_be_accepted) {
                Fate::Dropped(rule) if !may_be_accepted => {
                    Some(format!("{} drops it in chain {name}: {rule}", self.title))
                }
                Fate::Unjudged if chain.drops_the_rest && !may_be_accepted => {
                    Some(format!("{} drops what no rule of chain {name} accepts", self.title))
                }
                _ => None,
            }
        })
    }

    fn walk(&self, name: &str, packet: Packet, depth: usize, may_be_accepted: &mut bool) -> Fate {
        let Some(chain) = self.chains.get(name).filter(|_| depth < DEPTH_MAX) else {
            *may_be_accepted = true;
            return Fate::Unjudged;
        };
        for rule in &chain.rules {
            match (rule.applies(packet), &rule.action) {
                (Applies::No, _) | (_, Action::Nothing) | (Applies::Perhaps, Action::Drop) => {}
                (Applies::Yes, Action::Accept) => return Fate::Accepted,
                (Applies::Yes, Action::Drop) => return Fate::Dropped(rule.text.clone()),
                (Applies::Yes, Action::Return) => return Fate::Unjudged,
                (Applies::Yes, Action::Goto(target)) => {
                    return self.walk(target, packet, depth + 1, may_be_accepted);
                }
                (Applies::Yes, Action::Jump(target)) => {
                    match self.walk(target, packet, depth + 1, may_be_accepted) {
                        Fate::Unjudged => {}
                        judged => return judged,
                    }
                }
                // A return may skip what drops, as a jump may lead to what accepts.
                (Applies::Perhaps, _) | (_, Action::Unknown) => *may_be_accepted = true,
            }
        }
        Fate::Unjudged
    }
}

impl Rule {
    fn applies(&self, packet: Packet) -> Applies {
        let mut applies = Applies::Yes;
        for condition in &self.conditions {
            match condition.holds(packet) {
                Applies::No => return Applies::No,
                Applies::Perhaps => applies = Applies::Perhaps,
                Applies::Yes => {}
            }
        }
        applies
    }
}

impl Condition {
    fn holds(&self, packet: Packet) -> Applies {
        let holds = match self {
            Self::Transport(transport) => *transport == packet.transport,
            Self::Ports(ranges) => ranges.iter().any(|range| range.contains(&packet.port)),
            Self::KnownConnection | Self::Loopback | Self::Never => false,
            Self::Unknown => return Applies::Perhaps,
        };
        if holds { Applies::Yes } else { Applies::No }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNNEL: Packet = Packet { transport: Transport::Udp, port: 4799 };

    fn rule(conditions: Vec<Condition>, action: Action) -> Rule {
        Rule { conditions, action, text: "a rule".to_owned() }
    }

    fn ruleset(drops_the_rest: bool, rules: Vec<Rule>, inner: Vec<Rule>) -> Ruleset {
        let input = Chain { is_input: true, drops_the_rest, rules };
        let inner = Chain { rules: inner, ..Chain::default() };
        let chains = [("INPUT".to_owned(), input), ("inner".to_owned(), inner)].into();
        Ruleset { title: "iptables".to_owned(), chains }
    }

    #[test]
    fn only_what_surely_drops_blocks() {
        let udp = || Condition::Transport(Transport::Udp);
        let port = || Condition::Ports(vec![4799..=4799]);
        let jump = || Action::Jump("inner".to_owned());
        for (what, drops_the_rest, rules, inner, blocked) in [
            ("no rules", false, vec![], vec![], false),
            ("the policy", true, vec![], vec![], true),
            ("a drop", false, vec![rule(vec![udp(), port()], Action::Drop)], vec![], true),
            (
                "another port",
                false,
                vec![rule(vec![Condition::Ports(vec![1..=99])], Action::Drop)],
                vec![],
                false,
            ),
            ("an accept before the policy", true, vec![rule(vec![port()], Action::Accept)], vec![], false),
            (
                "known connections",
                true,
                vec![rule(vec![Condition::KnownConnection], Action::Accept)],
                vec![],
                true,
            ),
            ("loopback", true, vec![rule(vec![Condition::Loopback], Action::Accept)], vec![], true),
            ("perhaps accepted", true, vec![rule(vec![Condition::Unknown], Action::Accept)], vec![], false),
            ("perhaps dropped", false, vec![rule(vec![Condition::Unknown], Action::Drop)], vec![], false),
            (
                "accepted by a jump",
                true,
                vec![rule(vec![], jump())],
                vec![rule(vec![udp()], Action::Accept)],
                false,
            ),
            ("dropped by a jump", false, vec![rule(vec![], jump())], vec![rule(vec![], Action::Drop)], true),
            ("returned", true, vec![rule(vec![], jump())], vec![rule(vec![], Action::Return)], true),
            (
                "gone for good",
                false,
                vec![rule(vec![], Action::Goto("inner".to_owned())), rule(vec![], Action::Drop)],
                vec![],
                false,
            ),
            ("an unknown action", true, vec![rule(vec![], Action::Unknown)], vec![], false),
            ("an unknown chain", true, vec![rule(vec![], Action::Jump("absent".to_owned()))], vec![], false),
        ] {
            let seen = ruleset(drops_the_rest, rules, inner).blocks(TUNNEL);
            assert_eq!(seen.is_some(), blocked, "{what}: {seen:?}");
        }
    }

    #[test]
    fn a_chain_that_jumps_to_itself_ends() {
        let itself = rule(vec![], Action::Jump("inner".to_owned()));
        let seen = ruleset(true, vec![itself.clone()], vec![itself]).blocks(TUNNEL);
        assert_eq!(seen, None);
    }
}

//! Plans the entries of member nodes: which nodes may send through the tunnel, the conditions on
//! their packets, and the cookies of this node's packets.
//!
//! Invariants: the conditions on a node's packets are written before its packets are accepted, and
//! removed after; a cookie is demanded only while managers say that all members send them, and sent
//! only to nodes that accept them.

use std::collections::{BTreeMap, BTreeSet};

use mesh_ebpf::abi::{Address, Member, Node, member_flag, names, node_flag};

use super::{Plan, Refusal};
use crate::control_link::member_keys::TunnelKey;
use crate::datapath::contents::{Contents, Write};
use crate::datapath::facts::Facts;
use crate::datapath::index::assign;
use crate::view::{NodeView, PeerNode};

impl Plan {
    /// Plans the other member nodes, and the conditions on the packets of each. Returns their
    /// indexes.
    pub(super) fn nodes(
        &mut self,
        contents: &Contents,
        view: &NodeView,
        facts: &Facts,
    ) -> BTreeMap<Address, u32> {
        let others: BTreeMap<Address, &PeerNode> = view
            .nodes
            .values()
            .map(|node| (Address::from(node.address), node))
            .filter(|(address, _)| *address != facts.config.address)
            .collect();
        let (numbers, refused) =
            assign(&contents.peers, others.keys().copied(), &BTreeSet::new(), 1..names::NODES_MAX);
        self.refused.extend(refused.into_iter().map(Refusal::Node));
        let keys = view.member_keys.tunnel_keys();
        for (address, index) in &numbers {
            let Some(peer) = others.get(address) else { continue };
            let hop = facts.hops.get(address).copied().unwrap_or_default();
            let node = Node {
                address: *address,
                mac: hop.mac,
                source_mac: hop.source_mac,
                ifindex: hop.ifindex,
                flags: if peer.encryption.is_some() { node_flag::ENCRYPTS } else { 0 },
                cookie: sent(&keys, facts, peer),
            };
            if contents.nodes.get(index) != Some(&node) {
                self.writes.push(Write::Node(*index, node));
            }
            self.member(contents, *index, demanded(&keys, view, facts, peer));
        }
        let new = numbers.iter().filter(|(address, index)| contents.peers.get(address) != Some(index));
        self.writes.extend(new.map(|(address, index)| Write::Peer(*address, *index)));
        numbers
    }

    /// Removes nodes that are members no more.
    pub(super) fn part_from(&mut self, contents: &Contents, nodes: &BTreeMap<Address, u32>) {
        for address in contents.peers.keys().filter(|address| !nodes.contains_key(address)) {
            self.writes.push(Write::RemovePeer(*address));
        }
        let named: BTreeSet<u32> = nodes.values().copied().chain([0]).collect();
        let is_gone = |index: &&u32| !named.contains(index);
        let nodes = contents.nodes.keys().filter(is_gone);
        self.writes.extend(nodes.map(|index| Write::Node(*index, Node::default())));
        let members = contents.members.keys().filter(is_gone);
        self.writes.extend(members.map(|index| Write::Member(*index, Member::default())));
    }

    fn member(&mut self, contents: &Contents, index: u32, member: Member) {
        // An entry that was never written demands nothing.
        if contents.members.get(&index).copied().unwrap_or_default() != member {
            self.writes.push(Write::Member(index, member));
        }
    }
}

/// The cookie in this node's packets to a peer; 0 for none.
fn sent(keys: &[TunnelKey], facts: &Facts, peer: &PeerNode) -> u32 {
    let key = keys.first().filter(|_| peer.takes_cookies);
    key.map_or(0, |key| key.cookie(facts.config.address.v4_octets(), peer.address.octets()))
}

/// The conditions on a peer's packets to this node.
fn demanded(keys: &[TunnelKey], view: &NodeView, facts: &Facts, peer: &PeerNode) -> Member {
    let cookie = |key: &TunnelKey| key.cookie(peer.address.octets(), facts.config.address.v4_octets());
    let Some(current) = keys.first().map(cookie) else { return Member::default() };
    let accepted = [current, keys.get(1).map_or(current, cookie)];
    Member { accepted, flags: if view.member_keys.demand_cookies() { member_flag::COOKIE } else { 0 } }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mesh_ebpf::abi::Config;

    use super::*;
    use crate::control_link::member_keys::MemberKeys;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);

    fn facts(own: Ipv4Addr) -> Facts {
        Facts { config: Config { address: own.into(), ..Config::default() }, ..Facts::default() }
    }

    fn view(own: Ipv4Addr, keys: &[u8], is_demanded: bool) -> NodeView {
        let mut view = NodeView::new(own.to_string().as_str().into(), own);
        if !keys.is_empty() {
            let secrets: Vec<Vec<u8>> = keys.iter().map(|byte| vec![*byte; 32]).collect();
            view.member_keys = MemberKeys::new(&secrets, is_demanded).expect("keys");
        }
        for address in [OWN, PEER] {
            let id = mesh_state::ids::NodeId::from(address.to_string());
            let node = PeerNode {
                id: id.clone(),
                address,
                hostname: String::new(),
                subnet: None,
                in_userspace: false,
                takes_cookies: true,
                encryption: None,
            };
            view.nodes.insert(id, node);
        }
        view
    }

    fn planned(own: Ipv4Addr, keys: &[u8], is_demanded: bool) -> Contents {
        let (mut plan, mut contents) = (Plan::default(), Contents::default());
        plan.nodes(&contents, &view(own, keys, is_demanded), &facts(own));
        plan.writes.iter().for_each(|write| contents.apply(write));
        contents
    }

    /// Whether the node with `receives` accepts what the one with `sends` sends, if both know
    /// whether cookies are demanded.
    fn is_taken(sends: &[u8], receives: &[u8], is_demanded: bool) -> bool {
        let sender = planned(OWN, sends, is_demanded);
        let peer = planned(PEER, receives, is_demanded);
        let member = peer.members.get(&1).copied().unwrap_or_default();
        member.admits(sender.nodes[&1].cookie)
    }

    #[test]
    fn each_step_of_a_change_of_keys_is_understood_by_nodes_that_are_a_step_behind() {
        let steps: [(&[u8], bool); 7] = [
            (&[], false),
            (&[1], false),
            (&[1], true),
            (&[1, 2], true),
            (&[2, 1], true),
            (&[2], true),
            (&[2, 3], true),
        ];
        for ((early, was_demanded), (late, is_demanded)) in steps.iter().zip(&steps[1..]) {
            assert!(is_taken(early, late, *is_demanded), "{early:?} -> {late:?}");
            assert!(is_taken(late, early, *was_demanded), "{late:?} -> {early:?}");
        }
        assert!(!is_taken(&[1], &[2], true), "a key that nobody has any more");
        assert!(!is_taken(&[], &[2], true), "none");
        assert!(is_taken(&[], &[2], false), "none, while none is demanded");
    }

    #[test]
    fn a_node_that_takes_none_is_sent_none() {
        let mut view = view(OWN, &[1], false);
        view.nodes.values_mut().for_each(|node| node.takes_cookies = false);
        let (mut plan, mut contents) = (Plan::default(), Contents::default());
        plan.nodes(&contents, &view, &facts(OWN));
        plan.writes.iter().for_each(|write| contents.apply(write));
        assert_eq!(contents.nodes[&1].cookie, 0);
    }

    #[test]
    fn what_is_demanded_is_there_before_the_peer_and_goes_after_it() {
        let mut plan = Plan::default();
        plan.nodes(&Contents::default(), &view(OWN, &[1], true), &facts(OWN));
        let at =
            |plan: &Plan, is_it: fn(&Write) -> bool| plan.writes.iter().position(is_it).expect("a write");
        let demanded = at(&plan, |write| matches!(write, Write::Member(1, _)));
        assert!(demanded < at(&plan, |write| matches!(write, Write::Peer(..))), "{:?}", plan.writes);
        let mut left = Plan::default();
        left.part_from(&planned(OWN, &[1], true), &BTreeMap::new());
        let removed = at(&left, |write| matches!(write, Write::RemovePeer(_)));
        assert!(removed < at(&left, |write| matches!(write, Write::Member(1, _))), "{:?}", left.writes);
    }
}

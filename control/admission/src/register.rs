//! The connections of one listener, and the decision about each new one. Pure: the time is an
//! argument.
//!
//! Invariants: the caps of [`Figures`] hold at every moment; a connection with a request in service
//! is never evicted; of those that wait, the one that has waited longest is evicted first. Each
//! decision is O(log n).

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use crate::figures::Figures;
use crate::refusals::Reason;

/// The id of an open connection.
pub type Id = u64;

/// A client, as far as addresses identify one: an IPv4 address, or the /64 of an IPv6 one, as a
/// client has plenty of those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer(IpAddr);

impl Peer {
    /// The client behind an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => Self(IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64))),
            v4 @ IpAddr::V4(_) => Self(v4),
        }
    }
}

/// The decision about a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is served; `evicted` is closed to make room for it.
    Admitted {
        /// The new connection.
        id: Id,
        /// A connection that waited.
        evicted: Option<Id>,
    },
    /// The newcomer gets no place, for this reason.
    Refused(Reason),
}

/// The kind of a call in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// The cluster answers it at once.
    Short,
    /// It may wait for something else, such as the engine.
    Slow,
    /// Its answer has no end.
    Stream,
}

#[derive(Debug)]
struct Open {
    address: Option<SocketAddr>,
    waiting_since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Counts {
    open: usize,
    waiting: BTreeSet<(Instant, Id)>,
}

/// The connections of one listener.
#[derive(Debug)]
pub struct Register {
    figures: Figures,
    next: Id,
    open: HashMap<Id, Open>,
    by_address: HashMap<SocketAddr, Id>,
    peers: HashMap<Peer, Counts>,
    waiting: BTreeSet<(Instant, Id)>,
    streams: usize,
    slow: usize,
}

impl Register {
    /// A register without connections.
    pub fn new(figures: Figures) -> Self {
        Self {
            figures,
            next: 0,
            open: HashMap::new(),
            by_address: HashMap::new(),
            peers: HashMap::new(),
            waiting: BTreeSet::new(),
            streams: 0,
            slow: 0,
        }
    }

    /// Decides about a new connection of `address`; an admitted one waits from now on.
    pub fn admit(&mut self, address: Option<SocketAddr>, now: Instant) -> Decision {
        let evicted = match self.crowded(address) {
            None => None,
            Some((reason, oldest)) => match oldest {
                Some((since, id)) if now.saturating_duration_since(since) >= self.figures.evictable_after => {
                    Some(id)
                }
                _ => return Decision::Refused(reason),
            },
        };
        if let Some(id) = evicted {
            self.leave(id);
        }
        let id = self.next;
        self.next += 1;
        self.open.insert(id, Open { address, waiting_since: None });
        if let Some(address) = address {
            self.by_address.insert(address, id);
            self.peers.entry(Peer::of(address.ip())).or_default().open += 1;
        }
        self.wait(id, now);
        Decision::Admitted { id, evicted }
    }

    /// The cap that is reached for a connection of `address`, and the connection under that cap
    /// that has waited longest.
    fn crowded(&self, address: Option<SocketAddr>) -> Option<(Reason, Option<(Instant, Id)>)> {
        let counts = address.and_then(|address| self.peers.get(&Peer::of(address.ip())));
        if let Some(counts) = counts
            && (counts.open >= self.figures.per_peer || counts.waiting.len() >= self.figures.waiting_per_peer)
        {
            return Some((Reason::PeerConnections, counts.waiting.first().copied()));
        }
        let full = self.open.len() >= self.figures.connections || self.waiting.len() >= self.figures.waiting;
        full.then(|| (Reason::Connections, self.waiting.first().copied()))
    }

    /// Notes that the connection has nothing in service any more.
    pub fn wait(&mut self, id: Id, now: Instant) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let before = open.waiting_since.replace(now);
        let address = open.address;
        self.unqueue(id, address, before);
        self.waiting.insert((now, id));
        if let Some(counts) = address.and_then(|address| self.peers.get_mut(&Peer::of(address.ip()))) {
            counts.waiting.insert((now, id));
        }
    }

    /// Notes that the connection has a request in service, or has proven its membership: it can't
    /// be evicted any more. `false` if it is gone.
    pub fn busy(&mut self, id: Id) -> bool {
        let Some(open) = self.open.get_mut(&id) else { return false };
        let (since, address) = (open.waiting_since.take(), open.address);
        self.unqueue(id, address, since);
        true
    }

    /// As [`Register::busy`], for the connection of `address`; returns its id.
    pub fn busy_at(&mut self, address: SocketAddr) -> Option<Id> {
        self.by_address.get(&address).copied().filter(|id| self.busy(*id))
    }

    /// Since when the connection waits; `None` if it doesn't.
    pub fn waiting_since(&self, id: Id) -> Option<Instant> {
        self.open.get(&id)?.waiting_since
    }

    /// Notes that the connection is closed.
    pub fn leave(&mut self, id: Id) {
        let Some(open) = self.open.remove(&id) else { return };
        self.unqueue(id, open.address, open.waiting_since);
        let Some(address) = open.address else { return };
        if self.by_address.get(&address) == Some(&id) {
            self.by_address.remove(&address);
        }
        let peer = Peer::of(address.ip());
        if let Some(counts) = self.peers.get_mut(&peer) {
            counts.open -= 1;
            if counts.open == 0 {
                self.peers.remove(&peer);
            }
        }
    }

    fn unqueue(&mut self, id: Id, address: Option<SocketAddr>, since: Option<Instant>) {
        let Some(since) = since else { return };
        self.waiting.remove(&(since, id));
        if let Some(counts) = address.and_then(|address| self.peers.get_mut(&Peer::of(address.ip()))) {
            counts.waiting.remove(&(since, id));
        }
    }

    /// Takes a call into service.
    ///
    /// # Errors
    /// Too many of its kind are in service.
    pub fn begin(&mut self, call: Call) -> Result<(), Reason> {
        if call == Call::Short {
            return Ok(());
        }
        if call == Call::Stream && self.streams >= self.figures.streams {
            return Err(Reason::Streams);
        }
        if self.slow >= self.figures.slow_calls {
            return Err(Reason::SlowCalls);
        }
        self.slow += 1;
        self.streams += usize::from(call == Call::Stream);
        Ok(())
    }

    /// Notes that a call has ended.
    pub fn end(&mut self, call: Call) {
        self.slow -= usize::from(call != Call::Short);
        self.streams -= usize::from(call == Call::Stream);
    }

    /// The number of open connections.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::figures::Listener;

    fn figures() -> Figures {
        Figures {
            evictable_after: Duration::from_secs(1),
            connections: 8,
            waiting: 6,
            per_peer: 4,
            waiting_per_peer: 3,
            streams: 2,
            slow_calls: 4,
            ..Listener::Nodes.figures()
        }
    }

    fn at(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    #[track_caller]
    fn admitted(decision: Decision) -> (Id, Option<Id>) {
        match decision {
            Decision::Admitted { id, evicted } => (id, evicted),
            Decision::Refused(reason) => panic!("expected room, saw {reason:?}"),
        }
    }

    #[test]
    fn one_address_takes_no_more_than_its_share() {
        let (mut register, now) = (Register::new(figures()), Instant::now());
        let first = admitted(register.admit(Some(at(1, 1)), now)).0;
        for port in 2..4 {
            admitted(register.admit(Some(at(1, port)), now));
        }
        assert_eq!(register.admit(Some(at(1, 4)), now), Decision::Refused(Reason::PeerConnections));
        admitted(register.admit(Some(at(2, 1)), now));
        let later = now + figures().evictable_after;
        assert_eq!(
            admitted(register.admit(Some(at(1, 5)), later)).1,
            Some(first),
            "the address's oldest connection makes room"
        );
    }

    #[test]
    fn a_connection_with_a_request_in_service_is_never_evicted() {
        let (mut register, now) = (Register::new(figures()), Instant::now());
        for host in 1..=8 {
            let (id, evicted) = admitted(register.admit(Some(at(host, 1)), now));
            assert_eq!(evicted, None);
            assert!(register.busy(id));
        }
        let later = now + Duration::from_mins(1);
        assert_eq!(register.admit(Some(at(9, 1)), later), Decision::Refused(Reason::Connections));
        assert_eq!(register.busy_at(at(3, 1)), Some(2), "a member's connection is found by its address");
        register.wait(4, later);
        assert_eq!(
            register.admit(Some(at(9, 1)), later),
            Decision::Refused(Reason::Connections),
            "a young connection may still send its request"
        );
        let decision = register.admit(Some(at(9, 1)), later + figures().evictable_after);
        assert_eq!(admitted(decision).1, Some(4));
        assert!(!register.busy(4), "the connection is gone");
    }

    #[test]
    fn endless_calls_leave_room_for_others() {
        let mut register = Register::new(figures());
        assert_eq!([(); 2].map(|()| register.begin(Call::Stream)), [Ok(()); 2]);
        assert_eq!(register.begin(Call::Stream), Err(Reason::Streams));
        assert_eq!([(); 2].map(|()| register.begin(Call::Slow)), [Ok(()); 2]);
        assert_eq!(register.begin(Call::Slow), Err(Reason::SlowCalls));
        assert_eq!([(); 9].map(|()| register.begin(Call::Short)), [Ok(()); 9]);
        register.end(Call::Stream);
        assert_eq!(register.begin(Call::Stream), Ok(()), "a stream has ended");
    }

    #[test]
    fn an_ipv6_network_is_one_peer() {
        let peer = |text: &str| Peer::of(text.parse().unwrap());
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
    }

    proptest! {
        /// Whatever comes in whatever order, the caps hold and the counts are right.
        #[test]
        fn caps_hold(steps in prop::collection::vec((0_u8..4, 0_u8..5, 0_u64..3000), 1..200)) {
            let (mut register, mut now, mut port) = (Register::new(figures()), Instant::now(), 1);
            for (step, pick, pause) in steps {
                now += Duration::from_millis(pause);
                let chosen = register.open.keys().copied().min().map(|id| id + u64::from(pick));
                match (step, chosen) {
                    (0 | 1, _) => { port += 1; register.admit(Some(at(pick, port)), now); }
                    (2, Some(id)) => { register.busy(id); }
                    (3, Some(id)) if pick % 2 == 0 => register.leave(id),
                    (3, Some(id)) => register.wait(id, now),
                    _ => {}
                }
                prop_assert!(register.open.len() <= 8);
                let waiting = register.open.values().filter(|open| open.waiting_since.is_some()).count();
                prop_assert_eq!(register.waiting.len(), waiting);
                for counts in register.peers.values() {
                    prop_assert!(counts.open >= 1 && counts.open <= 4);
                    prop_assert!(counts.waiting.len() <= counts.open);
                }
                let open: usize = register.peers.values().map(|counts| counts.open).sum();
                prop_assert_eq!(open, register.open.len());
            }
        }
    }
}

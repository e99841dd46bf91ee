//! What happens to a packet: the pipeline decides, the hook's program carries it out.

use crate::abi::{DropReason, Edge};
use crate::parse::vxlan::Vni;

/// What happens to a packet, as an enum for tests and for the programs' last step. The pipeline
/// carries it as [`Fate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on to the next program of the hook, then to the host stack.
    Pass,
    /// The packet is dropped; the drop is counted already.
    Drop(DropReason),
    /// The sender is to get a RST or ICMP error. An intermediate step: the last step of the
    /// pipeline turns it into a drop or an answer.
    Refuse(DropReason),
    /// The packet leaves by the interface that it came in by; the frame is complete.
    Bounce,
    /// The packet leaves by another interface; the frame is complete.
    Emit {
        /// ifindex of the interface.
        ifindex: u32,
    },
    /// The packet leaves by an interface; the kernel looks the next hop up and writes the Ethernet
    /// header.
    Route {
        /// ifindex of the interface.
        ifindex: u32,
    },
    /// The packet goes into the network namespace of a task of this node; the frame is complete.
    Deliver {
        /// ifindex of the task's host-side veth.
        ifindex: u32,
    },
    /// The packet goes through the kernel's VXLAN device, which writes the outer headers. Never one
    /// of an encrypted network.
    ViaDevice(Tunnel),
    /// Another program decides, by a tail call.
    Continue(Edge),
    /// The program [`Edge::Refuse`] makes an ICMP error of the packet; the drop is counted already.
    Answer(Answer),
}

/// Where the tunnel takes a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// IPv4 address of the other node.
    pub peer: [u8; 4],
    /// The VNI, which tells the other node what the packet is for.
    pub vni: Vni,
}

/// An ICMP error that [`Edge::Refuse`] makes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Why the packet is refused.
    pub reason: DropReason,
    /// The IPv4 address of the node whose tunnel the error goes back through; 0.0.0.0: it leaves by
    /// the interface that the packet came in by.
    pub back: [u8; 4],
}

/// A [`Verdict`] as programs carry it: four `u32`s, all of them always written.
///
/// It is not an enum because fields that a variant doesn't have are undefined where paths with
/// different variants meet, and the verifier refuses a program that copies an undefined register.
/// The same holds for types that contain a fate: no function returns one in a `Result` or an
/// `Option`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    kind: u32,
    /// An ifindex, a [`DropReason`] or an [`Edge`], depending on `kind`.
    detail: u32,
    /// The other node's IPv4 address, as it lies in memory.
    peer: u32,
    vni: u32,
}

/// Values of [`Fate::kind`].
mod kind {
    pub(super) const PASS: u32 = 0;
    pub(super) const DROP: u32 = 1;
    pub(super) const REFUSE: u32 = 2;
    pub(super) const BOUNCE: u32 = 3;
    pub(super) const EMIT: u32 = 4;
    pub(super) const ROUTE: u32 = 5;
    pub(super) const DELIVER: u32 = 6;
    pub(super) const VIA_DEVICE: u32 = 7;
    pub(super) const CONTINUE: u32 = 8;
    pub(super) const ANSWER: u32 = 9;
}

impl Fate {
    /// See [`Verdict::Pass`].
    pub const PASS: Self = Self::of(kind::PASS, 0);
    /// See [`Verdict::Bounce`].
    pub const BOUNCE: Self = Self::of(kind::BOUNCE, 0);

    #[inline(always)]
    const fn of(kind: u32, detail: u32) -> Self {
        Self { kind, detail, peer: 0, vni: 0 }
    }

    /// See [`Verdict::Drop`].
    #[inline(always)]
    pub const fn dropped(reason: DropReason) -> Self {
        Self::of(kind::DROP, reason as u32)
    }

    /// See [`Verdict::Refuse`].
    #[inline(always)]
    pub const fn refuse(reason: DropReason) -> Self {
        Self::of(kind::REFUSE, reason as u32)
    }

    /// See [`Verdict::Emit`].
    #[inline(always)]
    pub const fn emit(ifindex: u32) -> Self {
        Self::of(kind::EMIT, ifindex)
    }

    /// See [`Verdict::Route`].
    #[inline(always)]
    pub const fn route(ifindex: u32) -> Self {
        Self::of(kind::ROUTE, ifindex)
    }

    /// See [`Verdict::Deliver`].
    #[inline(always)]
    pub const fn deliver(ifindex: u32) -> Self {
        Self::of(kind::DELIVER, ifindex)
    }

    /// See [`Verdict::ViaDevice`]. That device sends in clear: of a packet of an encrypted network,
    /// [`Edge::Encrypt`] decides.
    #[inline(always)]
    pub const fn via_device(peer: [u8; 4], vni: Vni) -> Self {
        Self { kind: kind::VIA_DEVICE, detail: 0, peer: u32::from_ne_bytes(peer), vni: vni.0 }
    }

    /// See [`Verdict::Continue`].
    #[inline(always)]
    pub const fn tail_call(edge: Edge) -> Self {
        Self::of(kind::CONTINUE, edge as u32)
    }

    /// See [`Verdict::Answer`].
    #[inline(always)]
    pub const fn answer(reason: DropReason, back: [u8; 4]) -> Self {
        Self { kind: kind::ANSWER, detail: reason as u32, peer: u32::from_ne_bytes(back), vni: 0 }
    }

    /// Whether the packet was forwarded towards a task: it is delivered here or sent to another
    /// node.
    #[inline(always)]
    pub const fn is_forwarded(&self) -> bool {
        self.kind == kind::DELIVER || self.kind == kind::VIA_DEVICE
    }

    /// Where the VXLAN device sends the packet; `None` if the packet doesn't go to the device.
    #[inline(always)]
    fn tunnel(&self) -> Option<Tunnel> {
        if self.kind == kind::VIA_DEVICE {
            Some(Tunnel { peer: self.peer.to_ne_bytes(), vni: Vni(self.vni) })
        } else {
            None
        }
    }

    /// Why the packet is refused; `None` if it isn't.
    #[inline(always)]
    pub fn refusal(&self) -> Option<DropReason> {
        if self.kind == kind::REFUSE { Some(DropReason::from_number(self.detail)) } else { None }
    }

    /// The fate as an enum.
    #[inline(always)]
    pub fn verdict(&self) -> Verdict {
        let (ifindex, peer) = (self.detail, self.peer.to_ne_bytes());
        match self.kind {
            kind::DROP => Verdict::Drop(DropReason::from_number(self.detail)),
            kind::REFUSE => Verdict::Refuse(DropReason::from_number(self.detail)),
            kind::BOUNCE => Verdict::Bounce,
            kind::EMIT => Verdict::Emit { ifindex },
            kind::ROUTE => Verdict::Route { ifindex },
            kind::DELIVER => Verdict::Deliver { ifindex },
            kind::VIA_DEVICE if Vni(self.vni).is_encrypted() => Verdict::Continue(Edge::Encrypt),
            kind::VIA_DEVICE => Verdict::ViaDevice(Tunnel { peer, vni: Vni(self.vni) }),
            kind::CONTINUE => Verdict::Continue(Edge::from_number(self.detail)),
            kind::ANSWER => {
                Verdict::Answer(Answer { reason: DropReason::from_number(self.detail), back: peer })
            }
            _ => Verdict::Pass,
        }
    }
}

/// Where a packet goes before it is decided who encapsulates it: to another node, or, with a final
/// [`Fate`], anywhere else.
///
/// A type of its own, so that "to that node" is not mistaken for "by the VXLAN device": the program
/// encapsulates what it can by itself, and [`Self::by_device`] is for the rest. It carries a fate's
/// four words, as no other shape passes the verifier as cheaply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination(Fate);

impl Destination {
    /// The packet goes to the node with this IPv4 address, through the tunnel.
    #[inline(always)]
    pub const fn node(peer: [u8; 4], vni: Vni) -> Self {
        Self(Fate::via_device(peer, vni))
    }

    /// The packet doesn't go to another node; its fate is final.
    #[inline(always)]
    pub const fn decided(fate: Fate) -> Self {
        Self(fate)
    }

    /// The other node and the VNI; `None` if the packet doesn't go to another node.
    #[inline(always)]
    pub fn tunnel(&self) -> Option<Tunnel> {
        self.0.tunnel()
    }

    /// The fate of a packet that the VXLAN device encapsulates if it goes to another node.
    #[inline(always)]
    pub const fn by_device(self) -> Fate {
        self.0
    }

    /// Whether the packet was forwarded towards a task: see [`Fate::is_forwarded`].
    #[inline(always)]
    pub const fn is_forwarded(&self) -> bool {
        self.0.is_forwarded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNNEL: Tunnel = Tunnel { peer: [10, 77, 0, 12], vni: Vni(5) };
    const ANSWER: Answer = Answer { reason: DropReason::TooBig, back: [10, 77, 0, 12] };

    /// One verdict of each kind, by turns: a new one does not compile without a place in the turn.
    fn next(verdict: Verdict) -> Option<Verdict> {
        Some(match verdict {
            Verdict::Pass => Verdict::Drop(DropReason::NoFlow),
            Verdict::Drop(_) => Verdict::Refuse(DropReason::NoBackend),
            Verdict::Refuse(_) => Verdict::Bounce,
            Verdict::Bounce => Verdict::Emit { ifindex: 3 },
            Verdict::Emit { .. } => Verdict::Route { ifindex: 4 },
            Verdict::Route { .. } => Verdict::Deliver { ifindex: 5 },
            Verdict::Deliver { .. } => Verdict::ViaDevice(TUNNEL),
            Verdict::ViaDevice(_) => Verdict::Continue(Edge::Refuse),
            Verdict::Continue(_) => Verdict::Answer(ANSWER),
            Verdict::Answer(_) => return None,
        })
    }

    /// The fate of a verdict: a new verdict does not compile without one.
    fn fate_of(verdict: Verdict) -> Fate {
        match verdict {
            Verdict::Pass => Fate::PASS,
            Verdict::Drop(reason) => Fate::dropped(reason),
            Verdict::Refuse(reason) => Fate::refuse(reason),
            Verdict::Bounce => Fate::BOUNCE,
            Verdict::Emit { ifindex } => Fate::emit(ifindex),
            Verdict::Route { ifindex } => Fate::route(ifindex),
            Verdict::Deliver { ifindex } => Fate::deliver(ifindex),
            Verdict::ViaDevice(Tunnel { peer, vni }) => Fate::via_device(peer, vni),
            Verdict::Continue(edge) => Fate::tail_call(edge),
            Verdict::Answer(Answer { reason, back }) => Fate::answer(reason, back),
        }
    }

    #[test]
    fn what_is_encrypted_never_goes_by_the_vxlan_device() {
        for number in [1, 5, 0xffff] {
            let vni = Vni::network(number | Vni::ENCRYPTED);
            let fate = Destination::node(TUNNEL.peer, vni).by_device();
            assert_eq!(fate.verdict(), Verdict::Continue(Edge::Encrypt));
        }
    }

    #[test]
    fn every_verdict_survives_as_a_fate() {
        let verdicts: std::vec::Vec<_> =
            core::iter::successors(Some(Verdict::Pass), |last| next(*last)).collect();
        for (number, verdict) in verdicts.iter().enumerate() {
            let fate = fate_of(*verdict);
            assert_eq!(fate.verdict(), *verdict);
            assert_eq!(fate.kind as usize, number, "kinds are dense, each with its verdict: {verdict:?}");
        }
        let unknown = u32::try_from(verdicts.len()).expect("few kinds");
        assert_eq!(Fate::of(unknown, 0).verdict(), Verdict::Pass, "a kind without a verdict");
    }
}

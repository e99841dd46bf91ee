//! The one closed list of reasons for which a packet is not forwarded: counter index and metric
//! label.

use super::closed_list::closed_list;

closed_list! {
    /// Why a packet was not forwarded. The number is the counter's index, see
    /// [`super::drop_index`].
    pub enum DropReason: u8 {
        /// A tunnel packet from an address that no member node has.
        UnknownPeer = 0 => "unknown_peer",
        /// A new connection to a published port that has no backend left; answered by a RST.
        NoBackend = 1 => "no_backend",
        /// The flow's backend is gone; answered by a RST.
        BackendGone = 2 => "backend_gone",
        /// A packet of a connection that neither mesh nor a local socket knows; a client's is
        /// answered by a RST.
        NoFlow = 3 => "no_flow",
        /// A new connection out of the tunnel for a backend that is not (yet) known here; the
        /// client retransmits its SYN.
        UnknownBackend = 4 => "unknown_backend",
        /// The packet's TTL or hop limit would reach 0.
        TtlExpired = 5 => "ttl_expired",
        /// A tunnel packet whose inner packet no ingress node of the cluster would send.
        Malformed = 6 => "malformed",
        /// Two connections of a client would look alike to the task, and all other client ports
        /// tried for the second one are taken.
        PortClash = 7 => "port_clash",
        /// A flow table had no room for the entry.
        TableFull = 8 => "table_full",
        /// The kernel could not add or remove a header.
        Resize = 9 => "resize",
        /// The node that runs the backend is not in this node's maps.
        UnknownNode = 10 => "unknown_node",
        /// The client is not on the published port's allow-list. It gets no answer, as from a
        /// firewall.
        NotAllowed = 11 => "not_allowed",
        /// Too large for the tunnel, and the sender forbids fragmentation; answered by ICMP.
        TooBig = 12 => "too_big",
        /// A later fragment of a packet whose first fragment was not seen, or a fragment to a
        /// virtual IP.
        Fragment = 13 => "fragment",
        /// A tunnel packet from a member's address without the cookie that this member's packets
        /// bear.
        BadCookie = 14 => "bad_cookie",
        /// A packet of a network whose source address is not that of a task of the sending node.
        ForeignSource = 15 => "foreign_source",
        /// A packet of a network whose destination is not the address of a task of this node.
        ForeignDestination = 16 => "foreign_destination",
        /// A tunnel packet that came in by an interface other than an uplink, or for another
        /// address than the node's; also one out of the encryption device that is not of an
        /// encrypted network.
        NotByUplink = 17 => "not_by_uplink",
        /// A new connection whose flow another CPU added and removed at the same moment; the client
        /// retransmits its SYN.
        Raced = 18 => "raced",
        /// A task sent as somebody else on a network: another source address, MAC or ARP sender
        /// than its own.
        SpoofedSource = 19 => "spoofed_source",
        /// A task sent to something that it shares no network with: by its veth on `mesh` to
        /// another task or to a network, or by its veth on a network to an address outside of it.
        Isolated = 20 => "isolated",
        /// A task sent to an address of its network that nobody is known to have.
        UnknownEndpoint = 21 => "unknown_endpoint",
        /// A packet by a veth of a network of which it is not known (yet) whose it is.
        UnknownLink = 22 => "unknown_link",
        /// A packet of an encrypted network that this node can't encrypt for the other one: it has
        /// no encryption device, or does not know the other node's key.
        NoEncryption = 23 => "no_encryption",
        /// A packet of an encrypted network that came through the tunnel in clear.
        NotEncrypted = 24 => "not_encrypted",
    }
    /// The reason as the metric's label `reason`.
    name: label;
    read: from_number(u32), unknown is Malformed;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_labels_distinct() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{reason:?}");
            assert_eq!(DropReason::from_number(*reason as u32), *reason);
            let twins = DropReason::ALL.iter().filter(|other| other.label() == reason.label()).count();
            assert_eq!(twins, 1, "label of {reason:?}");
        }
    }
}

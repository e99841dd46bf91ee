//! The programs behind the tail call: what would not fit the stack of the hooks' own programs.

use super::closed_list::closed_list;

closed_list! {
    /// A program that another one continues in by a tail call. The number is its index in
    /// [`super::names::EDGES`].
    ///
    /// A program hands its arguments over in the packet's control block (`__sk_buff::cb`). Their
    /// layout is part of the ABI as much as a map's: see [`Self::Refuse`].
    pub enum Edge: u32 {
        /// Makes an ICMP error of a packet. Words of the control block: a [`super::DropReason`];
        /// the IPv4 address (as it lies in memory) of the node whose tunnel the error goes back
        /// through, or 0 to send the error out of the interface that the packet came in by.
        Refuse = 0 => "mesh_refuse",
        /// Forwards an ICMP error that came in by an uplink.
        UplinkError = 1 => "mesh_uplink_err",
        /// Forwards an ICMP error that came out of the tunnel.
        TunnelError = 2 => "mesh_tunnel_err",
        /// Forwards an ICMP error that a task sent.
        TaskError = 3 => "mesh_task_err",
        /// Forwards an IP fragment that came in by an uplink.
        UplinkFragment = 4 => "mesh_uplink_fra",
        /// Forwards an IP fragment that came out of the tunnel.
        TunnelFragment = 5 => "mesh_tunnel_fra",
        /// Forwards an IP fragment that a task sent.
        TaskFragment = 6 => "mesh_task_fra",
        /// Decapsulates a tunnel packet that came in by an uplink. Not rare, but long.
        Decapsulate = 7 => "mesh_decap",
        /// Decapsulates a packet of a network, whose sender is checked.
        NetworkDecapsulate = 8 => "mesh_net_decap",
        /// Forwards a task's packet to a virtual IP of its network, or to an address there that
        /// nobody has. Words of the control block: [`super::Link::words`].
        VirtualIp = 9 => "mesh_vip",
        /// Forwards a packet from a backend of a virtual IP to another task of this node. Words of
        /// the control block: [`super::Link::reply_words`].
        VirtualReply = 10 => "mesh_vip_reply",
        /// Forwards a packet out of the VXLAN device from a backend of a virtual IP.
        VirtualTunnel = 11 => "mesh_vip_tunnel",
        /// Forwards an ICMP error from a backend of a virtual IP to another task of this node.
        VirtualReplyError = 12 => "mesh_vip_rerr",
        /// Forwards an ICMP error out of the VXLAN device from a backend of a virtual IP.
        VirtualTunnelError = 13 => "mesh_vip_terr",
        /// Forwards a task's ICMP error to a virtual IP of its network.
        VirtualError = 14 => "mesh_vip_err",
        /// Forwards a task's fragment to a virtual IP of its network.
        VirtualFragment = 15 => "mesh_vip_fra",
        /// Forwards a fragment from a backend of a virtual IP to another task of this node.
        VirtualReplyFragment = 16 => "mesh_vip_rfra",
        /// Forwards a fragment out of the VXLAN device from a backend of a virtual IP.
        VirtualTunnelFragment = 17 => "mesh_vip_tfra",
        /// Sends a task's packet on an encrypted network to the node that has its destination.
        Encrypt = 18 => "mesh_encrypt",
        /// Forwards an ICMP error of an encrypted network from a backend of a virtual IP. Words of
        /// the control block: the IPv4 address (as it lies in memory) of the node that sent it, and
        /// the VNI.
        DecryptedError = 19 => "mesh_dec_err",
        /// Forwards a fragment of an encrypted network from a backend of a virtual IP; words of the
        /// control block as for [`Self::DecryptedError`].
        DecryptedFragment = 20 => "mesh_dec_fra",
        /// Handles an IPv6 packet that a task sent by its veth on a network.
        Overlay6 = 21 => "mesh_overlay6",
        /// Delivers an IPv6 packet of a network out of the VXLAN device.
        NetworkTunnel6 = 22 => "mesh_net_tun6",
    }
    /// The program's name in the object; the kernel shows 15 characters of it.
    name: program;
    read: from_number(u32), unknown is Refuse;
}

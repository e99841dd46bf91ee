//! What a node requires of the tunnel packets that another member sends it.

use super::layout::abi_struct;

/// The first 96 bits of every task's IPv6 address; the other 32 are an IPv4 address from the task
/// subnet of its node.
pub const TASKS_PREFIX6: u128 = 0xfd6d_6573_0068 << 80;

/// The mark (`skb->mark`) of a tunnel packet between an uplink and the VXLAN device. On the way in
/// it says that the uplink's program has checked the packet, on the way out that the device sent
/// it. Other processes of the host may use the tunnel's port, but can't set the mark from a
/// container: the kernel clears it on packets from another network namespace.
pub const TUNNEL_MARK: u32 = 0x6d65_7368;

abi_struct! {
    /// Entry of [`super::names::MEMBERS`]; the key is the node's index. All zeros demands nothing,
    /// as before the agent's first table.
    pub struct Member [12] {
        /// The cookies that the node's packets may bear. If only one is in use, both fields hold
        /// it.
        pub accepted: [u32; 2],
        /// Bits of [`member_flag`].
        pub flags: u32,
    }
}

/// Bits of [`Member::flags`].
pub mod member_flag {
    /// The node's packets must bear a cookie.
    pub const COOKIE: u32 = 1;
}

impl Member {
    /// Whether a packet with this cookie (0: none) may come from the node.
    #[inline(always)]
    pub const fn admits(&self, cookie: u32) -> bool {
        self.flags & member_flag::COOKIE == 0 || cookie == self.accepted[0] || cookie == self.accepted[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_demanded_cookie_is_looked_at() {
        let member = Member { accepted: [7, 8], ..Member::default() };
        assert!([0, 7, 8, 9].iter().all(|cookie| member.admits(*cookie)), "none is demanded");
        let strict = Member { flags: member_flag::COOKIE, ..member };
        assert!(strict.admits(7) && strict.admits(8));
        assert!(!strict.admits(0) && !strict.admits(9));
    }
}

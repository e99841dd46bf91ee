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
    /// Entry of [`super::names::MEMBERS`]; the key is the node's index, 0 is this node. All zeros
    /// means "not written yet": an agent that takes over from another version writes its first
    /// table a moment after its programs run.
    pub struct Member [24] {
        /// The cookies that the node's packets may bear. If only one is in use, both fields hold
        /// it.
        pub accepted: [u32; 2],
        /// The subnet of the node's tasks, as its octets lie in memory.
        pub subnet: u32,
        /// The mask of that subnet, as its octets lie in memory.
        pub mask: u32,
        /// Bits of [`member_flag`].
        pub flags: u32,
        /// Padding; always zero.
        pub reserved: u32,
    }
}

/// Bits of [`Member::flags`].
pub mod member_flag {
    /// Userspace has written the entry.
    pub const WRITTEN: u32 = 1;
    /// The node has a task subnet.
    pub const SUBNET: u32 = 2;
    /// The node's packets must bear a cookie.
    pub const COOKIE: u32 = 4;
}

impl Member {
    /// Whether a packet with this cookie (0: none) may come from the node.
    #[inline(always)]
    pub const fn admits(&self, cookie: u32) -> bool {
        self.flags & member_flag::COOKIE == 0 || cookie == self.accepted[0] || cookie == self.accepted[1]
    }

    /// Whether a task of the node may have this address, given as [`task_word`].
    #[inline(always)]
    pub const fn may_have(&self, task: u32) -> bool {
        if self.flags & member_flag::WRITTEN == 0 {
            return true;
        }
        self.flags & member_flag::SUBNET != 0 && task & self.mask == self.subnet
    }
}

/// The part of an IPv6 address that identifies a task: its last four octets as they lie in memory.
/// If the address doesn't begin with [`TASKS_PREFIX6`], it is 0, which no task subnet contains.
#[inline(always)]
pub const fn task_word(address: [u8; 16]) -> u32 {
    const PREFIX: [u8; 16] = TASKS_PREFIX6.to_be_bytes();
    const fn word(bytes: &[u8; 16], at: usize) -> u32 {
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }
    let is_task = word(&address, 0) == word(&PREFIX, 0)
        && word(&address, 4) == word(&PREFIX, 4)
        && word(&address, 8) == word(&PREFIX, 8);
    if is_task { word(&address, 12) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBNET: u32 = u32::from_ne_bytes([10, 128, 1, 0]);
    const MASK: u32 = u32::from_ne_bytes([255, 255, 255, 0]);

    #[test]
    fn only_a_demanded_cookie_is_looked_at() {
        let member = Member { accepted: [7, 8], ..Member::default() };
        assert!([0, 7, 8, 9].iter().all(|cookie| member.admits(*cookie)), "none is demanded");
        let strict = Member { flags: member_flag::COOKIE, ..member };
        assert!(strict.admits(7) && strict.admits(8));
        assert!(!strict.admits(0) && !strict.admits(9));
    }

    #[test]
    fn a_node_without_a_subnet_has_no_tasks() {
        let task = u32::from_ne_bytes([10, 128, 1, 2]);
        assert!(Member::default().may_have(task), "an entry that nobody has written yet");
        let bare = Member { flags: member_flag::WRITTEN, ..Member::default() };
        assert!(!bare.may_have(task) && !bare.may_have(0));
        let flags = member_flag::WRITTEN | member_flag::SUBNET;
        let member = Member { subnet: SUBNET, mask: MASK, flags, ..Member::default() };
        assert!(member.may_have(task));
        assert!(!member.may_have(u32::from_ne_bytes([10, 128, 2, 2])), "another subnet's");
    }

    #[test]
    fn an_ipv6_address_of_a_task_ends_in_its_ipv4_address() {
        let mut address = TASKS_PREFIX6.to_be_bytes();
        address[12..].copy_from_slice(&[10, 128, 1, 2]);
        assert_eq!(task_word(address), u32::from_ne_bytes([10, 128, 1, 2]));
        for at in [0, 5, 11] {
            let mut other = address;
            other[at] ^= 1;
            assert_eq!(task_word(other), 0, "octet {at} differs");
        }
    }
}

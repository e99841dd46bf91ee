//! The macro that declares shared structs, and the hash over all of them.

use super::{
    AllowedKey, Backend, BackendLoad, BackendState, BackendStats, Config, Direction, DropReason, Edge,
    Endpoint, EndpointKey, Evicted, Flow, FlowCell, FlowKey, FragmentKey, FragmentPorts, FrontendStats,
    Histogram, IsolatedKey, Link, Live, Member, Mode, Nat, NatKey, Node, Policy, Service, ServiceKey,
    Subnet6, SynGuard, Timed, TokenBucket, Traffic, names,
};

/// Raise this number when a value's meaning, or what programs hand over to an [`Edge`], changes
/// while no layout does.
const REVISION: u64 = 4;

/// Declares a `repr(C)` struct of the given size without hidden padding, and hashes its layout.
macro_rules! abi_struct {
    ($(#[$meta:meta])* pub struct $name:ident [$size:literal] { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)+ }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)+ }

        const _: () = {
            assert!(size_of::<$name>() == $size, "size of the map entry changed");
            assert!(0 $(+ size_of::<$type>())+ == $size, "the map entry has hidden padding");
        };

        impl $name {
            /// Hash over name, size, and every field's name, type, size and offset.
            pub(super) const LAYOUT_HASH: u64 = {
                let mut hash = super::layout::hash_bytes(super::layout::SEED, stringify!($name).as_bytes());
                hash = super::layout::hash_number(hash, $size);
                $(
                    hash = super::layout::hash_bytes(hash, stringify!($field: $type).as_bytes());
                    hash = super::layout::hash_number(hash, core::mem::offset_of!($name, $field) as u64);
                    hash = super::layout::hash_number(hash, size_of::<$type>() as u64);
                )+
                hash
            };
        }

        // SAFETY: the struct is `repr(C)`, without padding (asserted above), and of integers and
        // byte arrays only.
        #[cfg(feature = "userspace")]
        unsafe impl aya::Pod for $name {}
    };
}
pub(super) use abi_struct;

// SAFETY: a byte array without padding.
#[cfg(feature = "userspace")]
unsafe impl aya::Pod for super::Address {}

/// Offset basis of the FNV-1a hash.
pub(super) const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a over `bytes`, continuing from `hash`.
pub(super) const fn hash_bytes(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
}

/// FNV-1a over the eight bytes of `number`.
pub(super) const fn hash_number(hash: u64, number: u64) -> u64 {
    hash_bytes(hash, &number.to_le_bytes())
}

/// Hash over every layout, closed list, map name and fixed size. Pins live in a directory named by
/// its 16 hex digits.
pub const ABI_HASH: u64 = {
    let layouts = [
        REVISION,
        Config::LAYOUT_HASH,
        ServiceKey::LAYOUT_HASH,
        Service::LAYOUT_HASH,
        Backend::LAYOUT_HASH,
        Node::LAYOUT_HASH,
        FlowKey::LAYOUT_HASH,
        Flow::LAYOUT_HASH,
        FlowCell::LAYOUT_HASH,
        NatKey::LAYOUT_HASH,
        Nat::LAYOUT_HASH,
        Traffic::LAYOUT_HASH,
        BackendStats::LAYOUT_HASH,
        FrontendStats::LAYOUT_HASH,
        Live::LAYOUT_HASH,
        BackendLoad::LAYOUT_HASH,
        AllowedKey::LAYOUT_HASH,
        FragmentKey::LAYOUT_HASH,
        FragmentPorts::LAYOUT_HASH,
        Histogram::LAYOUT_HASH,
        TokenBucket::LAYOUT_HASH,
        SynGuard::LAYOUT_HASH,
        Member::LAYOUT_HASH,
        Link::LAYOUT_HASH,
        EndpointKey::LAYOUT_HASH,
        Endpoint::LAYOUT_HASH,
        IsolatedKey::LAYOUT_HASH,
        Subnet6::LAYOUT_HASH,
        names::LINKS_MAX as u64,
        names::SUBNETS6_MAX as u64,
        names::ENDPOINTS_MAX as u64,
        names::VIRTUAL_IPS_MAX as u64,
        names::ISOLATED_MAX as u64,
        names::ALLOWED_MAX as u64,
        names::FRAGMENTS_MAX as u64,
        BackendState::LIST_HASH,
        Direction::LIST_HASH,
        DropReason::LIST_HASH,
        Edge::LIST_HASH,
        Evicted::LIST_HASH,
        Mode::LIST_HASH,
        Policy::LIST_HASH,
        Timed::LIST_HASH,
        names::ADDRESSES_MAX as u64,
        names::SERVICES_MAX as u64,
        names::SLOTS_MAX as u64,
        names::BACKENDS_MAX as u64,
        names::NODES_MAX as u64,
    ];
    let mut hash = SEED;
    let mut i = 0;
    while i < layouts.len() {
        hash = hash_number(hash, layouts[i]);
        i += 1;
    }
    let mut map = 0;
    while map < names::MAPS.len() {
        hash = hash_bytes(hash, names::MAPS[map].as_bytes());
        map += 1;
    }
    hash
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_tells_order_and_content_apart() {
        let ab = hash_number(hash_number(SEED, 1), 2);
        let ba = hash_number(hash_number(SEED, 2), 1);
        assert_ne!(ab, ba, "order of layouts must count");
        assert_ne!(Flow::LAYOUT_HASH, Nat::LAYOUT_HASH);
        assert_ne!(ABI_HASH, SEED);
    }
}

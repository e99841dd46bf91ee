//! Addresses and ports as they lie in map keys: byte arrays in network order.
//!
//! They are aligned to more than a byte, as the kernel's instruction set reads unaligned words byte
//! by byte.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address, 16 bytes; IPv4 is v4-mapped (`::ffff:a.b.c.d`). All zeros means "none".
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialOrd, Ord)]
#[expect(
    clippy::derived_hash_with_manual_eq,
    clippy::derive_ord_xor_partial_ord,
    reason = "equality is that of the bytes, two words at a time"
)]
pub struct Address(pub [u8; 16]);

impl PartialEq for Address {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.words() == other.words()
    }
}

impl Address {
    /// The absence of an address: all zeros.
    pub const NONE: Self = Self([0; 16]);
    /// The IPv6 loopback address, `::1`.
    const LOOPBACK6: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// The v4-mapped form of `octets`.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        // Built from words: if it were built from bytes, the compiler would split the four octets
        // that were read from the packet as one word.
        let address = u32::from_ne_bytes(octets) as u64;
        let half =
            if cfg!(target_endian = "little") { address << 32 | 0xffff_0000 } else { 0xffff << 32 | address };
        Self::from_words([0, half])
    }

    /// Both halves as they lie in memory, so that the kernel compares and copies an address in two
    /// steps instead of sixteen.
    #[inline(always)]
    const fn words(&self) -> [u64; 2] {
        // SAFETY: both are 16 bytes, aligned alike, and any bit pattern is valid for either.
        unsafe { core::mem::transmute(*self) }
    }

    #[inline(always)]
    const fn from_words(words: [u64; 2]) -> Self {
        // SAFETY: as in `words`.
        unsafe { core::mem::transmute(words) }
    }

    /// The last four octets: the IPv4 address, if this is a v4-mapped one.
    #[inline(always)]
    pub const fn v4_octets(&self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.0[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
    }

    /// Whether this may be the source of a packet on the wire: not a multicast, unspecified or
    /// loopback address (RFC 1812 section 5.3.7).
    #[inline(always)]
    pub fn is_host(&self) -> bool {
        if self.is_v4() {
            self.0[12] != 0 && self.0[12] != 127 && self.0[12] < 224
        } else {
            self.0[0] != 0xff && !self.is_none() && *self != Self::LOOPBACK6
        }
    }

    /// A hash of the address for spreading load: the four octets of an IPv4 address, or a mix of
    /// the sixteen octets of an IPv6 address.
    #[inline(always)]
    pub fn word(&self) -> u32 {
        let word =
            |at: usize| u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]]);
        let (high, low) = (word(0), word(12));
        // A v4-mapped address begins with zeros, and the other octets that are left out here are
        // constant.
        if high == 0 && word(4) == 0 { low } else { mix(mix(mix(high) ^ word(4)) ^ word(8)) ^ low }
    }

    /// Whether no address is set.
    #[inline(always)]
    pub fn is_none(&self) -> bool {
        self.words() == [0; 2]
    }
}

/// Mixes the bits of a word, so that each input bit changes many output bits.
#[inline(always)]
const fn mix(word: u32) -> u32 {
    let word = (word ^ word >> 16).wrapping_mul(0x85eb_ca6b);
    word ^ word >> 13
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::v4(address.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        Self(address.octets())
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        Ipv6Addr::from(address.0).to_canonical()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// A 16-bit number in network order, as ports are kept in keys and packets.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Be16(pub [u8; 2]);

impl Be16 {
    /// Converts from host order.
    #[inline(always)]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be_bytes())
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// An Ethernet address; all zeros means "not known".
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The MAC address that stands for "not known": all zeros.
    pub const NONE: Self = Self([0; 6]);

    /// Whether the address is not known.
    #[inline(always)]
    pub fn is_none(self) -> bool {
        self.0 == [0; 6]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_is_mapped_and_comes_back() {
        let v4 = Ipv4Addr::new(10, 77, 0, 11);
        let address = Address::from(v4);
        assert_eq!(address.v4_octets(), v4.octets());
        assert_eq!(IpAddr::from(address), IpAddr::V4(v4), "canonical form is IPv4 again");
        assert_eq!(address, Address::from(IpAddr::V6(v4.to_ipv6_mapped())));
        assert!(Address::NONE.is_none() && !address.is_none());
    }
}

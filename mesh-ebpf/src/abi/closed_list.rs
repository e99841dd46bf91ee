//! The macro that declares a closed list: an enum whose numbers programs and agent share.

/// Declares an enum, and from the same rows its numbers, the array of all variants, their names and
/// the way back from a number. A new variant is one row.
///
/// ```text
/// closed_list! {
///     /// What the list is about.
///     pub enum Mode: u8 {
///         /// What this one means.
///         Tunnel = 0 => "tunnel",
///     }
///     /// What the name is used for.
///     name: label;
///     read: from_byte(u8), unknown is Tunnel;   // optional
/// }
/// ```
///
/// Numbers are dense and start at 0: the compiler checks it. A list that is read from a map or from
/// a packet says in `read` what an unknown number means, as an agent of another version may write
/// one.
macro_rules! closed_list {
    (
        $(#[$meta:meta])*
        pub enum $list:ident: $repr:ident {
            $($(#[$variant_meta:meta])+ $variant:ident = $number:literal => $text:literal,)+
        }
        $(#[$name_meta:meta])+
        name: $name:ident;
        read: $read:ident($from:ident), unknown is $unknown:ident;
    ) => {
        super::closed_list::closed_list! {
            $(#[$meta])*
            pub enum $list: $repr {
                $($(#[$variant_meta])+ $variant = $number => $text,)+
            }
            $(#[$name_meta])+
            name: $name;
        }

        impl $list {
            #[doc = concat!(
                "The variant with this number; [`Self::", stringify!($unknown),
                "`] for a number that no variant has.",
            )]
            #[inline(always)]
            pub const fn $read(number: $from) -> Self {
                match number { $($number => Self::$variant,)+ _ => Self::$unknown }
            }
        }
    };
    (
        $(#[$meta:meta])*
        pub enum $list:ident: $repr:ident {
            $($(#[$variant_meta:meta])+ $variant:ident = $number:literal => $text:literal,)+
        }
        $(#[$name_meta:meta])+
        name: $name:ident;
    ) => {
        $(#[$meta])*
        #[repr($repr)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $list {
            $($(#[$variant_meta])+ $variant = $number,)+
        }

        impl $list {
            /// Hash over the list's name and every variant's number and name.
            pub(super) const LIST_HASH: u64 = {
                let mut hash =
                    super::layout::hash_bytes(super::layout::SEED, stringify!($list).as_bytes());
                $(hash = super::layout::hash_bytes(hash, concat!($number, $text).as_bytes());)+
                hash
            };

            /// Every variant, in the order of the numbers.
            pub const ALL: [Self; [$($number),+].len()] = [$(Self::$variant),+];

            $(#[$name_meta])+
            pub const fn $name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        const _: () = {
            let mut number = 0;
            while number < $list::ALL.len() {
                assert!($list::ALL[number] as usize == number, "numbers must be dense and in order");
                number += 1;
            }
        };
    };
}
pub(super) use closed_list;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::abi::{BackendState, Direction, DropReason, Edge, Evicted, Mode, Policy, Timed};

    /// Checks that the names of a list are distinct.
    macro_rules! check_names {
        ($($list:ident.$name:ident),+) => {
            $({
                let names: BTreeSet<_> = $list::ALL.iter().map(|variant| variant.$name()).collect();
                assert_eq!(names.len(), $list::ALL.len(), "names of {}", stringify!($list));
            })+
        };
    }

    #[test]
    fn names_of_a_list_are_distinct() {
        check_names!(
            BackendState.name,
            Direction.label,
            DropReason.label,
            Edge.program,
            Evicted.label,
            Mode.name,
            Policy.name,
            Timed.name
        );
    }

    #[test]
    fn numbers_read_back_and_unknown_ones_have_a_meaning() {
        for policy in Policy::ALL {
            assert_eq!(Policy::from_byte(policy as u8), policy);
        }
        for mode in Mode::ALL {
            assert_eq!(Mode::from_byte(mode as u8), mode);
        }
        for edge in Edge::ALL {
            assert_eq!(Edge::from_number(edge as u32), edge);
        }
        assert_eq!(Policy::from_byte(u8::MAX), Policy::RoundRobin, "traffic is still balanced");
        assert_eq!(Mode::from_byte(u8::MAX), Mode::Tunnel, "traffic is still forwarded");
        assert_eq!(Edge::from_number(u32::MAX), Edge::Refuse, "the packet is still refused");
        assert_eq!(DropReason::from_number(u32::MAX), DropReason::Malformed);
    }
}

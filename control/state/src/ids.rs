//! Typed ids: 25 characters of base 36, as Swarm's, so that Docker's clients accept them
//! everywhere.
//!
//! Invariant: the types prevent the use of one kind's id as another's. Randomness comes from the
//! caller.

use rand::Rng;
use serde::{Deserialize, Serialize};

/// Characters in a full id.
pub const ID_LENGTH: usize = 25;

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A random id text. The first character stays below `p`, as in a 128-bit number in base 36.
pub fn random_text<R: Rng + ?Sized>(rng: &mut R) -> String {
    (0..ID_LENGTH)
        .map(|position| {
            let limit = if position == 0 { 25 } else { ALPHABET.len() };
            char::from(ALPHABET[rng.random_range(0..limit)])
        })
        .collect()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// A random id.
            pub fn random<R: Rng + ?Sized>(rng: &mut R) -> Self {
                Self(random_text(rng))
            }

            /// The id's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether the id is empty: Docker sends an absent id as the empty string.
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

id!(
    /// The id of the cluster.
    ClusterId
);
id!(
    /// The id of a service.
    ServiceId
);
id!(
    /// The id of a task: one attempt at filling a slot.
    TaskId
);
id!(
    /// The id of a member node.
    NodeId
);
id!(
    /// The id of a network.
    NetworkId
);
id!(
    /// The id of a container outside of any task that is attached to a network.
    AttachmentId
);
id!(
    /// The id of a secret or a config.
    DependencyId
);

/// The id of one backend in maps and on the wire: a task's published port. `0` is never a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackendId(u32);

impl BackendId {
    /// The highest id: the data plane indexes an array of 65,536 by it.
    pub const MAX: u32 = 65_535;

    /// The id, if it is within `1..=MAX`.
    pub fn new(value: u32) -> Option<Self> {
        (1..=Self::MAX).contains(&value).then_some(Self(value))
    }

    /// The number itself.
    pub fn get(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_swarms_shape() {
        let mut rng = rand::rng();
        for _ in 0..100 {
            let id = ServiceId::random(&mut rng);
            assert_eq!(id.as_str().len(), ID_LENGTH, "length of {id}");
            assert!(
                id.as_str().bytes().all(|byte| ALPHABET.contains(&byte)),
                "{id} holds a character outside base 36"
            );
        }
    }

    #[test]
    fn zero_is_not_a_backend() {
        assert_eq!(BackendId::new(0), None);
        assert_eq!(BackendId::new(BackendId::MAX).map(BackendId::get), Some(65_535));
        assert_eq!(BackendId::new(BackendId::MAX + 1), None);
    }
}

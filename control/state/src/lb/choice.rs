//! A service's choices from closed lists: its selection policy and its forwarding mode.

use serde::{Deserialize, Serialize};

use super::{LabelError, MODE_LABEL, POLICY_LABEL};

/// Defines an enum of the values of a label: a row gives a variant, its meaning and its name. The
/// first is the default.
macro_rules! choices {
    (
        $(#[$doc:meta])*
        $kind:ident of $label:ident {
            $(#[$first_doc:meta])* $first:ident = $first_name:literal,
            $( $(#[$variant_doc:meta])* $variant:ident = $name:literal, )*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
        pub enum $kind {
            $(#[$first_doc])*
            #[default]
            #[serde(rename = $first_name)]
            $first,
            $(
                $(#[$variant_doc])*
                #[serde(rename = $name)]
                $variant,
            )*
        }

        impl $kind {
            /// All values, in the order in which messages list them.
            pub const ALL: &[Self] = &[Self::$first, $(Self::$variant),*];

            /// The label's value.
            pub const fn as_str(self) -> &'static str {
                match self {
                    Self::$first => $first_name,
                    $(Self::$variant => $name,)*
                }
            }
        }

        impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $kind {
            type Err = LabelError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let found = Self::ALL.iter().copied().find(|choice| choice.as_str() == text);
                found.ok_or_else(|| one_of($label, text, &[$first_name, $($name),*]))
            }
        }
    };
}

choices! {
    /// How the mesh selects a backend for a new flow.
    Policy of POLICY_LABEL {
        /// Each backend in turn.
        RoundRobin = "round-robin",
        /// A random backend.
        Random = "random",
        /// The backend with fewer live flows, of two chosen at random.
        LeastConnections = "least-connections",
        /// The backend with the lower load, as its node measures it, of two chosen at random.
        LeastLoad = "least-load",
        /// The backend that the client's address hashes to, the same on every node.
        SourceHash = "source-hash",
    }
}

choices! {
    /// How a service's packets get to tasks on other nodes and back.
    Mode of MODE_LABEL {
        /// Through the tunnel, both ways.
        Tunnel = "tunnel",
        /// Through the tunnel to the task; its node answers the client directly.
        Dsr = "dsr",
        /// By the nodes' proxies, with the PROXY protocol (version 2) towards the task.
        Proxy = "proxy",
    }
}

/// The error for a value that is not in `good`.
pub(super) fn one_of(key: &str, value: &str, good: &[&str]) -> LabelError {
    LabelError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        good: format!("one of {}", good.join(", ")),
    }
}

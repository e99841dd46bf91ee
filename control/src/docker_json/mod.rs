//! The JSON of Docker's objects: which fields they have, how Go's clients spell them, and what each
//! means when it is left out.
//!
//! Purpose: specs of the same meaning compare as equal, however they are written: a default equals
//! an absent value.
//!
//! Invariants: pure; the tables in [`shapes`] are the only knowledge of the objects. A comparison
//! never changes what a client sent: what is stored, and what is compared, are different values.
//!
//! Left to others: whether a value is valid (`api::validate`), and what follows from a difference
//! (`slots::outdated`).

pub(crate) mod meaning;
pub(crate) mod respell;
pub(crate) mod shapes;

/// The type of a field, and which of its values mean the same as its absence.
#[derive(Debug)]
pub(crate) enum Shape {
    /// A number, a text, or what mesh doesn't look into. Go's zero value equals absence; an object
    /// is a struct, whose zero has zeros in all fields.
    Any,
    /// A map with keys of the user's: an empty one equals absence, an empty value under a key does
    /// not.
    Map,
    /// A word of a closed list, compared in lower case; empty, or this one, equals absence.
    Word(&'static str),
    /// A text; empty, or this one, equals absence.
    Text(&'static str),
    /// A number that Go's clients may leave out; absence equals this one.
    Figure(i64),
    /// A value whose zero differs from absence: `Init: false` is not the engine's default.
    Said,
    /// An object with these fields, and maybe others; an object without values equals absence.
    Object(&'static [(&'static str, &'static Shape)]),
    /// An object with these fields whose presence counts, even if it is empty: a service's mode.
    Mark(&'static [(&'static str, &'static Shape)]),
    /// A list of such values; an empty one equals absence.
    List(&'static Shape),
}

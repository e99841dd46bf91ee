//! The JSON of Docker's objects: which fields they have, how Go's clients spell them, and what each
//! means when it is left out.
//!
//! Purpose: two specs that mean the same are told to be the same, however they are written: a
//! default and an absent value are one.
//!
//! Invariants: pure; a table a shape ([`shapes`]) is all that is known of an object. What a client
//! sent is never changed by a comparison: what is stored, and what is compared, are different
//! things.
//!
//! Left to others: whether a value is good (`api::validate`), and what follows from a difference
//! (`slots::outdated`).

pub(crate) mod meaning;
pub(crate) mod respell;
pub(crate) mod shapes;

/// What is known of a value.
#[derive(Debug)]
pub(crate) enum Shape {
    /// Nothing below it is known: a number, a text, a map of the user's. Go's zero means absent.
    Any,
    /// A word of a closed list, compared in lower case; empty, or this one, means absent.
    Word(&'static str),
    /// A text; empty, or this one, means absent.
    Text(&'static str),
    /// A number that Go's clients may leave out, which then means this one.
    Figure(i64),
    /// A value whose zero says something: an `init` that is off is not the engine's choice.
    Said,
    /// An object with these fields, among others; one that says nothing is absent.
    Object(&'static [(&'static str, &'static Shape)]),
    /// An object with these fields that says something by being there: a service's mode.
    Mark(&'static [(&'static str, &'static Shape)]),
    /// A list of such values; an empty one is absent.
    List(&'static Shape),
}

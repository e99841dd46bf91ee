//! A value that its copies share until one of them changes.
//!
//! Invariant: a change through one copy is never seen through another.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value behind a pointer: a copy of it costs a pointer, and the first change of a copy that
/// others share costs a copy of the value.
///
/// Equality must be reflexive for `T`: copies that share one value are equal without a look at it.
#[derive(Debug, Default)]
pub struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    /// Whether both are copies of one value that neither has changed since. Values that were made
    /// apart are not the same, even if they are equal.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.0 == other.0
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<A, T: FromIterator<A>> FromIterator<A> for Shared<T> {
    fn from_iter<I: IntoIterator<Item = A>>(items: I) -> Self {
        Self::from(T::from_iter(items))
    }
}

#[expect(clippy::into_iter_without_iter, reason = "the value's own `iter` is there by deref")]
impl<'a, T> IntoIterator for &'a Shared<T>
where
    &'a T: IntoIterator,
{
    type Item = <&'a T as IntoIterator>::Item;
    type IntoIter = <&'a T as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        (**self).into_iter()
    }
}

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::from)
    }
}

/// The keys whose values differ between two maps, in their order, with the value in `new`; `None`
/// if the key is gone. Maps that are one value aren't walked.
pub fn differing<'a, K: Ord, V>(
    old: &'a Shared<BTreeMap<K, V>>,
    new: &'a Shared<BTreeMap<K, V>>,
    is_same: impl Fn(&V, &V) -> bool,
) -> Vec<(&'a K, Option<&'a V>)> {
    let mut found = Vec::new();
    if old.is_same(new) {
        return found;
    }
    let mut before = old.iter().peekable();
    for (key, value) in new {
        while let Some((gone, _)) = before.next_if(|(known, _)| *known < key) {
            found.push((gone, None));
        }
        match before.next_if(|(known, _)| *known == key) {
            Some((_, known)) if is_same(known, value) => {}
            _ => found.push((key, Some(value))),
        }
    }
    found.extend(before.map(|(gone, _)| (gone, None)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shares_the_value_until_one_of_both_changes() {
        let first: Shared<BTreeMap<u8, u8>> = [(1, 1)].into_iter().collect();
        let mut second = first.clone();
        assert!(first.is_same(&second));
        assert_eq!(second.get(&1), Some(&1), "a read");
        assert!(first.is_same(&second), "a read copies nothing");
        second.insert(2, 2);
        assert_eq!((first.len(), second.len()), (1, 2));
        second.remove(&2);
        assert!(!first.is_same(&second) && first == second, "equal again, and apart");
    }

    #[test]
    fn what_is_new_changed_or_gone_differs() {
        let map = |entries: &[(u8, u8)]| -> Shared<BTreeMap<u8, u8>> { entries.iter().copied().collect() };
        let found = |old: &[(u8, u8)], new: &[(u8, u8)]| {
            let (old, new) = (map(old), map(new));
            let found = differing(&old, &new, PartialEq::eq);
            found.into_iter().map(|(key, value)| (*key, value.copied())).collect::<Vec<_>>()
        };
        assert_eq!(
            found(&[(1, 1), (3, 3), (4, 4), (6, 6)], &[(2, 2), (3, 3), (4, 5), (7, 7)]),
            [(1, None), (2, Some(2)), (4, Some(5)), (6, None), (7, Some(7))]
        );
        assert_eq!(found(&[], &[(1, 1)]), [(1, Some(1))]);
        assert_eq!(found(&[(1, 1)], &[]), [(1, None)]);
        let one = map(&[(1, 1)]);
        assert!(differing(&one, &one.clone(), |_, _| false).is_empty(), "one value is not walked");
    }

    #[test]
    fn it_is_stored_as_its_value() {
        let value: Shared<Vec<u8>> = vec![1, 2].into();
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(text, "[1,2]");
        assert_eq!(serde_json::from_str::<Shared<Vec<u8>>>(&text).unwrap(), value);
    }
}

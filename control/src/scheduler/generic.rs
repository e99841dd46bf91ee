//! Generic resources of a node: what is free, and who gets which.
//!
//! Invariants: a kind that a node names one by one is given by name, each to one task at a time; a kind that it counts is given by number.

use std::collections::{BTreeMap, BTreeSet};

use mesh_state::spec::{GenericResource, Resources};

/// How many of each kind a task wants.
pub type Wanted = BTreeMap<String, i64>;

/// What tasks with these resources want.
pub fn wanted(resources: Option<&Resources>) -> Wanted {
    let reservations = resources.and_then(|resources| resources.reservations.as_ref());
    let mut wanted = Wanted::new();
    for resource in reservations.into_iter().flat_map(|reserved| &reserved.generic_resources) {
        let count = match resource {
            GenericResource::Discrete(resource) => resource.value,
            GenericResource::Named(_) => 1,
        };
        *wanted.entry(resource.kind().to_owned()).or_default() += count;
    }
    wanted.retain(|_, count| *count > 0);
    wanted
}

/// What is free on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Free {
    counted: BTreeMap<String, i64>,
    named: BTreeMap<String, BTreeSet<String>>,
}

impl Free {
    /// All that a node has.
    pub fn all(resources: &[GenericResource]) -> Self {
        let mut free = Self::default();
        for resource in resources {
            match resource {
                GenericResource::Named(one) => {
                    free.named.entry(one.kind.clone()).or_default().insert(one.value.clone());
                }
                GenericResource::Discrete(some) => {
                    *free.counted.entry(some.kind.clone()).or_default() += some.value;
                }
            }
        }
        free
    }

    /// Whether there is enough of every kind.
    pub fn has(&self, wanted: &Wanted) -> bool {
        wanted.iter().all(|(kind, count)| {
            let named =
                self.named.get(kind).map_or(0, |names| i64::try_from(names.len()).unwrap_or(i64::MAX));
            self.counted.get(kind).copied().unwrap_or_default().max(named) >= *count
        })
    }

    /// Takes what a task was given.
    pub fn take(&mut self, given: &[GenericResource]) {
        for resource in given {
            match resource {
                GenericResource::Named(one) => {
                    if let Some(names) = self.named.get_mut(&one.kind) {
                        names.remove(&one.value);
                    }
                }
                GenericResource::Discrete(some) => {
                    *self.counted.entry(some.kind.clone()).or_default() -= some.value;
                }
            }
        }
    }

    /// What a task that wants this is given, if there is enough.
    pub fn choose(&self, wanted: &Wanted) -> Vec<GenericResource> {
        let mut given = Vec::new();
        for (kind, count) in wanted {
            match self
                .named
                .get(kind)
                .filter(|names| i64::try_from(names.len()).is_ok_and(|have| have >= *count))
            {
                Some(names) => {
                    let count = usize::try_from(*count).unwrap_or_default();
                    given.extend(names.iter().take(count).map(|name| GenericResource::named(kind, name)));
                }
                None => given.push(GenericResource::discrete(kind, *count)),
            }
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(kind: &str, count: i64) -> Wanted {
        BTreeMap::from([(kind.to_owned(), count)])
    }

    #[test]
    fn named_ones_are_given_by_name_and_counted_ones_by_number() {
        let has = [
            GenericResource::named("gpu", "b"),
            GenericResource::named("gpu", "a"),
            GenericResource::discrete("ssd", 3),
        ];
        let mut free = Free::all(&has);
        assert!(free.has(&wants("gpu", 2)) && !free.has(&wants("gpu", 3)));
        assert!(free.has(&wants("ssd", 3)) && !free.has(&wants("tape", 1)));
        let gpu = free.choose(&wants("gpu", 1));
        assert_eq!(gpu, [GenericResource::named("gpu", "a")]);
        free.take(&gpu);
        assert_eq!(free.choose(&wants("gpu", 1)), [GenericResource::named("gpu", "b")]);
        let ssd = free.choose(&wants("ssd", 2));
        assert_eq!(ssd, [GenericResource::discrete("ssd", 2)]);
        free.take(&ssd);
        assert!(free.has(&wants("ssd", 1)) && !free.has(&wants("ssd", 2)));
    }
}

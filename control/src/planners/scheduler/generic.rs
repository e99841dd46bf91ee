//! Generic resources of a node: the free ones, and those that a task gets.
//!
//! Invariants: if a node lists a kind's resources by name, each name is given to one task at a
//! time; if it gives a count, tasks get numbers. A task that requests a resource by name gets that
//! one, or waits.

use std::collections::{BTreeMap, BTreeSet};

use mesh_state::spec::{GenericResource, Resources};

/// A task's requests, by kind.
pub type WantedResources = BTreeMap<String, OfKind>;

/// A task's request of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfKind {
    /// The resources requested by name.
    names: BTreeSet<String>,
    /// The number of further ones.
    count: i64,
}

impl OfKind {
    fn total(&self) -> i64 {
        self.count.saturating_add(i64::try_from(self.names.len()).unwrap_or(i64::MAX))
    }
}

/// The requests in a task's resources.
pub fn wanted(resources: Option<&Resources>) -> WantedResources {
    let reservations = resources.and_then(|resources| resources.reservations.as_ref());
    let mut wanted = WantedResources::new();
    for resource in reservations.into_iter().flat_map(|reserved| &reserved.generic_resources) {
        let of_kind = wanted.entry(resource.kind().to_owned()).or_default();
        match resource {
            GenericResource::Discrete(resource) => {
                of_kind.count = of_kind.count.saturating_add(resource.value.max(0));
            }
            GenericResource::Named(resource) => drop(of_kind.names.insert(resource.value.clone())),
        }
    }
    wanted.retain(|_, of_kind| of_kind.total() > 0);
    wanted
}

/// The free resources of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Free {
    counted: BTreeMap<String, i64>,
    named: BTreeMap<String, BTreeSet<String>>,
}

impl Free {
    /// All resources of a node.
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
    pub fn has(&self, wanted: &WantedResources) -> bool {
        wanted.iter().all(|(kind, wanted)| {
            let counted = self.counted.get(kind).copied().unwrap_or_default();
            self.gives_by_name(kind, wanted) || (wanted.names.is_empty() && counted >= wanted.count)
        })
    }

    /// Removes the resources that a task was given.
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

    /// Whether the node has enough named resources of a kind, including those requested by name.
    fn gives_by_name(&self, kind: &str, wanted: &OfKind) -> bool {
        self.named.get(kind).is_some_and(|free| {
            wanted.names.is_subset(free) && i64::try_from(free.len()).is_ok_and(|have| have >= wanted.total())
        })
    }

    /// The resources that a task with these requests gets, if there is enough.
    pub fn choose(&self, wanted: &WantedResources) -> Vec<GenericResource> {
        let mut given = Vec::new();
        for (kind, wanted) in wanted {
            match self.named.get(kind).filter(|_| self.gives_by_name(kind, wanted)) {
                Some(free) => {
                    let count = usize::try_from(wanted.count).unwrap_or_default();
                    let others = free.difference(&wanted.names).take(count);
                    given.extend(
                        wanted.names.iter().chain(others).map(|name| GenericResource::named(kind, name)),
                    );
                }
                None => given.push(GenericResource::discrete(kind, wanted.count)),
            }
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::spec::ResourceReservations;

    use super::*;

    fn wants(kind: &str, count: i64) -> WantedResources {
        BTreeMap::from([(kind.to_owned(), OfKind { names: BTreeSet::new(), count })])
    }

    #[test]
    fn one_asked_for_by_name_is_that_one_or_none() {
        let has = ["a", "b", "c"].map(|name| GenericResource::named("gpu", name));
        let mut free = Free::all(&[has.as_slice(), &[GenericResource::discrete("ssd", 3)]].concat());
        let asked = |resources: &[GenericResource]| {
            let reservations = ResourceReservations {
                generic_resources: resources.to_vec(),
                ..ResourceReservations::default()
            };
            wanted(Some(&Resources { reservations: Some(reservations), ..Resources::default() }))
        };
        let b = asked(&[GenericResource::named("gpu", "b")]);
        assert_eq!(free.choose(&b), [GenericResource::named("gpu", "b")]);
        let b_and_another = asked(&[GenericResource::discrete("gpu", 1), GenericResource::named("gpu", "b")]);
        assert!(free.has(&b_and_another));
        let given = free.choose(&b_and_another);
        assert_eq!(given, [GenericResource::named("gpu", "b"), GenericResource::named("gpu", "a")]);
        free.take(&given);
        assert!(!free.has(&b), "another task has it");
        assert!(!free.has(&asked(&[GenericResource::named("gpu", "z")])), "no such one");
        assert!(!free.has(&asked(&[GenericResource::named("ssd", "a")])), "a counted kind has no names");
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

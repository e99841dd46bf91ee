//! What must hold of a cluster after each fault. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// What was seen of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Each node's status, as `docker node ls` shows it.
    pub(super) statuses: BTreeMap<String, String>,
    /// The daemons that have ended by themselves, as text.
    pub(super) ended: Vec<String>,
    /// The tasks that should run and do, by service: slot and task id.
    pub(super) running: BTreeMap<String, Vec<(String, String)>>,
    /// Tasks that should run and don't, as text.
    pub(super) late: Vec<String>,
    /// The task ids of the containers that run on each node.
    pub(super) containers: BTreeMap<String, BTreeSet<String>>,
    /// Each node's table: the number of a service's backends that may get connections, and of those
    /// that may not (draining or unhealthy).
    pub(super) tables: BTreeMap<String, BTreeMap<String, (usize, usize)>>,
    /// The task ids of programs that each node has pinned.
    pub(super) pins: BTreeMap<String, BTreeSet<String>>,
    /// The ids of all tasks that managers list, those of the history too.
    pub(super) listed: BTreeSet<String>,
    /// The task ids of all containers that each node has, stopped ones too.
    pub(super) kept: BTreeMap<String, BTreeSet<String>>,
    /// The task ids whose secrets and configs lie on each node.
    pub(super) files: BTreeMap<String, BTreeSet<String>>,
    /// The addresses on networks of each running task.
    pub(super) addresses: BTreeMap<String, Vec<String>>,
}

/// What a broken invariant is called in the table at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Invariant {
    /// Every daemon runs.
    Daemons,
    /// Every node is ready, and every service has as many running tasks as it should.
    Desired,
    /// No slot has two running tasks.
    Slots,
    /// The running containers of all nodes are those of the running tasks.
    Containers,
    /// Each node's table has as many backends as there are running tasks, all of them active.
    Tables,
    /// Each running task has an address, and no two have the same.
    Addresses,
    /// Nothing is left of tasks that are gone: containers, programs, secrets.
    Leftovers,
    /// No connection was lost beyond the fault's bound.
    Connections,
}

impl Invariant {
    /// All of them, in the order of the table's columns.
    pub(super) const ALL: [Self; 8] = [
        Self::Daemons,
        Self::Desired,
        Self::Slots,
        Self::Containers,
        Self::Tables,
        Self::Addresses,
        Self::Leftovers,
        Self::Connections,
    ];

    /// The column's title.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Daemons => "daemons",
            Self::Desired => "desired",
            Self::Slots => "slots",
            Self::Containers => "containers",
            Self::Tables => "tables",
            Self::Addresses => "addresses",
            Self::Leftovers => "leftovers",
            Self::Connections => "connections",
        }
    }
}

/// An invariant that doesn't hold, and what was seen instead.
pub(super) type Breach = (Invariant, String);

/// The breaches in what was seen; `wanted` has the number of tasks of each service.
pub(super) fn breaches(seen: &Seen, wanted: &BTreeMap<String, usize>) -> Vec<Breach> {
    let ended = seen.ended.iter().map(|daemon| (Invariant::Daemons, format!("{daemon} has ended")));
    let mut found: Vec<Breach> = ended.collect();
    for (node, status) in seen.statuses.iter().filter(|(_, status)| *status != "Ready") {
        found.push((Invariant::Desired, format!("{node} is {status}")));
    }
    for (service, count) in wanted {
        let tasks = seen.running.get(service).map_or(&[][..], Vec::as_slice);
        if tasks.len() != *count {
            let text = format!("expected {count} running tasks of {service}, saw {}", tasks.len());
            found.push((Invariant::Desired, text));
        }
        let mut slots = BTreeSet::new();
        for (slot, _) in tasks.iter().filter(|(slot, _)| !slots.insert(slot)) {
            found.push((Invariant::Slots, format!("slot {slot} has two running tasks")));
        }
    }
    found.extend(seen.late.iter().map(|task| (Invariant::Desired, format!("doesn't run: {task}"))));
    let tasks: BTreeSet<&String> = seen.running.values().flatten().map(|(_, id)| id).collect();
    let present: BTreeSet<&String> = seen.containers.values().flatten().collect();
    for id in tasks.difference(&present) {
        found.push((Invariant::Containers, format!("task {id} is told as running and has no container")));
    }
    for (node, containers) in &seen.containers {
        for id in containers.iter().filter(|id| !tasks.contains(id)) {
            found.push((
                Invariant::Containers,
                format!("{node} runs a container of task {id}, which is over"),
            ));
        }
    }
    for (node, table) in &seen.tables {
        for service in wanted.keys() {
            let tasks = seen.running.get(service).map_or(0, Vec::len);
            let (active, others) = table.get(service).copied().unwrap_or_default();
            if (active, others) != (tasks, 0) {
                let text = format!(
                    "{node} has {active} active backends of {service} and {others} others, for {tasks} tasks"
                );
                found.push((Invariant::Tables, text));
            }
        }
    }
    found.extend(address_breaches(seen));
    found.extend(leftovers(seen, &tasks));
    found
}

/// Tasks without an address, and addresses of several tasks; nothing if no task has an address, as
/// where the data path has no networks.
fn address_breaches(seen: &Seen) -> Vec<Breach> {
    let mut found = Vec::new();
    let mut holders: BTreeMap<&String, &String> = BTreeMap::new();
    let any = seen.addresses.values().any(|addresses| !addresses.is_empty());
    for (task, addresses) in seen.addresses.iter().filter(|_| any) {
        if addresses.is_empty() {
            found.push((Invariant::Addresses, format!("task {task} has no address")));
        }
        for address in addresses {
            if let Some(other) = holders.insert(address, task) {
                found.push((Invariant::Addresses, format!("{address} is of task {other} and of {task}")));
            }
        }
    }
    found
}

/// What nodes have of tasks that are gone; `running` has those that run.
fn leftovers(seen: &Seen, running: &BTreeSet<&String>) -> Vec<Breach> {
    let mut found = Vec::new();
    let mut look = |what: &str, nodes: &BTreeMap<String, BTreeSet<String>>, known: &BTreeSet<&String>| {
        for (node, ids) in nodes {
            for id in ids.iter().filter(|id| !known.contains(id)) {
                found.push((Invariant::Leftovers, format!("{node} has {what} of task {id}")));
            }
        }
    };
    look("a program pinned", &seen.pins, running);
    look("files", &seen.files, running);
    look("a container", &seen.kept, &seen.listed.iter().collect());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    /// A node's table with the one service.
    fn table(node: &str, active: usize, others: usize) -> (String, BTreeMap<String, (usize, usize)>) {
        (node.to_owned(), BTreeMap::from([("web".to_owned(), (active, others))]))
    }

    fn address(task: &str, addresses: &[&str]) -> (String, Vec<String>) {
        (task.to_owned(), addresses.iter().map(|address| (*address).to_owned()).collect())
    }

    /// Two tasks of one service, one on each of two nodes, in both tables.
    fn good() -> (Seen, BTreeMap<String, usize>) {
        let each =
            |a: &[&str], b: &[&str]| BTreeMap::from([("a".to_owned(), set(a)), ("b".to_owned(), set(b))]);
        let ready = |name: &str| (name.to_owned(), "Ready".to_owned());
        let slot = |slot: &str, id: &str| (slot.to_owned(), id.to_owned());
        let seen = Seen {
            statuses: BTreeMap::from([ready("a"), ready("b")]),
            running: BTreeMap::from([("web".to_owned(), vec![slot("web.1", "t1"), slot("web.2", "t2")])]),
            ended: Vec::new(),
            late: Vec::new(),
            containers: each(&["t1"], &["t2"]),
            tables: BTreeMap::from([table("a", 2, 0), table("b", 2, 0)]),
            pins: each(&["t1"], &[]),
            listed: set(&["t0", "t1", "t2"]),
            kept: each(&["t0", "t1"], &["t2"]),
            files: each(&["t1"], &["t2"]),
            addresses: BTreeMap::from([address("t1", &["10.0.1.3/24"]), address("t2", &["10.0.1.4/24"])]),
        };
        (seen, BTreeMap::from([("web".to_owned(), 2)]))
    }

    fn kinds(seen: &Seen, wanted: &BTreeMap<String, usize>) -> Vec<Invariant> {
        breaches(seen, wanted).into_iter().map(|(invariant, _)| invariant).collect()
    }

    #[test]
    fn a_cluster_as_it_should_be_has_no_breach() {
        let (seen, wanted) = good();
        assert_eq!(breaches(&seen, &wanted), []);
    }

    #[test]
    fn each_breach_is_found() {
        type Spoil = fn(&mut Seen);
        let cases: [(Spoil, Invariant); 14] = [
            (|seen| seen.ended.push("etcd of a".to_owned()), Invariant::Daemons),
            (|seen| drop(seen.statuses.insert("a".to_owned(), "Down".to_owned())), Invariant::Desired),
            (|seen| seen.late.push("web.3: Preparing".to_owned()), Invariant::Desired),
            (|seen| seen.running.get_mut("web").unwrap()[1].0 = "web.1".to_owned(), Invariant::Slots),
            (|seen| drop(seen.containers.insert("a".to_owned(), set(&[]))), Invariant::Containers),
            (|seen| drop(seen.containers.insert("a".to_owned(), set(&["t1", "t9"]))), Invariant::Containers),
            (|seen| seen.tables.extend([table("b", 1, 0)]), Invariant::Tables),
            (|seen| seen.tables.extend([table("b", 2, 1)]), Invariant::Tables),
            (|seen| drop(seen.pins.insert("b".to_owned(), set(&["t9"]))), Invariant::Leftovers),
            (|seen| drop(seen.running.get_mut("web").unwrap().pop()), Invariant::Desired),
            (|seen| drop(seen.files.insert("a".to_owned(), set(&["t0"]))), Invariant::Leftovers),
            (|seen| drop(seen.kept.insert("b".to_owned(), set(&["t2", "t9"]))), Invariant::Leftovers),
            (|seen| seen.addresses.extend([address("t2", &[])]), Invariant::Addresses),
            (|seen| seen.addresses.extend([address("t2", &["10.0.1.3/24"])]), Invariant::Addresses),
        ];
        for (index, (spoil, expected)) in cases.into_iter().enumerate() {
            let (mut seen, wanted) = good();
            spoil(&mut seen);
            assert!(
                kinds(&seen, &wanted).contains(&expected),
                "case {index}: {:?}",
                breaches(&seen, &wanted)
            );
        }
    }
}

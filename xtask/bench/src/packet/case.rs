//! The measured cases: traffic, and the size of the tables.

use mesh_ebpf::flow_table::homes_for;

/// Packets of one kind, on one program, whose cost is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    /// The name in tables and plots.
    pub(super) name: &'static str,
    /// What packets are made, and what tables they meet.
    pub(super) kind: CaseKind,
    /// What they are sent to.
    pub(super) front: Front,
    /// The number of flows or, for packets that begin or confirm a flow, of packets.
    pub(super) flows: u32,
    /// Services in the tables: published ports or virtual IPs.
    pub(super) services: u32,
    /// Whether the traffic is spread over all of them, or goes to one.
    pub(super) is_spread: bool,
    /// Backends of each service.
    pub(super) backends: u32,
    /// The number of CPUs that receive packets, each with flows of its own.
    pub(super) cpus: u32,
    /// The target: the highest cost as a multiple of a bare XDP_TX.
    pub(super) target: Option<f64>,
}

/// The packets of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CaseKind {
    /// Packets of established connections.
    Hit,
    /// SYNs of new connections, with room in the table.
    Syn,
    /// SYNs of new connections, each of which evicts another one from a full table.
    Crowd,
    /// The same with the SYN guard, which remembers few of them.
    Flood,
    /// The packets by which clients confirm their connections (first ACK).
    FirstAck,
}

/// What clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Front {
    /// A published port of the node: XDP on its uplink.
    Port,
    /// A virtual IP of a network: TC on the task's veth.
    VirtualIp,
}

const fn case(name: &'static str, kind: CaseKind, flows: u32) -> Case {
    let front = Front::Port;
    Case { name, kind, front, flows, services: 1, is_spread: false, backends: 3, cpus: 1, target: None }
}

/// A case of [`Front::VirtualIp`].
const fn virtual_ip(name: &'static str, kind: CaseKind) -> Case {
    Case { front: Front::VirtualIp, ..case(name, kind, FLOWS_OF_TASK) }
}

impl Case {
    const fn at_most(self, target: f64) -> Self {
        Self { target: Some(target), ..self }
    }

    const fn on_two_cpus(self) -> Self {
        Self { cpus: 2, ..self }
    }

    const fn services(self, services: u32) -> Self {
        Self { services, ..self }
    }

    const fn spread(self, services: u32) -> Self {
        Self { services, is_spread: true, ..self }
    }

    const fn backends(self, backends: u32) -> Self {
        Self { backends, ..self }
    }

    /// The size of the flow table: as the agent would make it for a quarter more flows than there
    /// are or, for a full table, for fewer.
    pub(super) const fn homes(&self) -> u32 {
        match self.kind {
            CaseKind::Crowd | CaseKind::Flood => self.flows,
            CaseKind::Hit | CaseKind::Syn | CaseKind::FirstAck => homes_for(self.flows + self.flows / 4),
        }
    }

    /// A smaller case, to check only that it runs.
    pub(super) fn quick(self) -> Self {
        Self {
            flows: self.flows.min(2000),
            services: self.services.min(100),
            backends: self.backends.min(100),
            ..self
        }
    }
}

/// The number of flows where it is not varied.
const FLOWS: u32 = 100_000;

/// The number of flows of one task, which differ in its port.
const FLOWS_OF_TASK: u32 = 50_000;

/// The number of flows of a full table.
const FULL: u32 = 65_536;

/// The case that the check of a cookie is held against.
pub(super) const HIT: &str = "flow hit, 100 k flows";
const SYN: &str = "SYN of a new flow";
const CROWD: &str = "SYN into a full table, remembered";
const FLOOD: &str = "flood: SYN into a full table, guarded";
const HIT_ON_TWO: &str = "flow hit, 100 k flows, two CPUs";
const SYN_ON_TWO: &str = "SYN of a new flow, two CPUs";
const CROWD_ON_TWO: &str = "SYN into a full table, remembered, two CPUs";
const FLOOD_ON_TWO: &str = "flood: SYN into a full table, guarded, two CPUs";

/// The cost of a case relative to another of the same round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Relation {
    /// The case's name.
    pub(super) case: &'static str,
    /// The other case's name.
    pub(super) other: &'static str,
    /// The highest ratio.
    pub(super) target: Option<f64>,
}

/// The pairs of cases that are compared.
pub(super) const RELATIONS: [Relation; 5] = [
    Relation { case: FLOOD, other: CROWD, target: Some(0.5) },
    Relation { case: FLOOD_ON_TWO, other: CROWD_ON_TWO, target: Some(0.5) },
    Relation { case: HIT_ON_TWO, other: HIT, target: Some(1.1) },
    Relation { case: SYN_ON_TWO, other: SYN, target: None },
    Relation { case: FLOOD_ON_TWO, other: FLOOD, target: None },
];

/// Every case, in the order of the report.
pub(super) const ALL: [Case; 33] = [
    case("flow hit, 1 k flows", CaseKind::Hit, 1000).at_most(3.3),
    case(HIT, CaseKind::Hit, FLOWS).at_most(5.6),
    case("flow hit, 1 M flows", CaseKind::Hit, 1_000_000).at_most(7.2),
    case(SYN, CaseKind::Syn, FLOWS).at_most(11.0),
    case(CROWD, CaseKind::Crowd, FULL),
    case(FLOOD, CaseKind::Flood, FULL),
    case("first ACK", CaseKind::FirstAck, FLOWS).at_most(15.0),
    case(HIT_ON_TWO, CaseKind::Hit, FLOWS).on_two_cpus(),
    case(SYN_ON_TWO, CaseKind::Syn, FLOWS).on_two_cpus(),
    case(CROWD_ON_TWO, CaseKind::Crowd, FULL).on_two_cpus(),
    case(FLOOD_ON_TWO, CaseKind::Flood, FULL).on_two_cpus(),
    case("hit, one of 1 service", CaseKind::Hit, FLOWS).services(1),
    case("hit, one of 1 000 services", CaseKind::Hit, FLOWS).services(1000),
    case("hit, one of 10 000 services", CaseKind::Hit, FLOWS).services(10_000),
    case("hit, spread over 1 000 services", CaseKind::Hit, FLOWS).spread(1000),
    case("hit, spread over 10 000 services", CaseKind::Hit, FLOWS).spread(10_000),
    case("SYN, one of 1 service", CaseKind::Syn, FLOWS).services(1),
    case("SYN, one of 1 000 services", CaseKind::Syn, FLOWS).services(1000),
    case("SYN, one of 10 000 services", CaseKind::Syn, FLOWS).services(10_000),
    case("hit, 3 backends", CaseKind::Hit, FLOWS).backends(3),
    case("hit, 5 000 backends", CaseKind::Hit, FLOWS).backends(5000),
    case("SYN, 3 backends", CaseKind::Syn, FLOWS).backends(3),
    case("SYN, 5 000 backends", CaseKind::Syn, FLOWS).backends(5000),
    virtual_ip("virtual IP: hit, one of 1 service", CaseKind::Hit),
    virtual_ip("virtual IP: hit, one of 1 000 services", CaseKind::Hit).services(1000),
    virtual_ip("virtual IP: hit, one of 5 000 services", CaseKind::Hit).services(5000),
    virtual_ip("virtual IP: SYN, one of 1 service", CaseKind::Syn),
    virtual_ip("virtual IP: SYN, one of 1 000 services", CaseKind::Syn).services(1000),
    virtual_ip("virtual IP: SYN, one of 5 000 services", CaseKind::Syn).services(5000),
    virtual_ip("virtual IP: hit, 3 backends", CaseKind::Hit).backends(3),
    virtual_ip("virtual IP: hit, 1 000 backends", CaseKind::Hit).backends(1000),
    virtual_ip("virtual IP: SYN, 3 backends", CaseKind::Syn).backends(3),
    virtual_ip("virtual IP: SYN, 1 000 backends", CaseKind::Syn).backends(1000),
];

/// Cases with equal costs: the later ones must be within a tenth of the first.
pub(super) const FLAT: [&[&str]; 8] = [
    &["hit, one of 1 service", "hit, one of 1 000 services", "hit, one of 10 000 services"],
    &["SYN, one of 1 service", "SYN, one of 1 000 services", "SYN, one of 10 000 services"],
    &["hit, 3 backends", "hit, 5 000 backends"],
    &["SYN, 3 backends", "SYN, 5 000 backends"],
    &[
        "virtual IP: hit, one of 1 service",
        "virtual IP: hit, one of 1 000 services",
        "virtual IP: hit, one of 5 000 services",
    ],
    &[
        "virtual IP: SYN, one of 1 service",
        "virtual IP: SYN, one of 1 000 services",
        "virtual IP: SYN, one of 5 000 services",
    ],
    &["virtual IP: hit, 3 backends", "virtual IP: hit, 1 000 backends"],
    &["virtual IP: SYN, 3 backends", "virtual IP: SYN, 1 000 backends"],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compared_is_measured() {
        let related = RELATIONS.iter().flat_map(|relation| [&relation.case, &relation.other]);
        for name in FLAT.iter().copied().flatten().chain(related) {
            assert_eq!(ALL.iter().filter(|case| case.name == *name).count(), 1, "cases called {name}");
        }
    }
}

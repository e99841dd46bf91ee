//! Measures the cost of mesh's programs per packet: the ingress path with everything on, tunnel
//! headers and counters included, by XDP for published ports and by TC for virtual IPs.
//!
//! Frames from one end of a veth pair meet the attached program at the other; the kernel counts its
//! run time. Every case is compared with a bare XDP_TX that was measured right before it, with new
//! tables in each round, and with an XDP_TX that reads a line of memory for each flow: no program
//! that remembers flows can cost less.
//!
//! Invariant: a case counts only if the program forwarded every frame.

mod case;
mod cookie;
mod outcome;
mod rig;
mod tables;
mod virtual_ip;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use mesh_ebpf::abi::{Mac, names};
use mesh_ebpf::flow_table::cell_count;
use mesh_ebpf::generator::Recipe;
use mesh_ebpf::parse::tcp::Flags;
use mesh_lab::netns::Netns;

use self::case::{Case, CaseKind, Front};
use self::cookie::CookieCheck;
use self::outcome::Outcome;
use self::rig::{BARE, NODE_MAC, ONE_LINE, Rig, SOURCE_MAC};
use super::objects::{self, Objects};
use super::{leftovers, report};

/// Rounds of a measured run; odd, so that the median is a sample.
const ROUNDS: u32 = 7;
/// Measured frames of a case without a limit of its own.
const FRAMES: u32 = 300_000;
/// SYNs per second that the guard remembers in a flood: so few that hardly any measured one is,
/// however slow the machine.
const GUARD_RATE: u32 = 1000;
/// Frames before the measured ones, where each is of a new flow.
const WARM_UP: u32 = 4096;

/// Measures all cases, or those with `only` in their names, and prints the results; writes the
/// report after a full run.
pub(super) fn run(quick: bool, only: Option<&str>) -> Result<()> {
    let begun = Instant::now();
    let objects = objects::compile()?;
    let netns = Netns::named(leftovers::clear("mesh-bench-")?);
    netns.add()?;
    let measured =
        rig::plug(&netns).and_then(|()| netns.run(|| rounds(&objects, quick, only.unwrap_or_default())));
    netns.delete()?;
    let (outcomes, check) = measured?;
    let text = outcome::text(&outcomes) + &check.text();
    println!("{text}");
    if !quick && only.is_none() {
        let plots = [("packet.svg".to_owned(), outcome::plot(&outcomes))];
        report::write("packet", &outcome::section(&text, ROUNDS), &plots)?;
    }
    println!("took {} s", begun.elapsed().as_secs());
    Ok(())
}

fn rounds(objects: &Objects, quick: bool, only: &str) -> Result<(Vec<Outcome>, CookieCheck)> {
    let cpus = cpus()?;
    let wanted = case::ALL.into_iter().filter(|case| case.name.contains(only));
    let wanted = wanted.filter(|case| case.cpus as usize <= cpus.len());
    let cases: Vec<Case> = wanted.map(|case| if quick { case.quick() } else { case }).collect();
    ensure!(!cases.is_empty(), "no case has `{only}` in its name");
    let (rounds, frames) = if quick { (1, 5000) } else { (ROUNDS, FRAMES) };
    let mut outcomes: Vec<Outcome> = cases.iter().map(|case| Outcome::of(*case)).collect();
    let mut rig = Rig::new(objects, cpus)?;
    let mut check = CookieCheck::new(&mut rig)?;
    for round in 1..=rounds {
        let begun = Instant::now();
        // The order alternates, so that another case is affected by what a case leaves in caches.
        let order: Vec<usize> =
            if round % 2 == 1 { (0..cases.len()).collect() } else { (0..cases.len()).rev().collect() };
        for index in order {
            let recipe = recipe(&cases[index], Flags::ACK);
            rig.use_cpus(cases[index].cpus);
            let bare = rig.baseline(BARE, &recipe, frames)?;
            let one_line = rig.baseline(ONE_LINE, &recipe, frames)?;
            let runs = measure(&mut rig, objects, &cases[index], frames)
                .with_context(|| format!("measure `{}`", cases[index].name))?;
            outcomes[index].add(bare.mean_ns, one_line.mean_ns, runs.mean_ns);
            if cases[index].name == case::HIT {
                check.measure(&mut rig, &recipe, frames, runs.mean_ns)?;
            }
        }
        println!("packet: round {round} of {rounds}, {:.0} s", begun.elapsed().as_secs_f64());
    }
    Ok((outcomes, check))
}

/// Measures one case, with tables of its own.
fn measure(rig: &mut Rig, objects: &Objects, case: &Case, frames: u32) -> Result<rig::Runs> {
    let mut object = tables::load(&objects.programs, case)?;
    tables::fill(&mut object, case, rig.node_ifindex)?;
    let mut _beside = None;
    let program = match case.front {
        Front::Port => {
            rig::attach(&mut object, names::PROGRAM_XDP)?;
            names::PROGRAM_XDP
        }
        Front::VirtualIp => {
            virtual_ip::fill(&mut object, case, rig.node_ifindex)?;
            _beside = Some(virtual_ip::attach(&mut object, objects)?);
            names::PROGRAM_OVERLAY
        }
    };
    let (syn, ack) = (recipe(case, Flags::SYN), recipe(case, Flags::ACK));
    let (measured, first, count) = match case.kind {
        CaseKind::Hit => {
            // Each is sent twice: a frame that was lost would leave a flow out.
            for step in [&syn, &syn, &ack, &ack] {
                rig.send(step, 0, case.flows)?;
            }
            (ack, 0, frames.max(2 * case.flows))
        }
        CaseKind::Syn => {
            rig.send(&syn, 0, WARM_UP)?;
            (syn, u64::from(WARM_UP), case.flows)
        }
        CaseKind::Crowd => {
            let before = 3 * case.flows;
            rig.send(&syn, 0, before)?;
            (syn, u64::from(before), frames)
        }
        CaseKind::Flood => {
            let before = 3 * case.flows;
            rig.send(&syn, 0, before)?;
            // The table is full: the guard is switched on now, and its burst is used up.
            tables::configure(&mut object, GUARD_RATE)?;
            rig.send(&syn, u64::from(before), WARM_UP)?;
            (syn, u64::from(before + WARM_UP), frames)
        }
        CaseKind::FirstAck => {
            rig.send(&syn, 0, WARM_UP + case.flows)?;
            rig.send(&syn, 0, WARM_UP + case.flows)?;
            rig.send(&ack, 0, WARM_UP)?;
            (ack, u64::from(WARM_UP), case.flows)
        }
    };
    let before = tables::forwarded(&object, case)?;
    let runs = rig.measure(&object, program, &measured, first, count)?;
    let forwarded = tables::forwarded(&object, case)? - before;
    ensure!(
        forwarded * 1000 >= runs.count * 999,
        "the program forwarded {forwarded} of {} packets: it did something else than what is measured",
        runs.count
    );
    Ok(runs)
}

/// The case's packets, with these TCP flags.
fn recipe(case: &Case, flags: u8) -> Recipe {
    let is_new = matches!(case.kind, CaseKind::Syn | CaseKind::Crowd | CaseKind::Flood | CaseKind::FirstAck);
    Recipe {
        flows: if is_new { 0 } else { case.flows },
        stride: stride(case.flows),
        services: if case.is_spread { case.services } else { 1 },
        lines: cell_count(case.homes()),
        node: match case.front {
            Front::Port => tables::ADDRESS.octets(),
            Front::VirtualIp => virtual_ip::address(case.services / 2).octets(),
        },
        client: match case.front {
            Front::Port => [0; 4],
            Front::VirtualIp => virtual_ip::CLIENT.octets(),
        },
        port: if case.is_spread { tables::FIRST_PORT } else { tables::port(case.services / 2) },
        flags: u16::from(flags),
        node_mac: Mac(NODE_MAC),
        client_mac: Mac(SOURCE_MAC),
        ..Recipe::default()
    }
}

/// A step without a common factor with `flows`, a number of the form 2^a·5^b, that jumps far.
fn stride(flows: u32) -> u32 {
    let far = (flows / 8 * 5) | 1;
    if far.is_multiple_of(5) { far + 2 } else { far }
}

/// The CPUs that this process may use, the last one first: the kernel's own work usually runs on
/// the first ones.
fn cpus() -> Result<Vec<usize>> {
    let allowed = rustix::thread::sched_getaffinity(None).context("ask for the CPUs of this thread")?;
    let cpus: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).rev().filter(|cpu| allowed.is_set(*cpu)).collect();
    ensure!(!cpus.is_empty(), "no CPU to run on");
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_visit_every_flow() {
        for flows in [1000, 2000, 50_000, 65_536, 100_000, 1_000_000] {
            let (mut a, mut b) = (flows, stride(flows));
            while b > 0 {
                (a, b) = (b, a % b);
            }
            assert_eq!(a, 1, "common factor of {flows} and its stride {}", stride(flows));
        }
    }
}

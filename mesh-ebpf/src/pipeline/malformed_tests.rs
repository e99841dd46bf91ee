//! Property tests with malformed packets: every fixture's packet, with bytes changed, cut off and
//! added, through the fixture's program.

use std::sync::LazyLock;
use std::vec::Vec;

use proptest::prelude::*;

use crate::csum;
use crate::testing::fixtures::{self, Fixture};
use crate::testing::{Frame, Hook, HostTables, without_cookie};
use crate::verdict::Verdict;

/// Offset of the IP header in a plain frame; the TCP header's is below.
const IP: usize = 14;
const TCP: usize = 34;

static FIXTURES: LazyLock<Vec<Fixture>> = LazyLock::new(fixtures::all);

/// Runs `bytes` at the fixture's hook; returns the verdict and the packet after it.
fn run(fixture: &Fixture, bytes: Vec<u8>) -> (Verdict, Vec<u8>) {
    let tables = HostTables::new(fixture.setup.clone());
    let mut packet = Frame::new(bytes);
    let verdict = fixture.hook.run(&mut packet, &tables);
    (verdict, packet.bytes)
}

/// The part of a passed packet that must not change: all but the cookie of a packet that the VXLAN
/// device gets, or has sent.
fn kept(fixture: &Fixture, packet: &[u8]) -> Vec<u8> {
    if matches!(fixture.hook, Hook::Uplink | Hook::Egress { .. }) {
        without_cookie(packet)
    } else {
        packet.to_vec()
    }
}

/// The error of the TCP checksum of a plain IPv4 frame: the folded sum over all that it covers.
/// 0xffff means that it is correct.
fn residue(frame: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let segment = &frame[TCP..];
    let pseudo = frame[IP + 12..IP + 20].chunks(2).map(word).sum::<u32>() + 6 + segment.len() as u32;
    csum::fold(segment.chunks(2).map(word).sum::<u32>() + pseudo)
}

/// A change of a packet.
#[derive(Clone, Debug)]
enum Harm {
    Overwrite { at: usize, value: u8 },
    Truncate { len: usize },
    Extend { bytes: Vec<u8> },
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        // Most bytes that decisions depend on are among the first: outer and inner headers.
        6 => (0_usize..130, any::<u8>()).prop_map(|(at, value)| Harm::Overwrite { at, value }),
        1 => (0_usize..160).prop_map(|len| Harm::Truncate { len }),
        1 => prop::collection::vec(any::<u8>(), 0..80).prop_map(|bytes| Harm::Extend { bytes }),
    ]
}

fn harmed(mut bytes: Vec<u8>, harms: &[Harm]) -> Vec<u8> {
    for harm in harms {
        match harm {
            Harm::Overwrite { at, value } => {
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte = *value;
                }
            }
            Harm::Truncate { len } => bytes.truncate(*len),
            Harm::Extend { bytes: more } => bytes.extend(more),
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40_000))]

    /// Nothing panics, and packets are passed to the host stack unchanged.
    #[test]
    fn harmed_packets_break_nothing(pick: prop::sample::Index, harms in prop::collection::vec(harm(), 1..6)) {
        let fixture = pick.get(&FIXTURES);
        let input = harmed(fixture.input.clone(), &harms);
        let (verdict, output) = run(fixture, input.clone());
        if verdict == Verdict::Pass {
            prop_assert_eq!(kept(fixture, &output), kept(fixture, &input), "passed but changed, after: {}", fixture.name);
        }
    }

    /// Random bytes cause no panic, and are passed unchanged or dropped.
    #[test]
    fn noise_breaks_nothing(pick: prop::sample::Index, noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let fixture = pick.get(&FIXTURES);
        let (verdict, output) = run(fixture, noise.clone());
        if verdict == Verdict::Pass {
            prop_assert_eq!(kept(fixture, &output), kept(fixture, &noise), "passed but changed, after: {}", fixture.name);
        }
    }

    /// A wrong checksum stays as wrong as it was, so that the receiver detects it, and a correct
    /// one stays correct.
    #[test]
    fn a_checksum_stays_as_right_or_wrong_as_it_was(
        pick: prop::sample::Index,
        payload in prop::collection::vec(any::<u8>(), 1..60),
        checksum: [u8; 2],
        is_wrong: bool,
    ) {
        let delivered: Vec<&Fixture> = FIXTURES.iter().filter(|fixture| is_plain_delivery(fixture)).collect();
        let fixture = pick.get(&delivered);
        let mut input = fixture.input.clone();
        input.extend(&payload);
        let total = (input.len() - IP) as u16;
        let (old, new) = ([input[IP + 2], input[IP + 3]], total.to_be_bytes());
        let header = csum::replace([input[IP + 10], input[IP + 11]], &old, &new);
        input[IP + 2..IP + 4].copy_from_slice(&new);
        input[IP + 10..IP + 12].copy_from_slice(&header);
        if is_wrong {
            input[TCP + 16..TCP + 18].copy_from_slice(&checksum);
        }
        let (verdict, output) = run(fixture, input.clone());
        prop_assert_eq!(verdict, fixture.verdict, "of: {}", fixture.name);
        prop_assert_eq!(residue(&output), residue(&input), "residue after: {}", fixture.name);
    }
}

/// Whether the fixture is a whole TCP packet over plain IPv4 that is delivered to a task.
fn is_plain_delivery(fixture: &Fixture) -> bool {
    let input = &fixture.input;
    matches!(fixture.verdict, Verdict::Deliver { .. })
        && input.get(12..15) == Some(&[0x08, 0x00, 0x45])
        && input.get(IP + 6..IP + 8).is_some_and(|fragment| [fragment[0] << 2, fragment[1]] == [0; 2])
        && input.get(IP + 9) == Some(&6)
        && input.len() > TCP + 20
}

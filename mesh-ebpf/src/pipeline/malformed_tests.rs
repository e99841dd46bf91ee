//! Packets that nobody should send: every fixture's, with bytes changed, cut off and added, through
//! its program.

use std::sync::LazyLock;
use std::vec::Vec;

use proptest::prelude::*;

use crate::csum;
use crate::testing::fixtures::{self, Fixture};
use crate::testing::{Frame, Hook, HostTables, without_cookie};
use crate::verdict::Verdict;

/// Where the headers are in a plain frame of TCP over IPv4.
const IP: usize = 14;
const TCP: usize = 34;

static FIXTURES: LazyLock<Vec<Fixture>> = LazyLock::new(fixtures::all);

/// What becomes of `bytes` where the fixture's packet comes in.
fn run(fixture: &Fixture, bytes: Vec<u8>) -> (Verdict, Vec<u8>) {
    let tables = HostTables::new(fixture.setup.clone());
    let mut packet = Frame::new(bytes);
    let verdict = fixture.hook.run(&mut packet, &tables);
    (verdict, packet.bytes)
}

/// What a packet that is passed keeps: all, but for the cookie of one that the VXLAN device gets,
/// or has sent.
fn kept(fixture: &Fixture, packet: &[u8]) -> Vec<u8> {
    if matches!(fixture.hook, Hook::Uplink | Hook::Egress { .. }) {
        without_cookie(packet)
    } else {
        packet.to_vec()
    }
}

/// How far the TCP checksum of a plain IPv4 frame is from right: the folded sum over all that it
/// covers. 0xffff is right.
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
        // Most of what decides is in the first bytes: outer and inner headers.
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

    /// Nothing panics, and what is passed to the host stack is as it came.
    #[test]
    fn harmed_packets_break_nothing(pick: prop::sample::Index, harms in prop::collection::vec(harm(), 1..6)) {
        let fixture = pick.get(&FIXTURES);
        let input = harmed(fixture.input.clone(), &harms);
        let (verdict, output) = run(fixture, input.clone());
        if verdict == Verdict::Pass {
            prop_assert_eq!(kept(fixture, &output), kept(fixture, &input), "passed but changed, after: {}", fixture.name);
        }
    }

    /// Noise is no packet.
    #[test]
    fn noise_breaks_nothing(pick: prop::sample::Index, noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let fixture = pick.get(&FIXTURES);
        let (verdict, output) = run(fixture, noise.clone());
        if verdict == Verdict::Pass {
            prop_assert_eq!(kept(fixture, &output), kept(fixture, &noise), "passed but changed, after: {}", fixture.name);
        }
    }

    /// A wrong checksum stays as wrong as it was: it is the receiver's to find, and a right one
    /// stays right.
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

/// Whether the fixture is a whole packet of TCP over plain IPv4 that is delivered to a task.
fn is_plain_delivery(fixture: &Fixture) -> bool {
    let input = &fixture.input;
    matches!(fixture.verdict, Verdict::Deliver { .. })
        && input.get(12..15) == Some(&[0x08, 0x00, 0x45])
        && input.get(IP + 6..IP + 8).is_some_and(|fragment| [fragment[0] << 2, fragment[1]] == [0; 2])
        && input.get(IP + 9) == Some(&6)
        && input.len() > TCP + 20
}

//! Any bytes, at any hook, with any fixture's tables: nothing panics, and what is passed to the
//! host stack is as it came.
//!
//! The first byte chooses the fixture, the second whether the rest is the packet itself or is laid
//! over the fixture's.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mesh_ebpf::testing::fixtures::{self, Fixture};
use mesh_ebpf::testing::{Frame, Hook, HostTables, without_cookie};
use mesh_ebpf::verdict::Verdict;

static FIXTURES: LazyLock<Vec<Fixture>> = LazyLock::new(fixtures::all);

fuzz_target!(|data: &[u8]| {
    let [number, kind, rest @ ..] = data else { return };
    let fixture = &FIXTURES[usize::from(*number) % FIXTURES.len()];
    let input = if kind & 1 == 0 { rest.to_vec() } else { laid_over(&fixture.input, rest) };
    let tables = HostTables::new(fixture.setup.clone());
    let mut packet = Frame::new(input.clone());
    let verdict = fixture.hook.run(&mut packet, &tables);
    if verdict == Verdict::Pass {
        let may_differ = packet.is_marked || matches!(fixture.hook, Hook::Egress { .. });
        let passed = if may_differ { without_cookie(&packet.bytes) } else { packet.bytes };
        let came = if may_differ { without_cookie(&input) } else { input };
        assert_eq!(passed, came, "passed but changed, after: {}", fixture.name);
    }
});

/// The fixture's packet with `changes` xored onto it; what is longer is added.
fn laid_over(packet: &[u8], changes: &[u8]) -> Vec<u8> {
    let length = packet.len().max(changes.len());
    let at = |bytes: &[u8], index: usize| bytes.get(index).copied().unwrap_or(0);
    (0..length).map(|index| at(packet, index) ^ at(changes, index)).collect()
}

//! Tests that packets of encrypted networks leave by the encryption device only.

use crate::abi::DropReason;
use crate::testing::fixtures::{self, ENCRYPTION_DEVICE, encrypted};
use crate::testing::{Fixture, Frame, Hook, HostTables};
use crate::verdict::Verdict;

/// The fixtures of tasks' veths on networks, with network 5 encrypted.
fn overlay() -> impl Iterator<Item = Fixture> {
    let is_plain = |fixture: &Fixture| !fixture.name.starts_with("encrypted: ");
    let fixtures = fixtures::all().into_iter().filter(|fixture| fixture.hook == Hook::Overlay);
    let fixtures = fixtures.filter(is_plain);
    fixtures.map(|fixture| {
        let mut setup = encrypted(fixture.setup.clone());
        // Packets of both kinds of networks may have the same size here.
        setup.config.encrypted_mtu = 0;
        Fixture { setup, ..fixture }
    })
}

#[test]
fn what_left_a_plain_network_leaves_an_encrypted_one_by_its_device() {
    let mut left = 0;
    for fixture in overlay() {
        let tables = HostTables::new(fixture.setup.clone());
        let mut packet = Frame::new(fixture.input.clone());
        let verdict = fixture.hook.run(&mut packet, &tables);
        match (fixture.verdict, verdict) {
            (Verdict::Emit { .. } | Verdict::ViaDevice(_), Verdict::Emit { ifindex: ENCRYPTION_DEVICE }) => {
                left += 1;
            }
            (plain, verdict) => assert_eq!(plain, verdict, "verdict of: {}", fixture.name),
        }
    }
    assert!(left > 20, "fixtures that leave the node: {left}");
}

#[test]
fn without_a_device_nothing_leaves() {
    let mut kept = 0;
    for mut fixture in overlay() {
        fixture.setup.config.encryption_ifindex = 0;
        let tables = HostTables::new(fixture.setup.clone());
        let verdict = fixture.hook.run(&mut Frame::new(fixture.input.clone()), &tables);
        let leaves = matches!(verdict, Verdict::Emit { .. } | Verdict::ViaDevice(_) | Verdict::Route { .. });
        assert!(!leaves, "{}: {verdict:?}", fixture.name);
        kept += u32::from(verdict == Verdict::Drop(DropReason::NoEncryption));
    }
    assert!(kept > 20, "fixtures that would leave the node: {kept}");
}

#[test]
fn what_stands_for_several_leaves_by_the_device_too() {
    for fixture in
        overlay().filter(|fixture| matches!(fixture.verdict, Verdict::Emit { .. } | Verdict::ViaDevice(_)))
    {
        let tables = HostTables::new(fixture.setup.clone());
        let mut packet = Frame { segment_size: 500, ..Frame::new(fixture.input.clone()) };
        let verdict = fixture.hook.run(&mut packet, &tables);
        assert_eq!(verdict, Verdict::Emit { ifindex: ENCRYPTION_DEVICE }, "{}", fixture.name);
    }
}

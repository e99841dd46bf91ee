//! Tests of the choice of addresses, each with Swarm's own text.

use super::*;

fn system(all: &[(&str, [u8; 4])]) -> Vec<SystemAddress> {
    let one = |(interface, address): &(&str, [u8; 4])| SystemAddress {
        interface: (*interface).to_owned(),
        address: Ipv4Addr::from(*address),
    };
    all.iter().map(one).collect()
}

fn usual() -> Vec<SystemAddress> {
    system(&[
        ("lo", [127, 0, 0, 1]),
        ("eth0", [10, 0, 0, 1]),
        ("docker0", [172, 17, 0, 1]),
        ("br-0123456789ab", [172, 18, 0, 1]),
    ])
}

fn two() -> Vec<SystemAddress> {
    system(&[("eth0", [10, 0, 0, 1]), ("eth1", [10, 1, 0, 1]), ("eth1", [10, 1, 0, 2])])
}

fn of(asked: Asked<'_>, system: &[SystemAddress]) -> Result<(String, String, String), String> {
    let shown = |found: ManagerAddresses| {
        (found.listen.to_string(), found.advertise.to_string(), found.data_path.to_string())
    };
    of_manager(asked, system).map(shown).map_err(|error| error.to_string())
}

fn three(a: &str, b: &str, c: &str) -> (String, String, String) {
    (a.to_owned(), b.to_owned(), c.to_owned())
}

#[test]
fn the_one_address_of_the_system_is_chosen() {
    let expected = Ok(three("0.0.0.0:2377", "10.0.0.1:2377", "10.0.0.1"));
    assert_eq!(of(Asked::default(), &usual()), expected);
    assert_eq!(
        of(Asked { listen: "0.0.0.0:2377", ..Asked::default() }, &usual()),
        expected,
        "as the CLI sends it"
    );
}

#[test]
fn what_was_given_counts() {
    let asked = Asked { listen: "eth0:99", advertise: "192.0.2.7:100", data_path: "eth0" };
    assert_eq!(of(asked, &usual()), Ok(three("10.0.0.1:99", "192.0.2.7:100", "10.0.0.1")));
    let asked = Asked { advertise: "eth0", ..Asked::default() };
    assert_eq!(of(asked, &two()), Ok(three("0.0.0.0:2377", "10.0.0.1:2377", "10.0.0.1")));
    let asked = Asked { listen: "10.1.0.2", ..Asked::default() };
    assert_eq!(
        of(asked, &two()),
        Ok(three("10.1.0.2:2377", "10.1.0.2:2377", "10.1.0.2")),
        "the one it listens on"
    );
}

#[test]
fn a_choice_that_is_not_unique_is_refused_in_swarms_words() {
    let refused = |asked, system: &[SystemAddress]| of(asked, system).expect_err("no unique choice");
    assert_eq!(
        refused(Asked::default(), &two()),
        "could not choose an IP address to advertise since this system has multiple addresses on different interfaces \
         (10.0.0.1 on eth0 and 10.1.0.1 on eth1)"
    );
    let one = system(&[("eth0", [10, 0, 0, 1]), ("eth0", [10, 0, 0, 2])]);
    assert_eq!(
        refused(Asked::default(), &one),
        "could not choose an IP address to advertise since this system has multiple addresses on interface eth0 \
         (10.0.0.1 and 10.0.0.2)"
    );
    assert_eq!(
        refused(Asked { advertise: "eth1", ..Asked::default() }, &two()),
        "interface eth1 has more than one IPv4 address (10.1.0.1 and 10.1.0.2)"
    );
    let loopback = system(&[("lo", [127, 0, 0, 1])]);
    assert_eq!(refused(Asked::default(), &loopback), "could not find the system's IP address");
    let elsewhere = Asked { advertise: "192.0.2.7", ..Asked::default() };
    assert!(refused(elsewhere, &two()).starts_with("must specify a listening address because"));
    assert!(of(elsewhere, &usual()).is_ok(), "one address to listen on is enough");
}

#[test]
fn what_is_no_address_is_refused_in_swarms_words() {
    for (asked, expected) in [
        (Asked { listen: "eth9:1", ..Asked::default() }, AddressError::BadListen),
        (Asked { listen: "10.0.0.1:x", ..Asked::default() }, AddressError::BadListen),
        (Asked { advertise: "0.0.0.0", ..Asked::default() }, AddressError::BadAdvertise),
        (Asked { advertise: "eth9", ..Asked::default() }, AddressError::BadAdvertise),
        (Asked { data_path: "10.0.0.1:5", ..Asked::default() }, AddressError::BadDataPath),
        (Asked { data_path: "0.0.0.0", ..Asked::default() }, AddressError::BadDataPath),
    ] {
        assert_eq!(of_manager(asked, &usual()), Err(expected), "{asked:?}");
    }
    let six = Asked { advertise: "[2001:db8::1]:2377", ..Asked::default() };
    assert!(matches!(of_manager(six, &usual()), Err(AddressError::NotIpv4(_))));
}

#[test]
fn a_worker_needs_no_address() {
    let of = |advertise, data_path| of_worker(Asked { advertise, data_path, listen: "" }, &usual());
    assert_eq!(of("", ""), Ok(None), "that towards its manager counts");
    assert_eq!(of("eth0:2377", ""), Ok(Some(Ipv4Addr::new(10, 0, 0, 1))));
    assert_eq!(of("10.0.0.1", "10.0.0.9"), Ok(Some(Ipv4Addr::new(10, 0, 0, 9))), "its traffic's address");
    assert_eq!(of("nonsense", ""), Err(AddressError::BadAdvertise));
}

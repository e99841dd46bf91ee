//! Tests of attachments: who may attach what, and at which address.

use super::*;
use crate::fixtures::{World, network};
use crate::planners::addresses;

/// A world of nodes a and b with the attachable network `app` and the network `closed`.
fn world() -> World {
    let mut world = World::with_nodes(["a", "b"]);
    let mut app = network("app", "10.0.5.0/29", 7);
    app.spec.attachable = true;
    world.put_network(&app);
    world.put_network(&network("closed", "10.0.6.0/24", 8));
    world
}

fn asked(id: &str, network: &str) -> AttachRequest {
    AttachRequest {
        attachment_id: id.to_owned(),
        network: network.to_owned(),
        container_name: "shell".to_owned(),
        aliases: vec!["sh".to_owned()],
        ..AttachRequest::default()
    }
}

fn ask(world: &mut World, node: &str, asked: &AttachRequest) -> Result<(), String> {
    let written = attached(&world.snapshot, &node.into(), world.now, asked);
    for op in written.map_err(|error| error.message().to_owned())?.into_iter().flat_map(|write| write.1) {
        world.apply(op);
    }
    Ok(())
}

#[test]
fn a_container_gets_an_address_and_its_node_a_bridge() {
    let mut world = world();
    ask(&mut world, "a", &asked("x1", "app")).unwrap();
    assert_eq!(assigned(&world.snapshot, &"x1".into()), None, "the leader has given nothing yet");
    world.run(addresses::plan);
    let given = assigned(&world.snapshot, &"x1".into()).unwrap();
    assert_eq!((given.name.as_str(), given.number, given.aliases), ("app", 7, vec!["sh".to_owned()]));
    let held = [given.address, given.node_address].map(|address| address.to_string());
    assert_eq!(held, ["10.0.5.3", "10.0.5.2"], "behind the gateway, the node first");
    // A later request changes the record and not the address.
    let made = AttachRequest { container_id: "c0ffee".to_owned(), ..asked("x1", "app") };
    ask(&mut world, "a", &made).unwrap();
    let record = &world.snapshot.attachments[&"x1".into()];
    assert_eq!((record.container_id.as_str(), record.address), ("c0ffee", Some(given.address)));
    assert_eq!(attached(&world.snapshot, &"a".into(), world.now, &made).unwrap(), None, "nothing is new");
}

#[test]
fn a_node_speaks_for_itself_and_for_attachable_networks_only() {
    let mut world = world();
    ask(&mut world, "a", &asked("x1", "app")).unwrap();
    for (node, request, expected) in [
        ("b", asked("x1", "app"), "another's"),
        ("a", asked("x2", "closed"), "network closed not manually attachable"),
        ("a", asked("x2", "nosuch"), "network nosuch not found"),
    ] {
        let refused = ask(&mut world, node, &request).unwrap_err();
        assert!(refused.contains(expected), "{refused}");
    }
    assert!(detached(&world.snapshot, &"b".into(), &"x1".into()).is_err());
    assert!(detached(&world.snapshot, &"a".into(), &"x1".into()).unwrap().is_some());
    assert_eq!(detached(&world.snapshot, &"a".into(), &"x9".into()).unwrap(), None);
}

#[test]
fn a_used_up_network_is_said_at_once() {
    let mut world = world();
    for id in ["x1", "x2", "x3", "x4"] {
        ask(&mut world, "a", &asked(id, "app")).unwrap();
        world.run(addresses::plan);
    }
    let refused = ask(&mut world, "a", &asked("x5", "app")).unwrap_err();
    assert_eq!(refused, "no address left in network app (10.0.5.0/29)");
    let gone = detached(&world.snapshot, &"a".into(), &"x2".into()).unwrap().unwrap();
    gone.1.into_iter().for_each(|op| world.apply(op));
    ask(&mut world, "a", &asked("x5", "app")).unwrap();
}

#[test]
fn a_chosen_address_is_given_if_it_is_free() {
    let mut world = world();
    let choose = |id: &str, address: &str| AttachRequest { address: address.to_owned(), ..asked(id, "app") };
    ask(&mut world, "a", &choose("x1", "10.0.5.5")).unwrap();
    // Two managers take in the same choice at the same time: the leader decides.
    let mut rival = world.snapshot.attachments[&"x1".into()].value.clone();
    rival.id = "x2".into();
    world.put(keys::attachment(&rival.id), &rival);
    world.run(addresses::plan);
    let given = assigned(&world.snapshot, &"x1".into()).unwrap();
    assert_eq!(given.address.to_string(), "10.0.5.5");
    let taken = "Address already in use: 10.0.5.5 on network app";
    let lost = decided(&world.snapshot, &"x2".into()).unwrap().unwrap_err();
    assert_eq!(lost.to_string(), taken);
    for (address, expected) in [
        ("10.0.5.5", taken),
        ("10.0.5.1", "Address already in use: 10.0.5.1 on network app"),
        ("10.0.5.7", "requested address is out of range: 10.0.5.7 is no host's of network app (10.0.5.0/29)"),
        ("10.9.9.9", "requested address is out of range: 10.9.9.9 is no host's of network app (10.0.5.0/29)"),
        ("nonsense", "invalid IPv4 address: nonsense"),
    ] {
        assert_eq!(ask(&mut world, "a", &choose("x3", address)).unwrap_err(), expected);
    }
    // What its node tells of the container later changes nothing about the choice.
    let made = AttachRequest { container_id: "c0ffee".to_owned(), ..asked("x1", "app") };
    ask(&mut world, "a", &made).unwrap();
    let record = &world.snapshot.attachments[&"x1".into()];
    assert_eq!((record.wanted, record.address), (Some(given.address), Some(given.address)));
}

#[test]
fn a_network_that_overlaps_the_nodes_host_is_refused() {
    let mut world = world();
    world.put(keys::host_networks(&"a".into()), &["10.0.5.0/30".parse::<ipnet::Ipv4Net>().unwrap()]);
    let refused = ask(&mut world, "a", &asked("x1", "app")).unwrap_err();
    assert_eq!(refused, "network app (10.0.5.0/29) overlaps 10.0.5.0/30 of the host of node host-a");
    ask(&mut world, "b", &asked("x1", "app")).unwrap();
}

#[test]
fn attachments_of_a_removed_node_are_given_up() {
    let mut world = world();
    ask(&mut world, "a", &asked("x1", "app")).unwrap();
    world.run(addresses::plan);
    world.delete(keys::node(&"a".into()));
    world.run(addresses::plan);
    assert!(world.snapshot.attachments.is_empty(), "left: {:?}", world.snapshot.attachments);
}

#[test]
fn what_a_node_sends_is_bounded() {
    for bad in [
        asked("", "app"),
        asked("a/b", "app"),
        asked("x1", &"n".repeat(HOSTNAME_BYTES + 1)),
        AttachRequest { aliases: vec![String::new(); ALIASES_MAX + 1], ..asked("x1", "app") },
        AttachRequest { container_id: "c".repeat(ID_BYTES + 1), ..asked("x1", "app") },
    ] {
        assert!(check(&bad).is_err(), "accepted {bad:?}");
    }
    assert!(check(&asked("x1", "app")).is_ok());
}

#[test]
fn a_node_that_encrypts_nothing_attaches_nothing_to_an_encrypted_network() {
    let mut world = world();
    let mut sealed = network("sealed", "10.0.7.0/24", 9 | mesh_state::network::ENCRYPTED);
    sealed.spec.attachable = true;
    world.put_network(&sealed);
    let refused = ask(&mut world, "a", &asked("x1", "sealed")).unwrap_err();
    assert!(refused.contains("sealed is encrypted"), "{refused}");
    let end = mesh_state::node::EncryptionEnd { public_key: "k".to_owned(), port: 4801 };
    world.update_node("a", |node| node.description.encryption = Some(end));
    ask(&mut world, "a", &asked("x1", "sealed")).unwrap();
}

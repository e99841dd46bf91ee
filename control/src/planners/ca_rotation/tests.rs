//! The steps, and the promise that nobody meets a certificate of a CA that it doesn't trust.

use std::collections::BTreeSet;

use mesh_state::ca::begin;
use mesh_state::cluster::Sealed;
use mesh_state::{codec, keys};
use proptest::prelude::*;

use super::*;
use crate::fixtures::{World, cluster};

fn root(name: &str) -> RootCa {
    RootCa { certificate_pem: format!("certificate of {name}"), digest: name.to_owned() }
}

fn rotate(cluster: &Cluster, name: &str) -> Option<Cluster> {
    let current = root(cluster.ca_certificate_pem.trim_start_matches("certificate of "));
    let key = Sealed(format!("key of {name}"));
    begin(cluster, &current.digest, root(name), key, Timestamp::default()).ok()
}

fn first() -> Cluster {
    Cluster { ca_certificate_pem: root("a").certificate_pem, ..cluster() }
}

fn manager(world: &mut World, name: &str, trusts: &[&str], issuer: &str) {
    let trusts = trusts.iter().map(|&root| root.to_owned()).collect();
    let cas = Some(ManagerCas { trusts, issuer: issuer.to_owned(), signer: issuer.to_owned() });
    let record = mesh_state::cluster::Manager { name: name.to_owned(), cas, ..Default::default() };
    world.put(keys::manager(name), &record);
}

fn node(world: &mut World, id: &str, issuer: &str, trusts: &[&str]) {
    world.update_node(id, |node| {
        issuer.clone_into(&mut node.description.certificate_issuer);
        node.description.trusts = trusts.iter().map(|&root| root.to_owned()).collect();
    });
}

fn stage(world: &mut World) -> Option<CaStage> {
    world.run(plan);
    world.snapshot.cluster.as_ref().unwrap().ca_rotation.as_ref().map(|rotation| rotation.stage)
}

#[test]
fn each_step_waits_for_everybody_before_it() {
    let mut world = World::with_nodes(["n1", "n2"]);
    world.put_cluster(&first());
    assert_eq!(stage(&mut world), None, "nothing is rotated");
    world.put_cluster(&rotate(&first(), "b").unwrap());
    manager(&mut world, "m1", &["a", "b"], "a");
    manager(&mut world, "m2", &["a"], "a");
    assert_eq!(stage(&mut world), Some(CaStage::Trust), "m2 doesn't trust b");
    manager(&mut world, "m2", &["a", "b"], "a");
    assert_eq!(stage(&mut world), Some(CaStage::Issue));
    node(&mut world, "n1", "b", &["a", "b"]);
    assert_eq!(stage(&mut world), Some(CaStage::Issue), "n2 has its former certificate");
    node(&mut world, "n2", "b", &["a", "b"]);
    assert_eq!(stage(&mut world), Some(CaStage::Serve));
    let record = world.snapshot.cluster.as_ref().unwrap().value.clone();
    assert_eq!(record.ca_certificate_pem, root("b").certificate_pem);
    assert_eq!(record.ca_key, Sealed("key of b".to_owned()));
    assert_eq!(record.trusted_pems(), [root("b").certificate_pem, root("a").certificate_pem]);
    manager(&mut world, "m1", &["a", "b"], "b");
    assert_eq!(stage(&mut world), Some(CaStage::Serve), "m2 serves with a certificate of a");
    world.delete(keys::manager("m2"));
    assert_eq!(stage(&mut world), None, "m2 is gone");
    let record = world.snapshot.cluster.as_ref().unwrap();
    assert_eq!(record.trusted_pems(), [root("b").certificate_pem], "a is forgotten");
}

#[test]
fn a_node_that_is_away_holds_it_up_until_it_is_removed() {
    let mut world = World::with_nodes(["n1", "n2"]);
    world.put_cluster(&rotate(&first(), "b").unwrap());
    manager(&mut world, "m1", &["a", "b"], "a");
    node(&mut world, "n1", "b", &["a", "b"]);
    assert_eq!(stage(&mut world), Some(CaStage::Issue));
    assert_eq!(stage(&mut world), Some(CaStage::Issue), "n2 is away");
    world.delete(keys::node(&"n2".into()));
    assert_eq!(stage(&mut world), Some(CaStage::Serve));
}

/// A manager or a node as far as it has come.
#[derive(Clone, Debug)]
struct Party {
    /// The record that it knows.
    knows: Cluster,
    /// Of a node: the issuer of its certificate.
    issuer: String,
    trusts: BTreeSet<String>,
}

fn digests(cluster: &Cluster) -> BTreeSet<String> {
    let pems = cluster.trusted_pems();
    pems.iter().map(|pem| pem.trim_start_matches("certificate of ").to_owned()).collect()
}

fn current(cluster: &Cluster) -> String {
    cluster.ca_certificate_pem.trim_start_matches("certificate of ").to_owned()
}

fn signer(cluster: &Cluster) -> String {
    cluster.ca_rotation.as_ref().map_or_else(|| current(cluster), |rotation| rotation.issuer().to_owned())
}

#[derive(Clone, Debug)]
enum Event {
    /// A manager takes in the newest record.
    Follow(usize),
    /// A node hears what to trust from a manager, and renews if it is to.
    Hear(usize, usize),
    /// A node renews with a manager, as its certificate is old.
    Renew(usize, usize),
    /// The leader plans.
    Plan,
    /// The operator wants another CA, or the present one again.
    Rotate(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..3usize).prop_map(Event::Follow),
        6 => (0..4usize, 0..3usize).prop_map(|(node, manager)| Event::Hear(node, manager)),
        2 => (0..4usize, 0..3usize).prop_map(|(node, manager)| Event::Renew(node, manager)),
        4 => Just(Event::Plan),
        1 => (0..4u8).prop_map(Event::Rotate),
    ]
}

struct Model {
    record: Cluster,
    managers: Vec<Party>,
    nodes: Vec<Party>,
}

impl Model {
    fn new() -> Self {
        let party = Party { knows: first(), issuer: "a".to_owned(), trusts: digests(&first()) };
        Self { record: first(), managers: vec![party.clone(); 3], nodes: vec![party; 4] }
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Follow(manager) => {
                let issuer = current(&self.record);
                let trusts = digests(&self.record);
                self.managers[*manager] = Party { knows: self.record.clone(), issuer, trusts };
            }
            Event::Hear(node, manager) => {
                let known = &self.managers[*manager].knows;
                let node = &mut self.nodes[*node];
                node.trusts = digests(known);
                if known.ca_rotation.as_ref().is_some_and(|rotation| rotation.is_to_renew(&node.issuer)) {
                    node.issuer = signer(known);
                }
            }
            Event::Renew(node, manager) => {
                let known = &self.managers[*manager].knows;
                let node = &mut self.nodes[*node];
                (node.trusts, node.issuer) = (digests(known), signer(known));
            }
            Event::Plan => {
                let cas: Vec<_> = self
                    .managers
                    .iter()
                    .map(|party| ManagerCas {
                        trusts: party.trusts.clone(),
                        issuer: party.issuer.clone(),
                        signer: signer(&party.knows),
                    })
                    .collect();
                let said: Vec<_> = self
                    .nodes
                    .iter()
                    .map(|party| NodeDescription {
                        certificate_issuer: party.issuer.clone(),
                        trusts: party.trusts.iter().cloned().collect(),
                        ..NodeDescription::default()
                    })
                    .collect();
                if let Some((record, _)) = next(&self.record, cas.iter().map(Some), said.iter()) {
                    self.record = record;
                }
            }
            Event::Rotate(to) => {
                let name = if *to == 0 { current(&self.record) } else { format!("r{to}") };
                if let Some(record) = rotate(&self.record, &name) {
                    self.record = record;
                }
            }
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for node in &self.nodes {
            for manager in &self.managers {
                prop_assert!(node.trusts.contains(&manager.issuer), "a node refuses a manager");
                prop_assert!(manager.trusts.contains(&node.issuer), "a manager refuses a node");
            }
        }
        let stored = codec::encode(&self.record).unwrap();
        prop_assert!(stored.len() < 64 * 1024, "the record grows to {} bytes", stored.len());
        Ok(())
    }
}

proptest! {
    #[test]
    fn nobody_meets_a_certificate_that_it_does_not_trust(events in prop::collection::vec(event(), 0..120)) {
        let mut model = Model::new();
        for event in &events {
            model.apply(event);
            model.check()?;
        }
        // Left alone, every rotation ends.
        for _ in 0..8 {
            (0..3).for_each(|manager| model.apply(&Event::Follow(manager)));
            model.check()?;
            (0..4).for_each(|node| model.apply(&Event::Hear(node, node % 3)));
            model.check()?;
            model.apply(&Event::Plan);
            model.check()?;
        }
        prop_assert!(model.record.ca_rotation.is_none(), "it never ends: {:?}", model.record.ca_rotation);
        prop_assert!(model.nodes.iter().all(|node| node.issuer == current(&model.record)));
    }
}

//! Networks in the snapshot: which nodes' assignments change with a network, and which of its
//! addresses was given last.
//!
//! Invariant: an address counts as given when a record first has it. A listing of the store doesn't
//! show when that was, so after a listing the address in the record written last counts as the
//! newest.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use mesh_state::attachment::AttachedContainer;
use mesh_state::ids::{AttachmentId, NetworkId, ServiceId};
use mesh_state::network::Network;
use mesh_state::service::Service;
use mesh_state::shared::Shared;
use mesh_state::store::KeyValue;
use mesh_state::task::Task;

use super::{ClusterSnapshot, keep};

/// The address given last in each network, and the revision at which it was given.
#[derive(Debug, Clone, Default)]
pub(super) struct NewestAddresses(Shared<BTreeMap<NetworkId, (i64, Ipv4Addr)>>);

impl NewestAddresses {
    fn note(&mut self, network: &NetworkId, address: Ipv4Addr, revision: i64) {
        match self.0.get_mut(network) {
            Some(newest) if newest.0 > revision => {}
            Some(newest) => *newest = (revision, address),
            None => drop(self.0.insert(network.clone(), (revision, address))),
        }
    }

    /// Notes the addresses of a task that `before` doesn't have.
    pub(super) fn note_task(&mut self, before: Option<&Task>, task: &Task, revision: i64) {
        for attachment in &task.attachments {
            let known = before.is_some_and(|before| before.attachments.contains(attachment));
            if let Some(address) = attachment.address.filter(|_| !known) {
                self.note(&attachment.network_id, address, revision);
            }
        }
    }
}

impl ClusterSnapshot {
    /// The address given last in a network, as far as this manager knows.
    pub fn newest_address(&self, network: &NetworkId) -> Option<Ipv4Addr> {
        self.newest_addresses.0.get(network).map(|(_, address)| *address)
    }

    pub(super) fn put_service(&mut self, id: ServiceId, item: &KeyValue) {
        let read = self.read::<Service>(item);
        if let Some(service) = &read {
            let before = self.services.get(&id);
            for given in &service.virtual_ips {
                if before.is_none_or(|before| !before.virtual_ips.contains(given)) {
                    self.newest_addresses.note(&given.network_id, given.address, item.mod_revision);
                }
            }
        }
        keep(read, id, &mut self.services);
    }

    pub(super) fn put_attachment(&mut self, id: AttachmentId, item: &KeyValue) {
        let read = self.read::<AttachedContainer>(item);
        if let Some(container) = &read
            && let Some(address) = container.address
            && self.attachments.get(&id).is_none_or(|before| before.address != Some(address))
        {
            self.newest_addresses.note(&container.network_id, address, item.mod_revision);
        }
        keep(read, id, &mut self.attachments);
    }

    pub(super) fn put_network(&mut self, id: NetworkId, item: &KeyValue) {
        let read = self.read::<Network>(item);
        if let Some(network) = &read {
            let before = self.networks.get(&id).filter(|before| tells_the_same(before, network));
            for (node, address) in &network.node_addresses {
                if before.is_none_or(|before| before.node_addresses.get(node) != Some(address)) {
                    self.touched.node(node, item.mod_revision);
                    self.newest_addresses.note(&id, *address, item.mod_revision);
                }
            }
        }
        keep(read, id, &mut self.networks);
    }

    pub(super) fn delete_network(&mut self, id: &NetworkId, revision: i64) {
        let removed = self.networks.remove(id);
        for node in removed.iter().flat_map(|network| network.node_addresses.keys()) {
            self.touched.node(node, revision);
        }
        self.newest_addresses.0.remove(id);
    }
}

/// Whether both records mean the same to every node, except for the node's own address.
fn tells_the_same(before: &Network, after: &Network) -> bool {
    (before.number, before.subnet, &before.name, &before.spec)
        == (after.number, after.subnet, &after.name, &after.spec)
}

#[cfg(test)]
mod tests {
    use mesh_state::keys;
    use mesh_state::network::{Attachment, VirtualIp};

    use crate::fixtures::{World, network, service, task};

    fn newest(world: &World) -> Option<String> {
        world.snapshot.newest_address(&"n".into()).map(|address| address.to_string())
    }

    #[test]
    fn the_newest_address_is_the_one_that_a_record_bore_last_even_if_it_is_gone() {
        let mut world = World::with_nodes(["a"]);
        world.put_network(&network("n", "10.0.5.0/24", 1));
        assert_eq!(newest(&world), None);
        let mut web = service("web", 1);
        web.virtual_ips = vec![VirtualIp { network_id: "n".into(), address: "10.0.5.2".parse().unwrap() }];
        world.put_service(&web);
        assert_eq!(newest(&world).as_deref(), Some("10.0.5.2"));
        let mut one = task("t", "web", 1);
        one.attachments = vec![Attachment {
            network_id: "n".into(),
            address: Some("10.0.5.9".parse().unwrap()),
            backend_id: None,
        }];
        world.put_task(&one);
        world.put_service(&web);
        assert_eq!(newest(&world).as_deref(), Some("10.0.5.9"), "the service has its own for longer");
        world.delete(keys::task(&one.id));
        assert_eq!(newest(&world).as_deref(), Some("10.0.5.9"), "the task is forgotten");
        world.delete(keys::network(&"n".into()));
        assert_eq!(newest(&world), None);
    }

    #[test]
    fn a_node_is_touched_by_its_own_address_and_by_what_all_are_told() {
        let mut world = World::with_nodes(["a", "b"]);
        let mut app = network("n", "10.0.5.0/24", 1);
        world.put_network(&app);
        let touched = |world: &World| ["a", "b"].map(|node| world.snapshot.touched_at(&node.into()));
        let now = |world: &World| world.snapshot.revision;
        app.node_addresses.insert("a".into(), "10.0.5.2".parse().unwrap());
        world.put_network(&app);
        assert_eq!(touched(&world), [now(&world), 0]);
        let first = now(&world);
        app.node_addresses.insert("b".into(), "10.0.5.3".parse().unwrap());
        world.put_network(&app);
        assert_eq!(touched(&world), [first, now(&world)], "only b was given one");
        app.number = 2;
        world.put_network(&app);
        assert_eq!(touched(&world), [now(&world); 2]);
        world.put_network(&app);
        assert!(touched(&world)[0] < now(&world), "the same again changes nothing");
    }
}

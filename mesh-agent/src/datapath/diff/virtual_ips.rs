//! Backends of virtual IPs: the members of a network that serve the service there.

use mesh_ebpf::abi::Backend;

use super::Mesh;
use crate::codes;
use crate::datapath::contents::{Front, NetworkAddress};
use crate::lb::slots::Candidate;

impl Mesh<'_> {
    /// The backends of all virtual IPs that have an index, as map entries and as candidates for new
    /// flows. A member that doesn't serve yet is no backend.
    pub(super) fn virtual_backends(&self) -> Vec<(NetworkAddress, Backend, Candidate)> {
        let mut found = Vec::new();
        for member in self.view.members.values() {
            let service = member.service_id.as_ref().and_then(|id| self.view.services.get(id));
            let (Some(service), Some(state)) = (service, member.state) else { continue };
            for attachment in &member.attachments {
                let (Some(id), Some(network)) =
                    (attachment.backend_id, self.networks.number(&attachment.network_id))
                else {
                    continue;
                };
                let on_network =
                    |place: &&crate::view::ServiceNetwork| place.network_id == attachment.network_id;
                let Some(virtual_ip) = service.networks.iter().find(on_network).and_then(|it| it.virtual_ip)
                else {
                    continue;
                };
                let place = NetworkAddress { network, address: virtual_ip };
                let Some(port) = self.ports.get(&Front::VirtualIp(place)) else { continue };
                if port.service.id != service.id {
                    continue;
                }
                let address = NetworkAddress { network, address: attachment.address };
                if !self.networks.is_reachable(address) {
                    continue;
                }
                let weight = self.weight(id, member.weight);
                let backend = Backend {
                    task_address: attachment.address.into(),
                    // Programs read the virtual IP of a reply from this field.
                    task_address6: virtual_ip.into(),
                    service_index: port.index,
                    state: codes::state(state) as u8,
                    weight: u16::try_from(weight).unwrap_or(u16::MAX),
                    network,
                    ..Backend::default()
                };
                let is_local = member.node_id == self.view.node_id;
                found.push((place, backend, Candidate { id: id.get(), state, weight, is_local }));
            }
        }
        found
    }
}

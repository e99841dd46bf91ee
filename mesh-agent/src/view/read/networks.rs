//! Reads the entries about networks.

use std::num::NonZeroU32;

use ipnet::Ipv6Net;
use mesh_state::ids::{BackendId, NodeId};
use mesh_state::network::PREFIX6_MAX;
use mesh_state::proto;

use super::{parse, state};
use crate::view::{AttachmentView, MemberView, NetworkView, ServiceNetwork, ViewError};

pub(in crate::view) fn network(
    network: &proto::MeshNetwork,
    node: &NodeId,
) -> Result<NetworkView, ViewError> {
    let id = network.id.as_str();
    let own = network.node_addresses.get(node.as_str());
    Ok(NetworkView {
        id: id.into(),
        name: network.name.clone(),
        number: match network.number {
            number if mesh_state::network::is_number(number) => number,
            other => {
                return Err(ViewError::InvalidField {
                    kind: "network",
                    id: id.to_owned(),
                    field: "number",
                    value: other.to_string(),
                });
            }
        },
        subnet: parse("network", id, "subnet", &network.subnet)?,
        subnet6: match network.subnet6.as_str() {
            "" => None,
            subnet => Some(subnet6(id, subnet)?),
        },
        node_address: own.map(|address| parse("network", id, "node address", address)).transpose()?,
        internal: network.internal,
        attachable: network.attachable,
    })
}

/// An IPv6 subnet, behind whose prefix an IPv4 address fits.
fn subnet6(id: &str, text: &str) -> Result<Ipv6Net, ViewError> {
    let subnet: Ipv6Net = parse("network", id, "IPv6 subnet", text)?;
    if subnet.prefix_len() > PREFIX6_MAX {
        return Err(ViewError::InvalidField {
            kind: "network",
            id: id.to_owned(),
            field: "IPv6 subnet",
            value: text.to_owned(),
        });
    }
    Ok(subnet)
}

pub(in crate::view) fn service_networks(
    service: &proto::MeshService,
) -> Result<Vec<ServiceNetwork>, ViewError> {
    let read = |network: &proto::MeshServiceNetwork| {
        Ok(ServiceNetwork {
            network_id: network.network_id.as_str().into(),
            virtual_ip: match network.virtual_ip.as_str() {
                "" => None,
                address => Some(parse("service", &service.id, "virtual IP", address)?),
            },
            aliases: network.aliases.clone(),
        })
    };
    service.networks.iter().map(read).collect()
}

pub(in crate::view) fn member(member: &proto::MeshMember) -> Result<MemberView, ViewError> {
    let read = |attachment: &proto::MeshAttachment| {
        Ok(AttachmentView {
            network_id: attachment.network_id.as_str().into(),
            address: parse("member", &member.id, "address", &attachment.address)?,
            backend_id: BackendId::new(attachment.backend_id),
            aliases: attachment.aliases.clone(),
        })
    };
    Ok(MemberView {
        id: member.id.clone(),
        service_id: (!member.service_id.is_empty()).then(|| member.service_id.as_str().into()),
        name: member.name.clone(),
        node_id: member.node_id.as_str().into(),
        container_id: member.container_id.clone(),
        hostname: member.hostname.clone(),
        state: state(member.state()),
        weight: NonZeroU32::new(member.weight).unwrap_or(NonZeroU32::MIN),
        attachments: member.attachments.iter().map(read).collect::<Result<_, _>>()?,
    })
}

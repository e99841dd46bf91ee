//! Reads the MAC and the IPv4 address of a veth pair's end that is in another network namespace,
//! without entering that namespace: the kernel answers queries about a namespace for which it has
//! given this one an id.

use std::io;
use std::net::Ipv4Addr;

use mesh_ebpf::abi::Mac;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Link, Netlink, read_address, read_link};

/// The end of a veth pair that a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FarEnd {
    /// The MAC address of the veth in the container.
    pub mac: Mac,
    /// Its first IPv4 address.
    pub address: Ipv4Addr,
}

impl Netlink {
    /// The other end of `veth`; `None` as long as it is still in this namespace, has no IPv4
    /// address, or has gone.
    ///
    /// # Errors
    /// The kernel refuses a query.
    pub(crate) fn far_end(&mut self, veth: &Link) -> io::Result<Option<FarEnd>> {
        let (Some(namespace), Some(index)) = (veth.peer_namespace, veth.peer) else { return Ok(None) };
        let Some(link) = unless_gone(self.link_elsewhere(namespace, index))?.flatten() else {
            return Ok(None);
        };
        let address = unless_gone(self.address_elsewhere(namespace, index))?.flatten();
        Ok(address.filter(|_| !link.mac.is_none()).map(|address| FarEnd { mac: link.mac, address }))
    }

    fn link_elsewhere(&mut self, namespace: i32, index: u32) -> io::Result<Option<Link>> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        request.attributes.push(LinkAttribute::IfNetnsId(namespace));
        let answers = self.ask(RouteNetlinkMessage::GetLink(request), NLM_F_ACK)?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(read_link(message)),
            _ => None,
        }))
    }

    fn address_elsewhere(&mut self, namespace: i32, index: u32) -> io::Result<Option<Ipv4Addr>> {
        // Without strict checks the kernel ignores the namespace, and lists this one's addresses.
        self.socket.set_netlink_get_strict_chk(true)?;
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        request.header.index = index;
        request.attributes.push(AddressAttribute::TargetNetNsId(namespace));
        let answers = self.ask(RouteNetlinkMessage::GetAddress(request), NLM_F_DUMP);
        self.socket.set_netlink_get_strict_chk(false)?;
        Ok(answers?.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => {
                read_address(&message).filter(|(owner, _)| *owner == index).map(|(_, address)| address)
            }
            _ => None,
        }))
    }
}

/// `None` if the query failed because the namespace or the link is gone.
fn unless_gone<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)) => {
            Ok(None)
        }
        answer => answer.map(Some),
    }
}

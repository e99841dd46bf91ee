//! Isolated ports of a bridge: the kernel forwards between them and the bridge itself, and never
//! from one to another (`ip-link(8)`, `bridge_slave isolated`).

use std::io;

use rtnetlink::LinkUnspec;
use rtnetlink::packet_core::NLM_F_ACK;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo};

use super::netlink::Netlink;

impl Netlink {
    /// Makes an interface that is a port of a bridge an isolated one. Its carrier doesn't change.
    pub(crate) fn isolate_port(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkUnspec::new_with_index(index).build();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(true)])),
        ]));
        // Without NLM_F_CREATE the kernel changes the interface that has this index.
        self.ask(RouteNetlinkMessage::NewLink(message), NLM_F_ACK).map(drop)
    }
}

//! Any bytes, as a question of a task by UDP or TCP: nothing panics, an answer can be read, repeats
//! the question's id, fits its client, and has no address of a network that the task isn't on.
//!
//! The first byte chooses the transport and the task; of the rest, a byte may choose a good header.

#![no_main]

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use libfuzzer_sys::fuzz_target;
use mesh_agent::names::respond::{Step, respond};
use mesh_agent::names::wire::Transport;
use mesh_agent::names::zone::Zone;
use mesh_agent::task::local::Asker;
use mesh_agent::view::NodeView;
use mesh_state::ids::NodeId;
use mesh_state::proto;

/// Networks `net_1` and `net_2` of the same names: `web` with a virtual IP, and 200 tasks of `db`
/// without.
static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let mut table = proto::MeshTable { generation: 1, ..proto::MeshTable::default() };
    for number in 1..=2 {
        let network = format!("net_{number}");
        table.networks.push(proto::MeshNetwork {
            id: network.clone(),
            name: network.clone(),
            number,
            subnet: format!("10.{number}.0.0/16"),
            ..proto::MeshNetwork::default()
        });
        for (name, last) in [("web", "9.9"), ("db", "")] {
            let virtual_ip = if last.is_empty() { String::new() } else { format!("10.{number}.{last}") };
            table.services.push(proto::MeshService {
                id: format!("{name}{number}"),
                name: name.into(),
                policy: "round-robin".into(),
                networks: vec![proto::MeshServiceNetwork {
                    network_id: network.clone(),
                    virtual_ip,
                    aliases: vec!["www".into()],
                }],
                ..proto::MeshService::default()
            });
        }
        for task in 1..=200 {
            table.members.push(proto::MeshMember {
                id: format!("t{number}x{task}"),
                service_id: format!("db{number}"),
                name: format!("db.{task}.t{task}"),
                node_id: "here".into(),
                state: proto::BackendState::Active.into(),
                weight: 1,
                attachments: vec![proto::MeshAttachment {
                    network_id: network.clone(),
                    address: format!("10.{number}.1.{task}"),
                    ..proto::MeshAttachment::default()
                }],
                ..proto::MeshMember::default()
            });
        }
    }
    let own = NodeView::new(NodeId::from("here"), Ipv4Addr::LOCALHOST);
    Zone::of(&own.apply(&table).expect("a good table"))
});

fuzz_target!(|data: &[u8]| {
    let [choice, bytes @ ..] = data else { return };
    let transport = if choice & 1 == 0 { Transport::Udp } else { Transport::Tcp };
    let asker = Asker { networks: vec!["net_1".into()], has_own_servers: choice & 2 != 0 };
    let mut bytes = bytes.to_vec();
    if choice & 4 != 0 && bytes.len() >= 12 {
        bytes[2..11].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0]);
        bytes[11] &= 1;
    }
    match respond(&ZONE, Some(&asker), &bytes, transport) {
        Step::Reply(reply, _) => {
            let answer = Message::from_vec(&reply).expect("an answer can be read");
            assert_eq!(reply[..2], bytes[..2], "another id");
            assert!(transport == Transport::Tcp || reply.len() <= 1232, "{} bytes by UDP", reply.len());
            for record in answer.answers.iter().chain(&answer.additionals) {
                if let RData::A(address) = &record.data {
                    assert_eq!(address.octets()[1], 1, "an address of another network: {record}");
                }
            }
        }
        Step::Forward(question) => assert!(question.room() >= 512),
        Step::Silence => {}
        Step::Wait(_) => panic!("it is known who asks"),
    }
});

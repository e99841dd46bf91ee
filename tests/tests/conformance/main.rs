//! The conformance suite: one table of behaviours × {IPv4, IPv6} × {local, remote task}, on the
//! lab's datapath.
//!
//! Every cell is tried and the whole table printed before the test passes or fails. A cell is left
//! out only for a reason that the table states.
#![cfg(feature = "cluster")]

mod behaviour;
mod ends;
mod icmp;
mod labels;
mod loss;
mod table;
mod transfer;

use anyhow::{Context, Result};
use mesh_tests::{Service, cluster};

use behaviour::{Behaviour, Case, Family, Placed};
use table::{Outcome, Table};

/// Behaviours of a service with one task, in the order of the table. Those that change the service
/// come last.
const BEHAVIOURS: [Behaviour; 19] = [
    Behaviour { name: "TCP: a request is answered", check: transfer::request },
    Behaviour { name: "TCP: the task sees the client", check: transfer::client_is_kept },
    Behaviour { name: "TCP: 8 MB down, every byte", check: transfer::download },
    Behaviour { name: "TCP: 1 MB up, half-close, back", check: transfer::half_close },
    Behaviour { name: "TCP: 200 connections at once", check: transfer::many },
    Behaviour { name: "UDP: a datagram is answered", check: transfer::datagram },
    Behaviour { name: "UDP: the task sees the client", check: transfer::datagram_client_is_kept },
    Behaviour { name: "UDP: 8000 bytes, in fragments", check: transfer::large_datagram },
    Behaviour { name: "UDP: too big a datagram, its way known", check: icmp::path_mtu },
    Behaviour { name: "UDP: a task's refusal is heard", check: icmp::refusal_of_the_task },
    Behaviour { name: "ICMP: an error finds the task's socket", check: icmp::error_reaches_the_task },
    Behaviour { name: "no backend: TCP is refused at once", check: loss::tcp_without_backend },
    Behaviour { name: "no backend: UDP is refused at once", check: loss::udp_without_backend },
    Behaviour { name: "every policy: answered, nothing cut", check: labels::policies },
    Behaviour { name: "allow-list: in and out", check: labels::allow_list },
    Behaviour { name: "mode dsr: answered, client kept", check: labels::dsr },
    Behaviour { name: "mode proxy: PROXY v2 tells the client", check: labels::proxy },
    Behaviour { name: "a mode switch cuts no connection", check: labels::mode_switch },
    Behaviour { name: "backend dies: its connection is reset", check: loss::backend_dies },
];

#[test]
fn every_behaviour_in_every_cell() -> Result<()> {
    let cluster = cluster()?;
    let create = |name, ports: &[&str], label| {
        Service::create(&cluster, name, &ends::one_task(&cluster, ports, label)?)
    };
    let _one = create(ends::SERVICE, &["8200:80", "8207:7", "8209:9/udp", "8211:99/udp"], None)?;
    let _proxied = create(ends::PROXIED, &["8220:80"], Some("mesh.lb.mode=proxy"))?;
    let _none = create(ends::HOLLOW, &["8210:80", "8210:9/udp"], None)?;
    cluster.docker()?.run(&["service", "scale", "--detach", &format!("{}=0", ends::HOLLOW)])?;
    let mut table = Table::new(&cluster.record.datapath);
    for behaviour in BEHAVIOURS {
        for family in Family::ALL {
            for placed in Placed::ALL {
                let outcome = match Case::of(&cluster, family, placed) {
                    Ok(case) => {
                        (behaviour.check)(&case).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")))
                    }
                    Err(error) => Outcome::Failed(format!("{error:#}")),
                };
                table.note(behaviour.name, family, placed, outcome);
            }
        }
    }
    println!("{table}");
    table.check().context("conformance")
}

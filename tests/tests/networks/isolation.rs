//! Tasks that share no network don't reach each other by any address; published ports are for all.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, anyhow, ensure};
use mesh_lab::client::http;

use crate::shop::Shop;
use crate::task::{Task, Way};

const BACK: &str = "shop_back";
/// The engine's network by which tasks reach the outside.
const MESH: &str = "mesh";

/// A client task, and an address of a server task that it tries.
struct Case<'a> {
    from: &'a Task,
    to: &'a Task,
    address: Ipv4Addr,
    which: &'static str,
}

/// A stranger tries three addresses of a task on its own node and of one on another node: on the
/// network, on `mesh`, and the virtual IP. Members of the network reach the same servers.
pub(crate) fn strangers_reach_nothing(shop: &Shop) -> Result<()> {
    let (echoes, strangers) = (shop.tasks("echo")?, shop.tasks("stranger")?);
    let nodes: Vec<&String> = echoes.keys().take(2).collect();
    let [here, there] = nodes[..] else { return Err(anyhow!("expected two nodes, saw {nodes:?}")) };
    let (near, far) = (&echoes[here], &echoes[there]);
    let stranger = strangers.get(here).with_context(|| format!("no stranger on {here}"))?;
    let of_members = [
        Case { from: near, to: far, address: far.address(BACK)?, which: "its address on another node" },
        Case { from: far, to: near, address: near.address(BACK)?, which: "its address on another node" },
    ];
    all(&of_members, true)?;
    let virtual_ip = shop.virtual_ip("echo", "back")?;
    let case = |to, address, which| Case { from: stranger, to, address, which };
    let of_stranger = [
        case(near, near.address(BACK)?, "its address, same node"),
        case(far, far.address(BACK)?, "its address, other node"),
        case(near, near.address(MESH)?, "its address on mesh, same node"),
        case(far, far.address(MESH)?, "its address on mesh, other node"),
        case(near, virtual_ip, "the virtual IP"),
    ];
    all(&of_stranger, false)?;
    published_ports_are_for_all(shop, stranger)
}

/// Tries every case over every protocol concurrently, so that the test waits for timeouts only
/// once.
fn all(cases: &[Case<'_>], expected: bool) -> Result<()> {
    let wrong = std::thread::scope(|scope| {
        let tried: Vec<_> = cases
            .iter()
            .flat_map(|case| Way::ALL.map(|way| (case, way)))
            .map(|(case, way)| (case, way, scope.spawn(move || case.from.reaches(way, case.address))))
            .collect();
        let mut wrong = Vec::new();
        for (case, way, trying) in tried {
            let reached = trying.join().map_err(|_| anyhow!("a try panicked"))??;
            if reached != expected {
                wrong.push(format!(
                    "{} to {} by {} ({}) over {way:?}: expected {}, saw {}",
                    case.from.name,
                    case.to.name,
                    case.address,
                    case.which,
                    outcome(expected),
                    outcome(reached)
                ));
            }
        }
        anyhow::Ok(wrong)
    })?;
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

fn outcome(reached: bool) -> &'static str {
    if reached { "an answer" } else { "none" }
}

/// A stranger reaches the published page like any other client.
fn published_ports_are_for_all(shop: &Shop, stranger: &Task) -> Result<()> {
    for node in &shop.cluster.record.nodes {
        let server = SocketAddrV4::new(node.ip, crate::page::PORT);
        let status = stranger.inside(|| Ok(http::get(server, "/?word=stranger", http::DEADLINE)?.status))?;
        ensure!(status == 200, "the page through {} for a stranger: expected 200, saw {status}", node.name);
    }
    Ok(())
}

//! What happens when somebody removes the pins of a running agent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mesh_agent::datapath::DatapathMode;

use crate::netlab::{NODES, Netlab};
use crate::node::{Node, Traces, configs};
use crate::{can_run, check_client_address, connect, echo, eventually, start};

/// All files below a directory.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return BTreeSet::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { BTreeSet::from([path]) }).collect()
}

/// The pins of maps, of links and of tasks' links: `maps.debug` and `progs.debug` are the kernel's.
fn pins(bpffs: &Path) -> BTreeSet<PathBuf> {
    files(bpffs).into_iter().filter(|path| path.parent() != Some(bpffs)).collect()
}

/// Removes these directories of pins and waits until every pin is there again.
fn remove_and_wait(bpffs: &Path, kinds: &[&str]) {
    let before = pins(bpffs);
    let version = before.first().and_then(|pin| pin.parent()?.parent()).expect("a version's directory");
    for kind in kinds {
        std::fs::remove_dir_all(version.join(kind)).expect("it is removed");
    }
    if kinds.len() == KINDS.len() {
        std::fs::remove_dir(version).expect("it is removed");
    }
    eventually("the pins are made again", || pins(bpffs) == before);
}

const KINDS: [&str; 3] = ["maps", "links", "tasks"];

/// The agent makes all of them again and serves; the next agent finds the same maps, with the flows
/// in them.
#[test]
fn pins_that_were_removed_are_made_again() {
    if !can_run() {
        return;
    }
    let configs = configs("pins", DatapathMode::Tc);
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("pins", false);
    let (nodes, _) = start(&lab, &configs);
    for config in &configs {
        // An uplink's programs end with their pins: what comes until they are attached again gets a
        // RST from the host.
        remove_and_wait(&config.bpffs, &KINDS);
    }
    for node in [0, 1] {
        eventually("connections go through again", || lab.client.call(move || connect(NODES[node])).is_ok());
        check_client_address(&lab, node);
    }

    let mut live = lab.client.call(|| connect(NODES[0])).expect("a long connection").0;
    echo(&mut live, 1000);
    for config in &configs {
        remove_and_wait(&config.bpffs, &["maps", "tasks"]);
    }
    echo(&mut live, 1000);
    nodes.into_iter().for_each(Node::stop);
    let nodes = [0, 1].map(|node| Node::start(&lab, node, &configs[node]));
    echo(&mut live, 1000);
    nodes.into_iter().for_each(Node::stop);
    drop(lab);
    drop(traces);
}

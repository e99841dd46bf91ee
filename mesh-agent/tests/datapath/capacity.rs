//! An agent, as it is started, with tables for a million connections.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};

use mesh_agent::datapath::{self, DatapathMode};

use crate::netlab::{NODES, Netlab};
use crate::node::{Traces, configs};
use crate::{DEADLINE, can_run, eventually};

const METRICS_PORT: u16 = 9464;

/// The agent's process, which ends with the test.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

fn scrape() -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS_PORT))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn an_agent_has_room_for_a_million_flows() {
    if !can_run() {
        return;
    }
    let configs = configs("million", DatapathMode::Tc);
    let traces = Traces { configs: configs.clone() };
    let lab = Netlab::new("million", false);
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    std::fs::write(&token, format!("SWMTKN-1-{}-{}", "0".repeat(64), "0".repeat(25))).expect("a token");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
    command
        .args(["run", "--name", "million", "--datapath", "tc", "--flows-max", "1000000"])
        .args(["--interface", "eth0", "--address", &NODES[0].to_string(), "--manager", "127.0.0.1:1"])
        .args(["--metrics-listen", &format!("127.0.0.1:{METRICS_PORT}")])
        .args(["--engine", "unix:///nowhere/engine.sock"])
        .arg("--bpffs")
        .arg(&configs[0].bpffs)
        .arg("--join-token-file")
        .arg(&token)
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .arg("--socket")
        .arg(directory.path().join("docker.sock"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let agent = Agent(lab.nodes[0].call(move || command.spawn()).expect("the agent starts"));
    for (map, room) in [("FLOWS", 1_000_000 + (1 << 16)), ("NAT_ESTABLISHED", 1_000_000)] {
        let expected = format!("mesh_bpf_map_max_entries{{map=\"{map}\"}} {room}");
        eventually(&expected, || {
            let text = lab.nodes[0].call(scrape).unwrap_or_default();
            text.lines().any(|line| line == expected)
        });
    }
    drop(agent);
    let config = configs[0].clone();
    lab.nodes[0].call(move || datapath::uninstall(&config)).expect("all goes");
    drop(lab);
    drop(traces);
}

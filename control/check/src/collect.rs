//! Reads facts from this machine. Blocks.
//!
//! Invariant: reads only. What can't be read is left out of the facts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::statfs;
use serde_json::Value;

use crate::facts::{Engine, Expected, HostFacts, HostRoute, Listener, Scrape, Transport, Uplink};
use crate::firewall::{Ruleset, parse_iptables, parse_nft};
use crate::{http, proc_net};

/// The magic number of a BPF file system.
const BPF_FS: u64 = 0xcafe_4a11;
/// The magic number of control groups of version 2.
const CGROUP2_FS: u64 = 0x6367_7270;
/// mesh's tunnel device.
const TUNNEL_DEVICE: &str = "mesh-vxlan0";
/// What the names of mesh's devices begin with.
const OWN_DEVICES: [&str; 3] = ["mesh0", TUNNEL_DEVICE, "meshn"];

/// Reads what is known of this machine; `expected` says where to look.
pub fn host(expected: &Expected) -> HostFacts {
    let routes =
        fs::read_to_string("/proc/net/route").map(|text| proc_net::routes(&text)).unwrap_or_default();
    HostFacts {
        is_root: rustix::process::geteuid().is_root(),
        kernel: setting("/proc/sys/kernel/osrelease").unwrap_or_default(),
        has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        jit: setting("/proc/sys/net/core/bpf_jit_enable"),
        has_bpffs: is_on("/sys/fs/bpf", BPF_FS),
        has_tun: Path::new("/dev/net/tun").exists(),
        has_cgroup2: is_on("/sys/fs/cgroup", CGROUP2_FS),
        engine: Some(ask_engine(&expected.engine)),
        listeners: listeners(),
        has_tunnel_device: Path::new("/sys/class/net").join(TUNNEL_DEVICE).exists(),
        rulesets: rulesets(),
        uplinks: uplinks(&routes),
        reverse_path_filter: setting("/proc/sys/net/ipv4/conf/all/rp_filter"),
        routes: routes.into_iter().filter(is_foreign).collect(),
        etcd_bytes: expected.etcd.as_ref().and_then(|etcd| Some(fs::metadata(&etcd.database).ok()?.len())),
        is_clock_kept: is_clock_kept(),
    }
}

/// Reads the metrics of an agent or manager, and whether it is ready.
pub fn scrape(node: &str, is_manager: bool, address: IpAddr, port: u16) -> Scrape {
    let address = SocketAddr::new(address, port);
    let metrics = match http::get_tcp(address, "/metrics") {
        Ok((200, text)) => Ok(text),
        Ok((status, _)) => Err(format!("http://{address}/metrics answered {status}")),
        Err(error) => Err(format!("http://{address}/metrics: {error}")),
    };
    let not_ready = match http::get_tcp(address, "/readyz") {
        Ok((200, _)) | Err(_) => None,
        Ok((_, text)) => Some(text),
    };
    Scrape { node: node.to_owned(), is_manager, metrics, not_ready }
}

/// The settings in force of a daemon that is installed here.
pub fn settings_of(daemon: &str) -> Option<toml::Table> {
    output(daemon, &["--print-config"])?.parse().ok()
}

fn setting(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn is_on(path: &str, magic: u64) -> bool {
    statfs(path).is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| kind == magic))
}

/// What a program prints; `None` if it is absent or fails.
fn output(program: &str, words: &[&str]) -> Option<String> {
    // In the package's directories too: users' PATH seldom has them.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.args(words).env("PATH", path).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

fn ask_engine(socket: &Path) -> Result<Engine, String> {
    let ask = |path: &str| -> Result<Value, String> {
        let (status, body) = http::get_unix(socket, path).map_err(|error| error.to_string())?;
        if status != 200 {
            return Err(format!("{path} answered {status}"));
        }
        serde_json::from_str(&body).map_err(|error| format!("{path} is no JSON: {error}"))
    };
    let (version, info) = (ask("/version")?, ask("/info")?);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(Engine {
        version: text(&version["Version"]),
        api: text(&version["ApiVersion"]),
        swarm: text(&info["Swarm"]["LocalNodeState"]),
    })
}

fn listeners() -> Vec<Listener> {
    let tables = [
        ("tcp", Transport::Tcp),
        ("tcp6", Transport::Tcp),
        ("udp", Transport::Udp),
        ("udp6", Transport::Udp),
    ];
    let mut sockets = Vec::new();
    for (table, transport) in tables {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        sockets.extend(proc_net::listening(&text, transport).into_iter().map(|socket| (transport, socket)));
    }
    let owners = owners(&sockets.iter().map(|(_, socket)| socket.inode).collect());
    let listener = |(transport, socket): (Transport, proc_net::Socket)| Listener {
        transport,
        port: socket.port,
        is_wildcard: socket.is_wildcard,
        owner: owners.get(&socket.inode).cloned(),
    };
    sockets.into_iter().map(listener).collect()
}

/// The names of the programs that hold these sockets, by inode.
fn owners(inodes: &BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut owners = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    for process in processes.filter(|entry| is_process(&entry.file_name())) {
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            let inode =
                inode.and_then(|digits| digits.parse::<u64>().ok()).filter(|inode| inodes.contains(inode));
            if let (Some(inode), Ok(name)) = (inode, fs::read_to_string(process.path().join("comm"))) {
                owners.insert(inode, name.trim().to_owned());
            }
        }
    }
    owners
}

fn rulesets() -> Vec<Ruleset> {
    let listed = output("nft", &["--json", "list", "ruleset"]);
    let listed: Option<Value> = listed.and_then(|text| serde_json::from_str(&text).ok());
    let mut rulesets = listed.map(|listed| parse_nft(&listed)).unwrap_or_default();
    // Rules that nft can't show in full, and those of the legacy iptables.
    rulesets.extend(output("iptables-save", &[]).map(|text| parse_iptables(&text)));
    rulesets.extend(output("iptables-legacy-save", &[]).map(|text| parse_iptables(&text)));
    rulesets
}

fn uplinks(routes: &[HostRoute]) -> Vec<Uplink> {
    let names: BTreeSet<&str> = routes
        .iter()
        .filter(|route| route.network.prefix_len() == 0)
        .map(|route| route.device.as_str())
        .collect();
    let mtu = |name: &str| setting(&format!("/sys/class/net/{name}/mtu"))?.parse().ok();
    names.into_iter().map(|name| Uplink { name: name.to_owned(), mtu: mtu(name) }).collect()
}

fn is_foreign(route: &HostRoute) -> bool {
    route.network.prefix_len() > 0 && !OWN_DEVICES.iter().any(|own| route.device.starts_with(own))
}

/// Whether the kernel was told lately that its clock is right. `None` where a unit may not ask.
fn is_clock_kept() -> Option<bool> {
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `clock` lives through the call; with `modes` 0 the kernel changes no clock.
    let state = unsafe { libc::adjtimex(&raw mut clock) };
    (state >= 0).then_some(state != libc::TIME_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_read() {
        let mut expected =
            Expected::by_settings(None, None, ("10.128.0.0/12".parse().expect("a network"), 0));
        expected.engine = "/nonexistent/docker.sock".into();
        let facts = host(&expected);
        assert!(!facts.kernel.is_empty());
        assert!(matches!(facts.engine, Some(Err(_))), "no engine is there");
        assert!(facts.routes.iter().all(|route| route.network.prefix_len() > 0));
    }

    #[test]
    fn a_listener_is_found_with_its_program() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        let found =
            listeners().into_iter().find(|held| held.port == port && held.transport == Transport::Tcp);
        let found = found.expect("it is listed");
        assert!(!found.is_wildcard && found.owner.is_some(), "{found:?}");
    }
}

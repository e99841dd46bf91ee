//! How a container resolves names: the file `/etc/resolv.conf`, by which programs ask this node's
//! name server directly, and the servers that the engine's resolver asks. Pure.
//!
//! Why directly: the engine's resolver answers for every container on a network of the engine, and
//! all tasks of a node are on `mesh`. If a task asked it for a hostname of another task of the
//! node, it would get that task's address on `mesh`, whether they share a network or not, and
//! nothing answers there. So the engine's resolver is only for programs that ask 127.0.0.11
//! themselves, and for tasks on networks whose user gave name servers: it asks those after ours,
//! from the task's own address.

use std::net::Ipv4Addr;
use std::path::Path;

use mesh_state::spec::ContainerSpec;
use mesh_state::task::Assignment;

use super::extras::ContainerExtras;
use super::is_confined;
use crate::task::dependencies::files::{OwnFile, directory};

/// The resolver's settings in a container.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// An option with the resolver's own default. Without any option, the engine takes over the host's,
/// `ndots` among them; with `ndots`, its resolver never passes on a name without a dot.
const DEFAULT_OPTION: &str = "timeout:5";

/// What a node offers its containers for names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeNames {
    /// The node's address on the network `mesh`, if it serves names there and on the others.
    pub server: Option<Ipv4Addr>,
    /// The host's search domains, for containers whose user gave none.
    pub search: Vec<String>,
}

impl NodeNames {
    /// Takes the search domains out of a `resolv.conf` (resolv.conf(5): the last line counts).
    pub fn new(server: Option<Ipv4Addr>, resolv_conf: &str) -> Self {
        let lines = resolv_conf.lines().map(str::split_whitespace);
        let mut domains = lines.filter_map(|mut words| {
            matches!(words.next(), Some("search" | "domain")).then(|| words.map(str::to_owned).collect())
        });
        Self { server, search: domains.next_back().unwrap_or_default() }
    }
}

/// The servers and options of the engine's resolver, by precedence.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EngineNames {
    pub(super) servers: Vec<String>,
    pub(super) options: Vec<String>,
}

/// Where the name server of a task listens, if it is to ask one of this node.
fn server(assignment: &Assignment, extras: &ContainerExtras, node: &NodeNames) -> Option<Ipv4Addr> {
    if assignment.networks.is_empty() && !extras.dns_config.nameservers.is_empty() {
        // There is no name that only this node knows.
        return None;
    }
    let on_mesh = node.server?;
    let confined = assignment.networks.first().filter(|_| is_confined(assignment));
    Some(confined.map_or(on_mesh, |network| network.node_address))
}

/// The servers and options of the engine's resolver for a task.
pub(super) fn of_engine(assignment: &Assignment, extras: &ContainerExtras, node: &NodeNames) -> EngineNames {
    let given = &extras.dns_config;
    let server = server(assignment, extras, node);
    let mut options = given.options.clone();
    if options.is_empty() && server.is_some() {
        options.push(DEFAULT_OPTION.to_owned());
    }
    let servers = server.iter().map(ToString::to_string).chain(given.nameservers.iter().cloned());
    EngineNames { servers: servers.collect(), options }
}

/// The container's `resolv.conf`, below `files_root`; absent if the task is to ask the engine's
/// resolver, or if the user mounts a file there.
pub(super) fn file(
    assignment: &Assignment,
    extras: &ContainerExtras,
    node: &NodeNames,
    files_root: &Path,
) -> Option<OwnFile> {
    let given = &extras.dns_config;
    let on_networks = !assignment.networks.is_empty();
    let servers = match server(assignment, extras, node) {
        Some(_) if !given.nameservers.is_empty() => return None,
        Some(server) => vec![server.to_string()],
        None if on_networks || given.nameservers.is_empty() => return None,
        None => given.nameservers.clone(),
    };
    if is_mounted(assignment, extras) {
        return None;
    }
    let search = if given.search.is_empty() { &node.search } else { &given.search };
    // As Docker spells "none".
    let search: Vec<&str> = search.iter().map(String::as_str).filter(|domain| *domain != ".").collect();
    let mut options = given.options.clone();
    if on_networks && !options.iter().any(|option| option.starts_with("ndots:")) {
        // As on every network of Docker's: a name without a dot is a service's first.
        options.push("ndots:0".to_owned());
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut text = String::new();
    for server in &servers {
        push(&mut text, "nameserver", &[server]);
    }
    push(&mut text, "search", &search);
    push(&mut text, "options", &options);
    let source = directory(files_root, &assignment.task.id).join("resolv.conf");
    Some(OwnFile { source, target: RESOLV_CONF.to_owned(), text })
}

/// Whether the user's own mount, config or secret is there.
fn is_mounted(assignment: &Assignment, extras: &ContainerExtras) -> bool {
    let mounts = extras.mounts.iter().filter_map(|mount| mount.get("Target")?.as_str());
    let spec = assignment.spec.container_spec.as_ref();
    let mut files = spec.into_iter().flat_map(ContainerSpec::references).filter_map(|file| file.path());
    files.any(|path| path == RESOLV_CONF) || mounts.into_iter().any(|target| target == RESOLV_CONF)
}

fn push(text: &mut String, keyword: &str, values: &[&str]) {
    if !values.is_empty() {
        text.push_str(keyword);
        for value in values {
            text.push(' ');
            text.push_str(value);
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use mesh_state::network::AssignedNetwork;
    use serde_json::{Value, json};

    use super::super::extras::read;
    use super::*;
    use crate::task::worker::tests::assignment;

    const NODE: &str = "10.128.0.1";

    /// Whom the engine asks, and the file, for these DNS settings.
    fn names(networks: &[bool], settings: &Value) -> (EngineNames, Option<String>) {
        names_of(networks, &json!({"Image": "x", "DNSConfig": settings}))
    }

    fn names_of(networks: &[bool], spec: &Value) -> (EngineNames, Option<String>) {
        let spec: ContainerSpec = serde_json::from_value(spec.clone()).expect("a spec");
        let extras: ContainerExtras = read("ContainerSpec", &spec.extra).expect("its fields");
        let mut task = assignment("t1");
        task.spec.container_spec = Some(spec);
        let network = |internal: &bool| AssignedNetwork {
            id: "n5".into(),
            name: "app".to_owned(),
            number: 5,
            subnet: "10.0.5.0/24".parse().expect("a subnet"),
            subnet6: None,
            node_address: [10, 0, 5, 2].into(),
            internal: *internal,
            mtu: None,
            address: [10, 0, 5, 7].into(),
            aliases: Vec::new(),
        };
        task.networks = networks.iter().map(network).collect();
        let node = NodeNames::new(NODE.parse().ok(), "domain old.org\nsearch lan example.org\n");
        let file = file(&task, &extras, &node, Path::new("/files"));
        if let Some(file) = &file {
            assert_eq!(file.source, PathBuf::from("/files/task-t1/resolv.conf"));
        }
        (of_engine(&task, &extras, &node), file.map(|file| file.text))
    }

    fn engine(servers: &[&str], options: &[&str]) -> EngineNames {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        EngineNames { servers: owned(servers), options: owned(options) }
    }

    #[test]
    fn a_task_asks_its_node() {
        let (asked, file) = names(&[false], &json!({}));
        assert_eq!(asked, engine(&[NODE], &["timeout:5"]), "the host's ndots must not count");
        let text = "nameserver 10.128.0.1\nsearch lan example.org\noptions ndots:0\n";
        assert_eq!(file.as_deref(), Some(text));
        let (asked, file) = names(&[], &json!({}));
        assert_eq!(asked, engine(&[NODE], &["timeout:5"]));
        assert_eq!(file.as_deref(), Some("nameserver 10.128.0.1\nsearch lan example.org\n"));
    }

    #[test]
    fn what_the_user_set_holds() {
        let settings = json!({"Search": ["x.org"], "Options": ["ndots:2", "timeout:1"]});
        let (asked, file) = names(&[false], &settings);
        assert_eq!(asked, engine(&[NODE], &["ndots:2", "timeout:1"]));
        let text = "nameserver 10.128.0.1\nsearch x.org\noptions ndots:2 timeout:1\n";
        assert_eq!(file.as_deref(), Some(text));
        let (_, file) = names(&[], &json!({"Search": ["."]}));
        assert_eq!(file.as_deref(), Some("nameserver 10.128.0.1\n"), "no search domains, not the host's");
    }

    #[test]
    fn servers_of_the_users_are_asked_after_the_node_or_alone_without_networks() {
        let (asked, file) = names(&[false], &json!({"Nameservers": ["192.0.2.53"]}));
        assert_eq!((asked, file), (engine(&[NODE, "192.0.2.53"], &["timeout:5"]), None));
        let (asked, file) = names(&[], &json!({"Nameservers": ["192.0.2.53"], "Options": ["timeout:1"]}));
        assert_eq!(asked, engine(&["192.0.2.53"], &["timeout:1"]));
        let text = "nameserver 192.0.2.53\nsearch lan example.org\noptions timeout:1\n";
        assert_eq!(file.as_deref(), Some(text));
    }

    #[test]
    fn a_task_that_is_not_on_mesh_asks_the_node_on_its_own_network() {
        let (asked, file) = names(&[true], &json!({}));
        assert_eq!(asked.servers, ["10.0.5.2"]);
        assert!(file.is_some_and(|text| text.starts_with("nameserver 10.0.5.2\n")));
        let (asked, _) = names(&[true, false], &json!({}));
        assert_eq!(asked.servers, [NODE], "one of its networks leads out");
    }

    #[test]
    fn a_file_of_the_users_stays() {
        let mount = json!({"Type": "bind", "Source": "/own", "Target": "/etc/resolv.conf"});
        let (_, file) = names_of(&[false], &json!({"Image": "x", "Mounts": [mount]}));
        assert_eq!(file, None);
        let config = json!({"File": {"Name": "/etc/resolv.conf"}, "ConfigID": "c", "ConfigName": "c"});
        let (_, file) = names_of(&[false], &json!({"Image": "x", "Configs": [config]}));
        assert_eq!(file, None);
    }
}

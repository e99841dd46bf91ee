//! Prometheus finds services, tasks and nodes by the Docker API of a manager, as it does in Swarm.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mesh_lab::client::http;
use mesh_lab::cluster::{Cluster, Docker, eventually};
use serde_json::Value;

use crate::shop::Shop;

/// The port of Prometheus in the client's namespace.
const PORT: u16 = 9095;
/// Prometheus passes what it has discovered on every five seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// The port of a target that publishes none.
const DEFAULT_PORT: u16 = 80;
const ROLES: [&str; 3] = ["services", "tasks", "nodes"];
const META: &str = "__meta_dockerswarm_";

/// A target: its job, its address and some of its labels, without the prefix that all have.
type Target = (String, String, BTreeMap<String, String>);

/// A running Prometheus; dropping it ends it.
struct Prometheus {
    process: Child,
    cluster: Cluster,
    log: std::path::PathBuf,
    _directory: Directory,
}

/// A directory that is removed when the test ends.
struct Directory(std::path::PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}

impl Prometheus {
    /// Starts Debian's Prometheus in the client's namespace, with a job for each role that asks the
    /// API at `host`.
    fn start(cluster: &Cluster, host: &str) -> Result<Self> {
        let directory =
            Directory(std::env::temp_dir().join(format!("mesh-discovery-{}", std::process::id())));
        fs::create_dir_all(&directory.0).with_context(|| format!("make {}", directory.0.display()))?;
        let (settings, log) = (directory.0.join("prometheus.yml"), directory.0.join("log"));
        write_settings(&settings, host)?;
        let output = fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let listen = SocketAddrV4::new(cluster.record.client.ip, PORT);
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", settings.display()))
            .arg(format!("--storage.tsdb.path={}", directory.0.join("data").display()))
            .arg(format!("--web.listen-address={listen}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output);
        // A process is in the namespace of the thread that starts it.
        let process = cluster.client().run(|| {
            command.spawn().context("start prometheus; next: cargo xtask setup, which installs it")
        })?;
        Ok(Self { process, cluster: cluster.clone(), log, _directory: directory })
    }

    /// The targets, with all labels that discovery gave them.
    fn targets(&self) -> Result<Vec<BTreeMap<String, String>>> {
        let server = SocketAddrV4::new(self.cluster.record.client.ip, PORT);
        let asked = || http::get(server, "/api/v1/targets?state=active", http::DEADLINE);
        let answer: Value = serde_json::from_slice(&self.cluster.client().run(asked)?.body)?;
        let targets = answer["data"]["activeTargets"].as_array().context("no activeTargets")?;
        let labels = targets.iter().map(|target| serde_json::from_value(target["discoveredLabels"].clone()));
        labels.collect::<Result<_, _>>().context("read discoveredLabels")
    }

    /// Lines of its log that tell of a refresh that failed.
    fn complaints(&self) -> Result<Vec<String>> {
        let log = fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        Ok(log.lines().filter(|line| line.contains("level=error")).map(str::to_owned).collect())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            eprintln!("end prometheus: {error}");
        }
    }
}

/// One job for each role.
fn write_settings(path: &Path, host: &str) -> Result<()> {
    let job = |role| {
        format!(
            "- job_name: {role}\n  dockerswarm_sd_configs:\n  - {{host: '{host}', role: {role}, refresh_interval: 1s}}\n"
        )
    };
    let text = format!("global: {{scrape_interval: 1h}}\nscrape_configs:\n{}", ROLES.map(job).concat());
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Every virtual IP of the stack's services, every address of its tasks and every node is a target.
pub(crate) fn by_prometheus(shop: &Shop) -> Result<()> {
    let prometheus = Prometheus::start(&shop.cluster, shop.docker.host())?;
    eventually("the targets of Prometheus", PATIENCE, || {
        let found = prometheus.targets()?;
        let mut expected = services(&shop.docker)?;
        expected.extend(tasks(&shop.docker)?);
        expected.extend(nodes(&shop.docker)?);
        let roles: BTreeSet<&str> = expected.iter().map(|(job, ..)| job.as_str()).collect();
        ensure!(roles.len() == ROLES.len(), "expected targets of each role, saw {roles:?}");
        let missing: Vec<&Target> =
            expected.iter().filter(|target| !found.iter().any(|labels| is(labels, target))).collect();
        let complaints = prometheus.complaints()?;
        ensure!(missing.is_empty(), "missing: {missing:#?}; log: {complaints:#?}; found: {found:#?}");
        Ok(())
    })?;
    let complaints = prometheus.complaints()?;
    ensure!(complaints.is_empty(), "Prometheus complains: {complaints:#?}");
    Ok(())
}

/// Whether a target with these labels is the expected one.
fn is(labels: &BTreeMap<String, String>, (job, address, expected): &Target) -> bool {
    let has = |name: &str, value: &String| labels.get(name) == Some(value);
    has("job", job)
        && has("__address__", address)
        && expected.iter().all(|(name, value)| has(&format!("{META}{name}"), value))
}

/// A target for each virtual IP and TCP port of each service, as Prometheus 2.42 makes them.
fn services(docker: &Docker) -> Result<Vec<Target>> {
    let networks = networks(docker)?;
    let mut found = Vec::new();
    for service in inspected(docker, "service", &["service", "ls", "--quiet"])? {
        for virtual_ip in list(&service["Endpoint"]["VirtualIPs"]) {
            let address = address(text(&virtual_ip["Addr"])?)?;
            let mut labels = BTreeMap::from([
                ("service_id".to_owned(), text(&service["ID"])?.to_owned()),
                ("service_name".to_owned(), text(&service["Spec"]["Name"])?.to_owned()),
            ]);
            labels.extend(labels_of_network(&networks, text(&virtual_ip["NetworkID"])?)?);
            let ports = tcp_ports(&service["Endpoint"]["Ports"]);
            if !ports.is_empty() {
                labels.insert("service_endpoint_port_publish_mode".to_owned(), "ingress".to_owned());
            }
            found.extend(with_ports("services", address, &ports, &labels));
        }
    }
    Ok(found)
}

/// A target for each address and published TCP port of each running task.
fn tasks(docker: &Docker) -> Result<Vec<Target>> {
    let networks = networks(docker)?;
    let services = inspected(docker, "service", &["service", "ls", "--quiet"])?;
    let nodes = inspected(docker, "node", &["node", "ls", "--quiet"])?;
    let by_id = |of: &[Value], id: &Value| {
        of.iter().find(|one| one["ID"] == *id).cloned().with_context(|| format!("no {id}"))
    };
    let names: Vec<&str> = services.iter().filter_map(|service| service["Spec"]["Name"].as_str()).collect();
    let mut found = Vec::new();
    let listing =
        [&["service", "ps", "--quiet", "--no-trunc", "--filter=desired-state=running"], &names[..]].concat();
    for task in inspected(docker, "task", &listing)? {
        if task["Status"]["State"] != "running" {
            continue;
        }
        let service = by_id(&services, &task["ServiceID"])?;
        let node = by_id(&nodes, &task["NodeID"])?;
        for attachment in list(&task["NetworksAttachments"]) {
            for written in list(&attachment["Addresses"]) {
                let mut labels = BTreeMap::from([
                    ("task_id".to_owned(), text(&task["ID"])?.to_owned()),
                    ("task_state".to_owned(), "running".to_owned()),
                    ("task_desired_state".to_owned(), "running".to_owned()),
                    ("service_name".to_owned(), text(&service["Spec"]["Name"])?.to_owned()),
                    ("node_id".to_owned(), text(&node["ID"])?.to_owned()),
                    ("node_hostname".to_owned(), text(&node["Description"]["Hostname"])?.to_owned()),
                    ("node_address".to_owned(), text(&node["Status"]["Addr"])?.to_owned()),
                ]);
                labels.extend(labels_of_network(&networks, text(&attachment["Network"]["ID"])?)?);
                let ports = tcp_ports(&service["Endpoint"]["Ports"]);
                found.extend(with_ports("tasks", address(text(written)?)?, &ports, &labels));
            }
        }
    }
    Ok(found)
}

fn nodes(docker: &Docker) -> Result<Vec<Target>> {
    let target = |node: &Value| -> Result<Target> {
        let address = text(&node["Status"]["Addr"])?;
        let labels = [
            ("node_id", &node["ID"]),
            ("node_hostname", &node["Description"]["Hostname"]),
            ("node_address", &node["Status"]["Addr"]),
            ("node_role", &node["Spec"]["Role"]),
            ("node_availability", &node["Spec"]["Availability"]),
            ("node_status", &node["Status"]["State"]),
            ("node_platform_os", &node["Description"]["Platform"]["OS"]),
            ("node_engine_version", &node["Description"]["Engine"]["EngineVersion"]),
        ];
        let labels = labels.map(|(name, value)| Ok((name.to_owned(), text(value)?.to_owned())));
        Ok((
            "nodes".to_owned(),
            format!("{address}:{DEFAULT_PORT}"),
            labels.into_iter().collect::<Result<_>>()?,
        ))
    };
    inspected(docker, "node", &["node", "ls", "--quiet"])?.iter().map(target).collect()
}

/// One target for each port; without a port, one at the default port.
fn with_ports(job: &str, address: IpAddr, ports: &[u64], labels: &BTreeMap<String, String>) -> Vec<Target> {
    let default = [u64::from(DEFAULT_PORT)];
    let ports = if ports.is_empty() { &default[..] } else { ports };
    ports.iter().map(|port| (job.to_owned(), format!("{address}:{port}"), labels.clone())).collect()
}

fn tcp_ports(ports: &Value) -> Vec<u64> {
    let tcp = list(ports).filter(|port| port["Protocol"] == "tcp");
    tcp.filter_map(|port| port["PublishedPort"].as_u64()).collect()
}

/// The labels that each target on a network has.
fn labels_of_network(networks: &[Value], id: &str) -> Result<BTreeMap<String, String>> {
    let network = networks.iter().find(|network| network["Id"] == id);
    let network = network.with_context(|| format!("the network {id} isn't listed"))?;
    let mut labels = BTreeMap::from([
        ("network_id".to_owned(), id.to_owned()),
        ("network_name".to_owned(), text(&network["Name"])?.to_owned()),
        ("network_scope".to_owned(), "swarm".to_owned()),
    ]);
    for (label, field) in [("network_internal", "Internal"), ("network_ingress", "Ingress")] {
        labels.insert(label.to_owned(), network[field].as_bool().unwrap_or_default().to_string());
    }
    Ok(labels)
}

fn networks(docker: &Docker) -> Result<Vec<Value>> {
    inspected(docker, "network", &["network", "ls", "--quiet", "--no-trunc", "--filter=scope=swarm"])
}

/// The objects of a kind that `listing` names, as the API shows them.
fn inspected(docker: &Docker, kind: &str, listing: &[&str]) -> Result<Vec<Value>> {
    let listed = docker.run(listing)?;
    let ids: Vec<&str> = listed.split_whitespace().collect();
    ensure!(!ids.is_empty(), "nothing is listed by {listing:?}");
    let shown = docker.run(&[&["inspect", "--type", kind], &ids[..]].concat())?;
    serde_json::from_str(&shown).with_context(|| format!("read {kind}s"))
}

/// The address in a CIDR: Prometheus drops all targets of a role if one isn't.
fn address(written: &str) -> Result<IpAddr> {
    let (address, prefix) = written.split_once('/').with_context(|| format!("{written} is no CIDR"))?;
    let prefix: u8 = prefix.parse().with_context(|| format!("{written} is no CIDR"))?;
    ensure!(prefix <= 32, "{written} is no CIDR");
    Ok(address.parse::<Ipv4Addr>().with_context(|| format!("{written} is no CIDR"))?.into())
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().filter(|text| !text.is_empty()).ok_or_else(|| anyhow!("expected a text, saw {value}"))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

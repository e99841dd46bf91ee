//! Ports, firewall, links and address pools of a node.

use crate::facts::{Expected, HostFacts, Listener, NeededPort, Transport};
use crate::finding::Finding;
use crate::firewall::Packet;

/// The port of the agent's name server, at the node's addresses on tasks' networks.
const DNS_PORT: u16 = 53;
/// The smallest MTU of an IPv6 link, which a task's link should have.
const INNER_MTU_LEAST: u32 = 1280;
/// What the tunnel adds to a packet: IPv4, UDP, VXLAN and Ethernet headers.
const TUNNEL_BYTES: u32 = 50;
/// The MTU of an ordinary Ethernet.
const USUAL_MTU: u32 = 1500;

/// Whether other programs hold ports that mesh needs.
pub(super) fn ports(facts: &HostFacts, expected: &Expected) -> Vec<Finding> {
    let check = "ports.free";
    let mut findings: Vec<Finding> = Vec::new();
    for needed in &expected.ports {
        let holder = facts.listeners.iter().find(|held| is_taken(needed, held, facts));
        findings.extend(holder.map(|held| taken(needed, held, facts.is_root)));
    }
    let names = facts.listeners.iter().find(|held| {
        let owner = held.owner.as_deref();
        held.port == DNS_PORT && held.is_wildcard && owner.is_some_and(|owner| owner != "mesh-agent")
    });
    findings.extend(names.map(|held| {
        let owner = held.owner.as_deref().unwrap_or_default();
        Finding::error(
            check,
            format!("{owner} holds port 53 on all addresses, so tasks get no names"),
            format!("bind {owner} to addresses of its own; for dnsmasq: bind-dynamic in /etc/dnsmasq.conf"),
        )
    }));
    if findings.is_empty() {
        let list: Vec<String> = expected.ports.iter().map(|port| port.port.to_string()).collect();
        findings
            .push(Finding::ok(check, format!("no other program holds mesh's ports ({})", list.join(", "))));
    }
    findings
}

fn is_taken(needed: &NeededPort, held: &Listener, facts: &HostFacts) -> bool {
    let is_same = (held.transport, held.port) == (needed.transport, needed.port);
    let is_own = match held.owner.as_deref() {
        Some(owner) => needed.owners.contains(&owner),
        // The kernel holds the tunnel's port for the tunnel's device.
        None => needed.transport == Transport::Udp && facts.has_tunnel_device,
    };
    is_same && !is_own
}

fn taken(needed: &NeededPort, held: &Listener, is_root: bool) -> Finding {
    let check = "ports.free";
    let filter = format!("ss -Hln{}p sport = :{}", &needed.transport.as_str()[..1], needed.port);
    let choose = format!("`{filter}` shows who: stop it, or choose another port ({})", needed.choice);
    match held.owner.as_deref() {
        Some(owner) => Finding::error(check, format!("{owner} holds port {}", needed.title()), choose),
        None if is_root => {
            Finding::error(check, format!("the kernel holds port {} for a device", needed.title()), choose)
        }
        None => Finding::skipped(
            check,
            format!("port {} is held, only root can see by whom: run this as root", needed.title()),
        ),
    }
}

/// Whether the firewall drops what other nodes send.
pub(super) fn firewall(facts: &HostFacts, expected: &Expected) -> Vec<Finding> {
    let check = "firewall.input";
    if !facts.is_root {
        return vec![Finding::skipped(check, "only root can read the firewall's rules")];
    }
    let mut findings = Vec::new();
    for needed in expected.ports.iter().filter(|port| port.is_reached_by_nodes) {
        let packet = Packet { transport: needed.transport, port: needed.port };
        let Some(block) = facts.rulesets.iter().find_map(|ruleset| ruleset.blocks(packet)) else { continue };
        let (transport, port) = (needed.transport.as_str(), needed.port);
        findings.push(Finding::error(
            check,
            format!("other nodes can't reach {}: {block}", needed.title()),
            format!(
                "let the nodes in before that rule, with your firewall's own tool; as with ufw allow proto {transport} from NODES to any \
                 port {port}, or iptables -I INPUT -s NODES -p {transport} --dport {port} -j ACCEPT"
            ),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(check, "no rule of the firewall surely drops what other nodes send"));
    }
    findings
}

/// Whether links and their settings carry the tunnel.
pub(super) fn paths(facts: &HostFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.uplinks.is_empty() {
        findings.push(Finding::warning(
            "network.uplink",
            "there is no default route, so the agent can't tell which links lead to clients",
            "name them by interface in /etc/mesh/agent.toml",
        ));
    }
    for uplink in &facts.uplinks {
        let name = &uplink.name;
        findings.push(match uplink.mtu {
            None => Finding::skipped("network.mtu", format!("can't read the MTU of {name}")),
            Some(mtu) if mtu < INNER_MTU_LEAST + TUNNEL_BYTES => Finding::error(
                "network.mtu",
                format!("{name} has an MTU of {mtu}: the tunnel takes {TUNNEL_BYTES} bytes, which leaves tasks less than IPv6 needs"),
                format!("ip link set {name} mtu {USUAL_MTU}, if the network carries it"),
            ),
            Some(mtu) => Finding::ok(
                "network.mtu",
                format!("{name} has an MTU of {mtu}, of which tasks get {}", mtu - TUNNEL_BYTES),
            ),
        });
    }
    let mtus: Vec<u32> = facts.uplinks.iter().filter_map(|uplink| uplink.mtu).collect();
    if let (Some(least), Some(most)) = (mtus.iter().min(), mtus.iter().max())
        && least != most
    {
        findings.push(Finding::warning(
            "network.mtu",
            format!("uplinks have MTUs from {least} to {most}: a packet that fits one may not fit another"),
            "give all uplinks of all nodes the same MTU",
        ));
    }
    if facts.reverse_path_filter.as_deref() == Some("1") {
        findings.push(Finding::warning(
            "network.rp-filter",
            "net.ipv4.conf.all.rp_filter = 1 drops what comes out of the tunnel with clients' addresses, whatever mesh-vxlan0 is set to",
            "sysctl -w net.ipv4.conf.all.rp_filter=2",
        ));
    }
    findings
}

/// Whether the pools of addresses are used by others.
pub(super) fn pools(facts: &HostFacts, expected: &Expected) -> Vec<Finding> {
    let check = "network.pools";
    let mut findings: Vec<Finding> = Vec::new();
    for pool in &expected.pools {
        let inside = facts.routes.iter().find(|route| pool.contains(&route.network));
        findings.extend(inside.map(|route| {
            Finding::warning(
                check,
                format!("{} on {} is in the pool of tasks' addresses, {pool}", route.network, route.device),
                "before docker swarm init, choose another pool: default-addr-pool in /etc/mesh/control.toml",
            )
        }));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(check, "no network of this machine is in the pool of tasks' addresses"));
    }
    findings
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::facts::{AgentPorts, HostRoute, Uplink, manager_ports};
    use crate::finding::Severity;
    use crate::firewall::parse_iptables;

    /// A manager's node with everything at its default.
    pub(in crate::rules) fn expected() -> Expected {
        let mut ports = AgentPorts::default().needed();
        ports.extend(manager_ports());
        let pools = vec!["10.128.0.0/12".parse().expect("a network")];
        Expected {
            engine: "/var/run/docker.sock".into(),
            ports,
            pools,
            has_kernel_programs: true,
            etcd: None,
        }
    }

    fn listener(transport: Transport, port: u16, owner: Option<&str>) -> Listener {
        Listener { transport, port, is_wildcard: true, owner: owner.map(str::to_owned) }
    }

    fn root(listeners: Vec<Listener>) -> HostFacts {
        HostFacts { is_root: true, listeners, ..HostFacts::default() }
    }

    fn only(findings: &[Finding]) -> &Finding {
        let [one] = findings else { panic!("one finding expected: {findings:?}") };
        one
    }

    #[test]
    fn ports_that_others_hold_are_named_with_their_holder() {
        for (held, expected_severity, part) in [
            (listener(Transport::Tcp, 4800, Some("nginx")), Severity::Error, "nginx holds port 4800/tcp"),
            (listener(Transport::Tcp, 2377, Some("dockerd")), Severity::Error, "dockerd holds port 2377/tcp"),
            (listener(Transport::Udp, 4799, None), Severity::Error, "the kernel holds port 4799/udp"),
            (listener(Transport::Udp, 53, Some("dnsmasq")), Severity::Error, "dnsmasq holds port 53"),
            (listener(Transport::Tcp, 4800, Some("mesh-agent")), Severity::Ok, "no other program"),
            (listener(Transport::Tcp, 2377, Some("mesh-control")), Severity::Ok, "no other program"),
            (listener(Transport::Tcp, 2379, Some("etcd")), Severity::Ok, "no other program"),
            (listener(Transport::Udp, 4800, Some("nginx")), Severity::Ok, "no other program"),
        ] {
            let findings = ports(&root(vec![held]), &expected());
            let seen = only(&findings);
            assert_eq!(seen.severity, expected_severity, "{seen:?}");
            assert!(seen.seen.contains(part), "expected {part:?} in {seen:?}");
        }
    }

    #[test]
    fn the_tunnels_own_device_holds_its_port() {
        let mut facts = root(vec![listener(Transport::Udp, 4799, None)]);
        facts.has_tunnel_device = true;
        assert_eq!(only(&ports(&facts, &expected())).severity, Severity::Ok);
    }

    #[test]
    fn without_root_a_held_port_is_no_error() {
        let facts =
            HostFacts { listeners: vec![listener(Transport::Tcp, 4800, None)], ..HostFacts::default() };
        assert_eq!(only(&ports(&facts, &expected())).severity, Severity::Skipped);
        assert_eq!(only(&firewall(&facts, &expected())).severity, Severity::Skipped);
    }

    #[test]
    fn a_firewall_that_drops_names_port_and_rule() {
        let rules = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp -m udp --dport 4799 -j DROP\nCOMMIT\n";
        let mut facts = root(Vec::new());
        facts.rulesets = vec![parse_iptables(rules)];
        let findings = firewall(&facts, &expected());
        let seen = only(&findings);
        assert_eq!(seen.severity, Severity::Error);
        assert!(seen.seen.contains("4799/udp") && seen.seen.contains("-j DROP"), "{seen:?}");
        assert!(seen.cure.contains("iptables -I INPUT"), "{seen:?}");
    }

    #[test]
    fn links_are_judged() {
        let uplink = |name: &str, mtu| Uplink { name: name.to_owned(), mtu: Some(mtu) };
        let judged = |uplinks, filter: &str| {
            let facts =
                HostFacts { uplinks, reverse_path_filter: Some(filter.to_owned()), ..HostFacts::default() };
            paths(&facts).iter().map(|finding| finding.severity).collect::<Vec<_>>()
        };
        assert_eq!(judged(vec![uplink("eth0", 1500)], "2"), [Severity::Ok]);
        assert_eq!(judged(vec![uplink("eth0", 1300)], "0"), [Severity::Error]);
        let mixed = [Severity::Ok, Severity::Ok, Severity::Warning];
        assert_eq!(judged(vec![uplink("eth0", 1500), uplink("eth1", 9000)], "0"), mixed);
        assert_eq!(judged(vec![uplink("eth0", 1500)], "1"), [Severity::Ok, Severity::Warning]);
        assert_eq!(judged(vec![], "0"), [Severity::Warning]);
    }

    #[test]
    fn routes_inside_the_pool_are_warned_of() {
        let judged = |network: &str| {
            let route = HostRoute { network: network.parse().expect("a network"), device: "eth1".to_owned() };
            only(&pools(&HostFacts { routes: vec![route], ..HostFacts::default() }, &expected())).severity
        };
        assert_eq!(judged("10.129.0.0/16"), Severity::Warning);
        assert_eq!(judged("10.0.0.0/8"), Severity::Ok, "no host of it need be there");
        assert_eq!(judged("192.168.0.0/16"), Severity::Ok);
    }
}

//! Parses the output of `nft --json list ruleset`. Pure.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::{Action, Condition, Rule, Ruleset};
use crate::facts::Transport;

/// The longest text of a rule that is shown.
const TEXT_MAX: usize = 160;

/// The tables that IPv4 packets go through, without mesh's own.
pub fn parse(listed: &Value) -> Vec<Ruleset> {
    let mut tables: BTreeMap<(String, String), Ruleset> = BTreeMap::new();
    for object in listed["nftables"].as_array().into_iter().flatten() {
        let (kind, object) = match (object.get("chain"), object.get("rule")) {
            (Some(chain), _) => ("chain", chain),
            (None, Some(rule)) => ("rule", rule),
            (None, None) => continue,
        };
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        let (family, table) = (text("family"), text("table"));
        if !["ip", "inet"].contains(&family.as_str()) || table == "mesh" {
            continue;
        }
        let title = format!("nft table {family} {table}");
        let ruleset =
            tables.entry((family, table)).or_insert_with(|| Ruleset { title, ..Ruleset::default() });
        if kind == "chain" {
            let chain = ruleset.chains.entry(text("name")).or_default();
            chain.is_input = object["hook"] == "input" && object["type"] == "filter";
            chain.drops_the_rest = object["policy"] == "drop";
        } else {
            ruleset.chains.entry(text("chain")).or_default().rules.push(rule(&object["expr"]));
        }
    }
    tables.into_values().collect()
}

fn rule(expressions: &Value) -> Rule {
    let (mut conditions, mut action) = (Vec::new(), Action::Nothing);
    for expression in expressions.as_array().into_iter().flatten() {
        let Some((name, value)) = expression.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        match name.as_str() {
            "match" => conditions.extend(condition(value)),
            "accept" => action = Action::Accept,
            "drop" | "reject" => action = Action::Drop,
            "return" => action = Action::Return,
            "jump" => action = target(value).map_or(Action::Unknown, Action::Jump),
            "goto" => action = target(value).map_or(Action::Unknown, Action::Goto),
            "counter" | "log" | "mangle" | "notrack" => {}
            // A verdict that a map chooses, or a match of iptables' own (`xt`).
            "vmap" | "queue" => action = Action::Unknown,
            _ => conditions.push(Condition::Unknown),
        }
    }
    Rule { conditions, action, text: expressions.to_string().chars().take(TEXT_MAX).collect() }
}

fn target(value: &Value) -> Option<String> {
    value["target"].as_str().map(str::to_owned)
}

/// The conditions of one match; none if it always holds.
fn condition(matched: &Value) -> Vec<Condition> {
    let (left, right) = (&matched["left"], &matched["right"]);
    if !["==", "in"].contains(&matched["op"].as_str().unwrap_or_default()) {
        return vec![Condition::Unknown];
    }
    let payload = &left["payload"];
    let protocol = payload["protocol"].as_str().unwrap_or_default();
    let field = payload["field"].as_str().unwrap_or_default();
    match (protocol, field) {
        ("tcp" | "udp" | "th", "dport") => {
            let transport = transport(protocol).map(Condition::Transport);
            return transport.into_iter().chain([ports(right)]).collect();
        }
        ("ip", "protocol") => return vec![transports(right)],
        _ => {}
    }
    match (left["meta"]["key"].as_str(), left["ct"]["key"].as_str()) {
        (Some("l4proto"), _) => vec![transports(right)],
        (Some("iifname" | "iif"), _) if right == "lo" => vec![Condition::Loopback],
        (_, Some("state")) => {
            let states: Option<Vec<&str>> = elements(right).into_iter().map(Value::as_str).collect();
            match states {
                Some(states) if states.contains(&"new") => Vec::new(),
                Some(_) => vec![Condition::KnownConnection],
                None => vec![Condition::Unknown],
            }
        }
        _ => vec![Condition::Unknown],
    }
}

/// A value, or the elements of a set.
fn elements(value: &Value) -> Vec<&Value> {
    match value.get("set").unwrap_or(value) {
        Value::Array(elements) => elements.iter().collect(),
        single => vec![single],
    }
}

fn transport(name: &str) -> Option<Transport> {
    match name {
        "tcp" => Some(Transport::Tcp),
        "udp" => Some(Transport::Udp),
        _ => None,
    }
}

fn transports(value: &Value) -> Condition {
    let elements = elements(value);
    match elements.as_slice() {
        [one] => match (one.as_str(), one.as_str().and_then(transport)) {
            (_, Some(transport)) => Condition::Transport(transport),
            (Some(name), None) if !name.starts_with('@') => Condition::Never,
            _ => Condition::Unknown,
        },
        _ => Condition::Unknown,
    }
}

fn ports(value: &Value) -> Condition {
    let range = |element: &Value| -> Option<RangeInclusive<u16>> {
        let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
        match element.get("range") {
            Some(range) => Some(port(&range[0])?..=port(&range[1])?),
            None => port(element).map(|port| port..=port),
        }
    };
    // A bare range is an object too, and a named set a string.
    let ranges: Option<Vec<_>> = elements(value).into_iter().map(range).collect();
    ranges.map_or(Condition::Unknown, Condition::Ports)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Packet;
    use super::*;

    fn blocks(policy: &str, rules: &[Value], transport: Transport, port: u16) -> Option<String> {
        let chain = json!({"chain": {"family": "inet", "table": "filter", "name": "input", "type": "filter",
                                     "hook": "input", "prio": 0, "policy": policy}});
        let rule = |expr: &Value| json!({"rule": {"family": "inet", "table": "filter", "chain": "input", "expr": expr}});
        let objects: Vec<Value> =
            [json!({"metainfo": {}}), chain].into_iter().chain(rules.iter().map(rule)).collect();
        let tables = parse(&json!({"nftables": objects}));
        tables.iter().find_map(|table| table.blocks(Packet { transport, port }))
    }

    fn port(protocol: &str, right: &Value) -> Value {
        json!({"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": "dport"}}, "right": right}})
    }

    #[test]
    fn drops_of_a_port_are_found() {
        let state = json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}});
        let lo = json!({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}});
        let accept = json!({"accept": null});
        let rules = [
            json!([state, accept]),
            json!([lo, accept]),
            json!([port("tcp", &json!({"set": [22, {"range": [2377, 2379]}]})), {"counter": {"packets": 1}}, accept]),
            json!([port("udp", &json!(4799)), accept]),
        ];
        let seen = |transport, port| blocks("drop", &rules, transport, port);
        assert_eq!(seen(Transport::Tcp, 2377), None);
        assert_eq!(seen(Transport::Udp, 4799), None);
        let relay = seen(Transport::Tcp, 4800).expect("dropped by the policy");
        assert!(relay.contains("nft table inet filter") && relay.contains("chain input"), "{relay}");
        let dropped = [json!([port("udp", &json!(4799)), {"drop": null}])];
        assert!(blocks("accept", &dropped, Transport::Udp, 4799).is_some_and(|said| said.contains("4799")));
        assert_eq!(blocks("accept", &dropped, Transport::Udp, 4801), None);
    }

    #[test]
    fn what_is_not_known_drops_nothing() {
        let xt = json!([{"xt": {"type": "match", "name": "udp"}}, {"accept": null}]);
        assert_eq!(blocks("drop", &[xt], Transport::Udp, 4799), None, "a match of iptables' own");
        let from = json!([{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "192.0.2.1"}}, {"drop": null}]);
        assert_eq!(blocks("accept", &[from], Transport::Udp, 4799), None, "of one address");
        let icmp = json!([{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "icmp"}}, {"accept": null}]);
        assert!(blocks("drop", &[icmp], Transport::Udp, 4799).is_some(), "another protocol");
        let named = json!([port("udp", &json!("@open")), {"accept": null}]);
        assert_eq!(blocks("drop", &[named], Transport::Udp, 4799), None, "a named set");
        assert!(parse(&json!({})).is_empty());
    }
}

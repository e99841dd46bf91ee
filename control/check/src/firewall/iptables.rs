//! Parses the output of `iptables-save`. Pure.

use std::ops::RangeInclusive;

use super::{Action, Chain, Condition, Rule, Ruleset};
use crate::facts::Transport;

/// The longest text of a rule that is shown.
const TEXT_MAX: usize = 160;

/// The filter table in `text`; no chains if it has none.
pub fn parse(text: &str) -> Ruleset {
    let mut ruleset = Ruleset { title: "iptables".to_owned(), ..Ruleset::default() };
    let mut is_filter = false;
    for line in text.lines() {
        if let Some(table) = line.strip_prefix('*') {
            is_filter = table.trim() == "filter";
        } else if !is_filter {
            // The other tables translate and mark; they seldom drop.
        } else if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_ascii_whitespace();
            let (Some(name), policy) = (words.next(), words.next()) else { continue };
            let chain = Chain {
                is_input: name == "INPUT",
                drops_the_rest: policy == Some("DROP"),
                rules: Vec::new(),
            };
            ruleset.chains.insert(name.to_owned(), chain);
        } else if let Some(added) = line.strip_prefix("-A ") {
            let words = words(added);
            let Some((name, conditions)) = words.split_first() else { continue };
            if let Some(chain) = ruleset.chains.get_mut(name) {
                let (conditions, action) = rule(conditions);
                chain.rules.push(Rule { conditions, action, text: line.chars().take(TEXT_MAX).collect() });
            }
        }
    }
    ruleset
}

/// Splits a line at spaces, except within quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' if is_quoted => word.extend(characters.next()),
            '"' => is_quoted = !is_quoted,
            ' ' if !is_quoted => {
                words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
            }
            other => word.push(other),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

fn rule(words: &[String]) -> (Vec<Condition>, Action) {
    let mut conditions = Vec::new();
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        match word {
            "-j" => return (conditions, action(value())),
            "-g" => return (conditions, Action::Goto(value().to_owned())),
            "-p" => conditions.push(match value() {
                "udp" => Condition::Transport(Transport::Udp),
                "tcp" => Condition::Transport(Transport::Tcp),
                "all" => continue,
                _ => Condition::Never,
            }),
            "--dport" | "--dports" => conditions.push(ports(value())),
            "--ctstate" | "--state" => {
                let is_new = value().split(',').any(|state| state == "NEW");
                conditions.extend((!is_new).then_some(Condition::KnownConnection));
            }
            "-i" => conditions.push(match value() {
                "lo" => Condition::Loopback,
                _ => Condition::Unknown,
            }),
            // The modules of the flags that are known here.
            "-m" if ["tcp", "udp", "multiport", "conntrack", "state", "comment"].contains(&value()) => {}
            "--comment" => {
                let _text = value();
            }
            // A negation, or a condition that isn't known; its value is as unknown.
            _ => conditions.push(Condition::Unknown),
        }
        // A negated condition can't be judged by what follows it.
        if word == "!" {
            conditions.push(Condition::Unknown);
            let _negated = words.next();
            let _value = words.next();
        }
    }
    (conditions, Action::Nothing)
}

fn action(target: &str) -> Action {
    match target {
        "ACCEPT" => Action::Accept,
        "DROP" | "REJECT" => Action::Drop,
        "RETURN" => Action::Return,
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "NOTRACK" | "CT" | "SET" | "TRACE" => Action::Nothing,
        chain => Action::Jump(chain.to_owned()),
    }
}

/// `80,443,4799:4801` as ranges.
fn ports(text: &str) -> Condition {
    let range = |part: &str| -> Option<RangeInclusive<u16>> {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.split(',').map(range).collect::<Option<Vec<_>>>().map_or(Condition::Unknown, Condition::Ports)
}

#[cfg(test)]
mod tests {
    use super::super::Packet;
    use super::*;

    fn blocks(rules: &str, policy: &str, transport: Transport, port: u16) -> Option<String> {
        let text = format!(
            "# Generated\n*nat\n:INPUT DROP [0:0]\nCOMMIT\n*filter\n:INPUT {policy} [0:0]\n:FORWARD DROP [0:0]\n\
             :ufw-user-input - [0:0]\n{rules}\nCOMMIT\n"
        );
        parse(&text).blocks(Packet { transport, port })
    }

    #[test]
    fn drops_of_a_port_are_found() {
        let rules = "-A INPUT -i lo -j ACCEPT\n\
                     -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                     -A INPUT -p tcp -m comment --comment \"ssh and \\\"web\\\"\" -m multiport --dports 22,80,2377:2379 -j ACCEPT\n\
                     -A INPUT -j ufw-user-input\n\
                     -A ufw-user-input -p udp -m udp --dport 4799 -j ACCEPT\n\
                     -A ufw-user-input -p udp -m udp --dport 4801 -j REJECT --reject-with icmp-port-unreachable";
        for (transport, port, blocked) in [
            (Transport::Tcp, 2377, None),
            (Transport::Udp, 4799, None),
            (Transport::Udp, 4801, Some("--dport 4801")),
            (Transport::Tcp, 4800, Some("what no rule of chain INPUT accepts")),
        ] {
            let seen = blocks(rules, "DROP", transport, port);
            match blocked {
                None => assert_eq!(seen, None, "{port}"),
                Some(part) => {
                    assert!(seen.as_ref().is_some_and(|seen| seen.contains(part)), "{port}: {seen:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_known_drops_nothing() {
        for rule in [
            "-A INPUT ! -s 10.0.0.0/8 -p tcp -m tcp --dport 4800 -j DROP",
            "-A INPUT -s 192.0.2.1/32 -j DROP",
            "-A INPUT -p icmp -j DROP",
            "-A INPUT -m hashlimit --hashlimit-above 9/sec -j DROP",
            "",
        ] {
            assert_eq!(blocks(rule, "ACCEPT", Transport::Tcp, 4800), None, "{rule}");
        }
        assert!(blocks("-A INPUT -p tcp -j DROP", "ACCEPT", Transport::Tcp, 4800).is_some());
        let from_nodes = "-A INPUT -s 10.0.0.0/8 -j ACCEPT";
        assert_eq!(blocks(from_nodes, "DROP", Transport::Tcp, 4800), None, "nodes may be accepted");
    }
}

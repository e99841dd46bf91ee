//! The size limits of a node's reports on itself and its tasks. Pure.
//!
//! Purpose: a manager checks what comes in, and an agent cuts what it sends, by the same figures
//! ([`mesh_admission::figures::report`]): an engine's long error loses its end, not the session.
//!
//! Invariant: what was cut here is within every bound that is checked here.

use ipnet::Ipv4Net;
use mesh_admission::figures::report::{
    CLASH_BYTES, CLASHES, CLASHES_BYTES, CONTAINER_PORTS, DESCRIPTION_BYTES, HOST_NETWORKS, HOSTNAME_BYTES,
    ID_BYTES, STATUS_BYTES, TEXT_BYTES,
};
use mesh_admission::text::clip;
use thiserror::Error;

use crate::ca::TRUSTED_MAX;
use crate::node::{NodeDescription, PortClash};
use crate::task::TaskStatus;

/// The most bytes of a short text in a description: a version, a label's key.
const WORD_BYTES: usize = 256;

/// Why a report is refused.
#[derive(Debug, Error)]
pub enum ReportError {
    /// A text is too long, or a list has too many entries.
    #[error("{what} has {seen} {unit}, at most {most} are taken")]
    TooMuch {
        /// The text or list.
        what: &'static str,
        /// How much the report holds.
        seen: usize,
        /// How much of it is taken.
        most: usize,
        /// The unit of the size.
        unit: &'static str,
    },
    /// It isn't a network in the spelling of CIDR, or the list isn't sorted.
    #[error("a host's network can't be read or isn't in its order")]
    NoNetwork,
    /// It isn't the expected JSON.
    #[error("read {what}")]
    Unreadable {
        /// What part of the report it is.
        what: &'static str,
        /// The error of the call that failed.
        #[source]
        source: serde_json::Error,
    },
}

/// Refuses more than `most` bytes.
///
/// # Errors
/// [`ReportError::TooMuch`].
pub fn check_bytes(what: &'static str, seen: usize, most: usize) -> Result<(), ReportError> {
    check(what, seen, most, "bytes")
}

/// Refuses more than `most` entries.
///
/// # Errors
/// [`ReportError::TooMuch`].
pub fn check_entries(what: &'static str, seen: usize, most: usize) -> Result<(), ReportError> {
    check(what, seen, most, "entries")
}

fn check(what: &'static str, seen: usize, most: usize, unit: &'static str) -> Result<(), ReportError> {
    if seen <= most { Ok(()) } else { Err(ReportError::TooMuch { what, seen, most, unit }) }
}

/// Parses a node's description of itself.
///
/// # Errors
/// It exceeds a limit, or can't be parsed.
pub fn read_description(json: &str) -> Result<NodeDescription, ReportError> {
    check_bytes("the node's description", json.len(), DESCRIPTION_BYTES)?;
    let description: NodeDescription = serde_json::from_str(json)
        .map_err(|source| ReportError::Unreadable { what: "the node's description", source })?;
    check_bytes("the hostname", description.hostname.len(), HOSTNAME_BYTES)?;
    if let Some(end) = &description.encryption {
        check_bytes("the node's public key", end.public_key.len(), WORD_BYTES)?;
    }
    check_entries("the list of trusted CAs", description.trusts.len(), TRUSTED_MAX)?;
    for digest in &description.trusts {
        check_bytes("a CA's digest", digest.len(), WORD_BYTES)?;
    }
    Ok(description)
}

/// Parses a node's status of a task.
///
/// # Errors
/// It exceeds a limit, or can't be parsed.
pub fn read_status(task_id: &str, json: &str) -> Result<TaskStatus, ReportError> {
    check_bytes("a task's id", task_id.len(), ID_BYTES)?;
    check_bytes("a task's status", json.len(), STATUS_BYTES)?;
    let status: TaskStatus = serde_json::from_str(json)
        .map_err(|source| ReportError::Unreadable { what: "a task's status", source })?;
    check_bytes("a task's message", status.message.len(), TEXT_BYTES)?;
    check_bytes("a task's error", status.err.len(), TEXT_BYTES)?;
    if let Some(container) = &status.container {
        check_bytes("a container's id", container.container_id.len(), WORD_BYTES)?;
        check_entries("the list of a container's ports", container.host_ports.len(), CONTAINER_PORTS)?;
    }
    Ok(status)
}

/// Checks the published ports that a node can't listen on.
///
/// # Errors
/// The list exceeds a limit.
pub fn check_clashes(clashes: &[PortClash]) -> Result<(), ReportError> {
    check_entries("the list of port clashes", clashes.len(), CLASHES)?;
    for clash in clashes {
        check_bytes("the reason of a port clash", clash.reason.len(), CLASH_BYTES)?;
    }
    check_bytes("the list of port clashes", json_bytes(clashes), CLASHES_BYTES)
}

/// Parses the networks of a node's host.
///
/// # Errors
/// The list exceeds its limit, isn't sorted, or holds something else than IPv4 networks.
pub fn read_host_networks(told: &[String]) -> Result<Vec<Ipv4Net>, ReportError> {
    check_entries("the list of a host's networks", told.len(), HOST_NETWORKS)?;
    let read = |text: &String| text.parse().ok().filter(|network: &Ipv4Net| *network == network.trunc());
    let networks: Option<Vec<Ipv4Net>> = told.iter().map(read).collect();
    let networks = networks.filter(|networks| networks.is_sorted());
    networks.ok_or(ReportError::NoNetwork)
}

/// Brings the networks of a host into their order, each once, and cuts the list to its limit.
/// Returns whether anything was lost.
pub fn clip_host_networks(networks: &mut Vec<Ipv4Net>) -> bool {
    for network in networks.iter_mut() {
        *network = network.trunc();
    }
    networks.sort_unstable();
    networks.dedup();
    let cut = networks.len() > HOST_NETWORKS;
    networks.truncate(HOST_NETWORKS);
    cut
}

/// Cuts a description to the limits: plugins first, labels next. Returns whether anything was lost.
pub fn clip_description(description: &mut NodeDescription) -> bool {
    let mut cut = clip(&mut description.hostname, HOSTNAME_BYTES);
    cut |= clip(&mut description.unfit, TEXT_BYTES);
    let words = [
        &mut description.architecture,
        &mut description.os,
        &mut description.engine_version,
        &mut description.agent_version,
        &mut description.kernel,
        &mut description.datapath,
    ];
    for word in words.into_iter().chain(&mut description.manager_address) {
        cut |= clip(word, WORD_BYTES);
    }
    while json_bytes(description) > DESCRIPTION_BYTES {
        cut = true;
        if !description.plugins.is_empty() {
            description.plugins.truncate(description.plugins.len() / 2);
        } else if !description.engine_labels.is_empty() {
            let kept = description.engine_labels.len() / 2;
            let labels = std::mem::take(&mut description.engine_labels);
            description.engine_labels = labels.into_iter().take(kept).collect();
        } else {
            description.generic_resources.truncate(description.generic_resources.len() / 2);
        }
    }
    cut
}

/// Cuts a status to the limits. Returns whether anything was lost.
pub fn clip_status(status: &mut TaskStatus) -> bool {
    let mut cut = clip(&mut status.message, TEXT_BYTES) | clip(&mut status.err, TEXT_BYTES);
    if let Some(container) = &mut status.container {
        cut |= clip(&mut container.container_id, WORD_BYTES);
        cut |= container.host_ports.len() > CONTAINER_PORTS;
        container.host_ports.truncate(CONTAINER_PORTS);
    }
    cut
}

/// Cuts a list of clashes to the limits. Returns whether anything was lost.
pub fn clip_clashes(clashes: &mut Vec<PortClash>) -> bool {
    let mut cut = clashes.len() > CLASHES;
    clashes.truncate(CLASHES);
    for clash in clashes.iter_mut() {
        cut |= clip(&mut clash.reason, CLASH_BYTES);
    }
    while json_bytes(clashes) > CLASHES_BYTES {
        clashes.truncate(clashes.len() / 2);
        cut = true;
    }
    cut
}

/// The length of a report as JSON; 0 if it can't be encoded.
fn json_bytes<T: serde::Serialize + ?Sized>(value: &T) -> usize {
    struct Counted(usize);
    impl std::io::Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    serde_json::to_writer(&mut counted, value).map_or(0, |()| counted.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::{GenericResource, Protocol};
    use crate::task::{ContainerStatus, HostPort};

    #[test]
    fn too_much_is_refused_by_name_and_figure() {
        let status = TaskStatus { message: "x".repeat(1_500_000), ..TaskStatus::default() };
        let error = read_status("t", &serde_json::to_string(&status).unwrap()).unwrap_err().to_string();
        assert!(error.contains("a task's status") && error.contains("131072"), "saw: {error}");
        let status = TaskStatus { err: "x".repeat(TEXT_BYTES + 1), ..TaskStatus::default() };
        let error = read_status("t", &serde_json::to_string(&status).unwrap()).unwrap_err().to_string();
        assert_eq!(error, "a task's error has 4097 bytes, at most 4096 are taken");
        let error = read_description(&" ".repeat(DESCRIPTION_BYTES + 1)).unwrap_err().to_string();
        assert!(error.starts_with("the node's description has 65537 bytes"), "saw: {error}");
        assert!(read_status(&"t".repeat(65), "{}").is_err(), "an id of 65 bytes was taken");
    }

    /// Text of characters that take one, two and six bytes in JSON, and one of four bytes.
    fn text(most: usize) -> impl Strategy<Value = String> {
        (prop::sample::select(vec!["x", "\"", "\u{1}", "🦀"]), 0..most)
            .prop_map(|(one, many)| one.repeat(many))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_report_that_was_cut_is_accepted(
            one in text(9000), two in text(9000), ports in 0_usize..1500, names in 0_usize..2000, reasons in 0_usize..5000,
        ) {
            let port = HostPort { protocol: Protocol::Tcp, target: 65_535, published: 65_535 };
            let container = ContainerStatus {
                container_id: one.clone(), host_ports: vec![port; ports], ..ContainerStatus::default()
            };
            let mut status = TaskStatus {
                message: one.clone(), err: two.clone(), container: Some(container), ..TaskStatus::default()
            };
            clip_status(&mut status);
            let read = read_status("t", &serde_json::to_string(&status).unwrap());
            prop_assert!(read.is_ok(), "{:?}", read.err());

            let mut description = NodeDescription {
                hostname: one.clone(),
                kernel: two.clone(),
                plugins: (0..names).map(|name| (two.chars().take(30).collect(), name.to_string())).collect(),
                engine_labels: (0..names).map(|name| (name.to_string(), two.chars().take(90).collect())).collect(),
                generic_resources: vec![GenericResource::discrete(two.clone(), 1); names.min(20)],
                ..NodeDescription::default()
            };
            clip_description(&mut description);
            let read = read_description(&serde_json::to_string(&description).unwrap());
            prop_assert!(read.is_ok(), "{:?}", read.err());

            let clash = PortClash { protocol: Protocol::Udp, port: 65_535, reason: one };
            let mut clashes = vec![clash; reasons];
            clip_clashes(&mut clashes);
            prop_assert!(check_clashes(&clashes).is_ok());

            let network = |number: usize| {
                let address = u32::try_from(number).unwrap_or_default().wrapping_mul(0x9e37_79b9);
                Ipv4Net::new(address.into(), u8::try_from(number % 33).unwrap()).unwrap()
            };
            let mut networks: Vec<Ipv4Net> = (0..names).map(network).collect();
            clip_host_networks(&mut networks);
            let told: Vec<String> = networks.iter().map(Ipv4Net::to_string).collect();
            prop_assert_eq!(read_host_networks(&told).unwrap(), networks);
        }
    }
}

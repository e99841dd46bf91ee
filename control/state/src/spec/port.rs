//! Published ports.

use serde::{Deserialize, Serialize};

use super::Extra;
use super::service::null_as_default;

/// How clients reach a service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointSpec {
    /// `vip` (default) or `dnsrr`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// The ports to publish.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub ports: Vec<PortConfig>,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortConfig {
    /// An optional name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Transport; absent means TCP.
    pub protocol: Protocol,
    /// Port the task listens on.
    pub target_port: u16,
    /// Port that every node answers on; 0: an automatic one from 30000 on.
    #[serde(skip_serializing_if = "is_zero")]
    pub published_port: u16,
    /// Through the mesh, or directly on the task's node.
    pub publish_mode: PublishMode,
    /// All other fields that the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(port: &u16) -> bool {
    *port == 0
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, RFC 9293.
    #[default]
    Tcp,
    /// UDP, RFC 768.
    Udp,
    /// SCTP, RFC 9260: accepted by Docker, refused by mesh with a clear error.
    Sctp,
}

impl Protocol {
    /// The name in labels, keys and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a published port answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node, through the mesh.
    #[default]
    Ingress,
    /// On the task's own node only.
    Host,
}

//! Networks as objects: what a user asked for, and the ingress network that published ports belong
//! to.
//!
//! Invariant: no field of a user's request is lost.
//!
//! Left to others: addresses. A task's one address, out of its node's subnet, is its address on
//! every network of its service.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ids::NetworkId;
use crate::spec::{Extra, Labels};

/// A cluster-wide network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Its name, unique.
    pub name: String,
    /// Whether this is the network of published ports.
    pub ingress: bool,
    /// Where its addresses come from.
    pub subnet: Ipv4Net,
    /// When it was made.
    pub created_at: Timestamp,
    /// What its user asked for; mesh's own was asked for by nobody.
    #[serde(default)]
    pub spec: NetworkSpec,
}

/// What a user asks of a network, in Docker's spelling (the body of `POST /networks/create`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSpec {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `overlay`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// Labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// Options of the driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<BTreeMap<String, String>>,
    /// Whether IPv6 was asked for.
    #[serde(rename = "EnableIPv6", skip_serializing_if = "Option::is_none")]
    pub enable_ipv6: Option<bool>,
    /// Whether nothing outside is to be reached from it.
    pub internal: bool,
    /// Whether containers that are no tasks may join.
    pub attachable: bool,
    /// Whether it is to be the network of published ports.
    pub ingress: bool,
    /// Whether it only holds settings for other networks.
    pub config_only: bool,
    /// Addresses asked for.
    #[serde(rename = "IPAM", skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// Whatever else the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Addresses of a network.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ipam {
    /// `default`.
    pub driver: String,
    /// Options of the driver.
    pub options: Option<BTreeMap<String, String>>,
    /// Subnets.
    pub config: Option<Vec<IpamConfig>>,
}

/// A subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpamConfig {
    /// Its addresses, CIDR.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subnet: String,
    /// Those that are given away, CIDR.
    #[serde(rename = "IPRange", skip_serializing_if = "String::is_empty")]
    pub ip_range: String,
    /// The way out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// Whatever else the client sent.
    #[serde(flatten)]
    pub extra: Extra,
}

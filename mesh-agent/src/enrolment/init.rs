//! What `POST /swarm/init` asks for, checked. Pure.

use std::net::{Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::address::{self, Asked, SystemAddress};
use super::error::EnrolmentError;
use super::order::JoinOrder;

/// The ports that a data path may have.
const DATA_PATH_PORTS: std::ops::RangeInclusive<u32> = 1024..=49_151;

/// The body of the call, as Docker's API has it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct InitBody {
    listen_addr: Option<String>,
    advertise_addr: Option<String>,
    data_path_addr: Option<String>,
    data_path_port: Option<u32>,
    force_new_cluster: Option<bool>,
    auto_lock_managers: Option<bool>,
    availability: Option<String>,
    default_addr_pool: Option<Vec<String>>,
    subnet_size: Option<u8>,
    spec: Option<Map<String, Value>>,
}

impl InitBody {
    /// Whether a manager is to become the only one of its cluster.
    pub fn forces_new_cluster(&self) -> bool {
        self.force_new_cluster == Some(true)
    }
}

/// What the manager on this node is founded with, as mesh-control takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Founding {
    advertise: SocketAddr,
    listen: SocketAddr,
    network_pool: Option<Ipv4Net>,
    network_prefix: Option<u8>,
}

/// A cluster to make.
#[derive(Debug, Clone, PartialEq)]
pub struct InitOrder {
    /// What its manager is founded with.
    pub founding: Founding,
    /// The availability of this node; empty: active.
    pub availability: String,
    /// The address of this node's traffic with others.
    pub address: Ipv4Addr,
    /// What the client sets of the swarm's spec; empty for nothing.
    pub spec: Map<String, Value>,
}

impl InitOrder {
    /// Checks the body of a call on a host with the addresses `system`, whose agent's tunnel has
    /// the port `tunnel_port`.
    ///
    /// # Errors
    /// The first mistake, in Swarm's words where it has some.
    pub fn new(body: InitBody, system: &[SystemAddress], tunnel_port: u16) -> Result<Self, EnrolmentError> {
        if body.forces_new_cluster() {
            return Err(EnrolmentError::NoForce);
        }
        check_port(body.data_path_port.unwrap_or(0), tunnel_port)?;
        let availability = body.availability.unwrap_or_default();
        if !["", "active", "pause", "drain"].contains(&availability.as_str()) {
            return Err(EnrolmentError::BadAvailability(availability));
        }
        let (listen, advertise, data_path) = (
            body.listen_addr.unwrap_or_default(),
            body.advertise_addr.unwrap_or_default(),
            body.data_path_addr.unwrap_or_default(),
        );
        let asked = Asked { listen: &listen, advertise: &advertise, data_path: &data_path };
        let addresses = address::of_manager(asked, system)?;
        let pools = body.default_addr_pool.unwrap_or_default();
        let founding = Founding {
            advertise: addresses.advertise,
            listen: addresses.listen,
            network_pool: pool(&pools)?,
            network_prefix: body.subnet_size.filter(|size| *size > 0 && !pools.is_empty()),
        };
        let spec = body.spec.unwrap_or_default();
        if spec.get("Name").and_then(Value::as_str).is_some_and(|name| !["", "default"].contains(&name)) {
            return Err(EnrolmentError::BadSpecName);
        }
        let mut spec = said(spec);
        if body.auto_lock_managers == Some(true) {
            spec.insert("EncryptionConfig".to_owned(), json!({ "AutoLockManagers": true }));
        }
        Ok(Self { founding, availability, address: addresses.data_path, spec })
    }

    /// How this node joins the cluster that its manager has made.
    ///
    /// # Errors
    /// The manager's token is invalid.
    pub fn joining(&self, token: &str) -> Result<JoinOrder, EnrolmentError> {
        Ok(JoinOrder {
            remotes: vec![self.founding.advertise.to_string()],
            token: token.parse().map_err(|_| EnrolmentError::BadToken)?,
            availability: self.availability.clone(),
            address: Some(self.address),
            advertise: Some(self.founding.advertise),
            listen: self.founding.listen,
        })
    }
}

/// The one pool; Swarm takes several.
fn pool(pools: &[String]) -> Result<Option<Ipv4Net>, EnrolmentError> {
    match pools {
        [] => Ok(None),
        [pool] => pool.parse().map(Some).map_err(|_| EnrolmentError::BadPool(pool.clone())),
        _ => Err(EnrolmentError::ManyPools),
    }
}

fn check_port(asked: u32, tunnel_port: u16) -> Result<(), EnrolmentError> {
    match asked {
        0 => Ok(()),
        port if !DATA_PATH_PORTS.contains(&port) => Err(EnrolmentError::BadDataPathPort(port)),
        port if port == u32::from(tunnel_port) => Ok(()),
        port => Err(EnrolmentError::OtherTunnelPort { port, tunnel_port }),
    }
}

/// The parts of a spec that say something: the CLI sends all of them, mostly empty.
fn said(spec: Map<String, Value>) -> Map<String, Value> {
    let mut spec: Map<String, Value> = spec.into_iter().filter(|(_, value)| says(value)).collect();
    spec.remove("Name");
    spec
}

fn says(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Object(fields) => fields.values().any(says),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(json: &str) -> Result<InitOrder, EnrolmentError> {
        let system = [SystemAddress { interface: "eth0".to_owned(), address: [10, 0, 0, 9].into() }];
        InitOrder::new(serde_json::from_str(json).expect("valid JSON"), &system, 4799)
    }

    #[test]
    fn what_the_cli_sends_is_taken() {
        let json = r#"{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"","DataPathAddr":"","DataPathPort":0,
            "DefaultAddrPool":["10.20.0.0/16"],"SubnetSize":26,"ForceNewCluster":false,"AutoLockManagers":false,
            "Spec":{"Labels":null,"Orchestration":{},"Raft":{},"Dispatcher":{},"CAConfig":{"NodeCertExpiry":3600000000000},
            "TaskDefaults":{},"EncryptionConfig":{"AutoLockManagers":false}},"Availability":"drain"}"#;
        let order = order(json).expect("a good order");
        assert_eq!(order.founding.advertise.to_string(), "10.0.0.9:2377");
        assert_eq!(order.founding.listen.to_string(), "0.0.0.0:2377");
        assert_eq!((order.founding.network_prefix, order.availability.as_str()), (Some(26), "drain"));
        assert_eq!(order.spec.keys().collect::<Vec<_>>(), ["CAConfig"], "what the client set");
        let token = format!("SWMTKN-1-{}-{}", "0f".repeat(32), "a".repeat(25));
        let joining = order.joining(&token).expect("a join");
        assert_eq!(
            (joining.remotes, joining.address),
            (vec!["10.0.0.9:2377".to_owned()], Some(order.address))
        );
    }

    #[test]
    fn without_pools_the_size_of_subnets_says_nothing() {
        let order = order(r#"{"SubnetSize":24}"#).expect("a good order");
        assert_eq!((order.founding.network_pool, order.founding.network_prefix), (None, None));
        assert!(order.spec.is_empty());
    }

    #[test]
    fn autolock_is_a_part_of_the_spec() {
        for json in [
            r#"{"AutoLockManagers":true}"#,
            r#"{"AutoLockManagers":true,"Spec":{"EncryptionConfig":{"AutoLockManagers":true}}}"#,
        ] {
            let spec = Value::Object(order(json).expect("a good order").spec);
            assert_eq!(spec, json!({"EncryptionConfig": {"AutoLockManagers": true}}), "{json}");
        }
    }

    #[test]
    fn what_mesh_can_not_do_is_refused_before_anything_is_made() {
        for (json, expected) in [
            (r#"{"ForceNewCluster":true}"#, "--force-new-cluster is for a manager that has lost the others"),
            (r#"{"DataPathPort":80}"#, "Datapath port number is not in valid range (1024-49151) : 80"),
            (r#"{"DataPathPort":5000}"#, "the tunnel of this node's agent has port 4799"),
            (r#"{"DefaultAddrPool":["10.0.0.0/8","10.1.0.0/16"]}"#, "mesh takes one pool"),
            (r#"{"DefaultAddrPool":["x"]}"#, "invalid CIDR address: x"),
            (r#"{"Spec":{"Name":"mine"}}"#, r#"swarm spec must be named "default""#),
            (r#"{"AdvertiseAddr":"eth7"}"#, "advertise address must be a non-zero IP address"),
        ] {
            let refused = order(json).expect_err("a refusal").to_string();
            assert!(refused.contains(expected), "{json}: {refused}");
        }
    }
}

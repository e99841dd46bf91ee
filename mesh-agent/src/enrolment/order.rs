//! What `POST /swarm/join` asks for, checked. Pure.

use std::net::{Ipv4Addr, SocketAddr};

use serde::Deserialize;

use super::address::{self, Asked, MANAGER_PORT, SystemAddress};
use super::error::EnrolmentError;
use crate::control_link::token::JoinToken;

/// The most manager addresses of one call.
const REMOTES_MAX: usize = 16;

/// The body of the call, as Docker's API has it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct JoinBody {
    listen_addr: Option<String>,
    advertise_addr: Option<String>,
    data_path_addr: Option<String>,
    remote_addrs: Option<Vec<String>>,
    join_token: Option<String>,
    availability: Option<String>,
}

/// A cluster to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinOrder {
    /// The managers, as `host:port`.
    pub remotes: Vec<String>,
    /// The token, which names the cluster and proves that the node may join.
    pub token: JoinToken,
    /// The node's availability; empty: active.
    pub availability: String,
    /// The node's address; `None`: that of connections to the manager.
    pub address: Option<Ipv4Addr>,
    /// Where a manager on this node is reached; `None`: at the node's address.
    pub advertise: Option<SocketAddr>,
    /// Where a manager on this node listens.
    pub listen: SocketAddr,
}

impl JoinOrder {
    /// Checks the body of a call on a host with the addresses `system`.
    ///
    /// # Errors
    /// The first mistake, in Swarm's words.
    pub fn new(body: JoinBody, system: &[SystemAddress]) -> Result<Self, EnrolmentError> {
        let listen = body.listen_addr.unwrap_or_default();
        let listens = address::listen(&listen, system)
            .map_err(|source| EnrolmentError::BadListen { address: listen.clone(), source })?;
        let remotes = body.remote_addrs.unwrap_or_default();
        if remotes.is_empty() {
            return Err(EnrolmentError::NoRemote);
        }
        let remotes = remotes.iter().take(REMOTES_MAX).map(|text| remote(text)).collect::<Result<_, _>>()?;
        let token = body.join_token.unwrap_or_default();
        let token = token.trim().parse().map_err(|_| EnrolmentError::BadToken)?;
        let availability = body.availability.unwrap_or_default();
        if !["", "active", "pause", "drain"].contains(&availability.as_str()) {
            return Err(EnrolmentError::BadAvailability(availability));
        }
        let (advertise, data_path) =
            (body.advertise_addr.unwrap_or_default(), body.data_path_addr.unwrap_or_default());
        let asked = Asked { listen: &listen, advertise: &advertise, data_path: &data_path };
        let address = address::of_worker(asked, system)?;
        let advertise = address::advertised(asked, system, listens.port())?;
        Ok(Self { remotes, token, availability, address, advertise, listen: listens })
    }
}

/// A manager's address with its port.
fn remote(text: &str) -> Result<String, EnrolmentError> {
    let bad =
        |reason: &str| EnrolmentError::BadRemote { address: text.to_owned(), reason: reason.to_owned() };
    let (host, port) = match text.rsplit_once(':') {
        // A plain IPv6 address has more colons.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
        _ => return if text.is_empty() { Err(bad("invalid empty address")) } else { Ok(with_port(text)) },
    };
    if host.is_empty() {
        return Err(bad("invalid empty address"));
    }
    port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| bad("invalid port"))?;
    Ok(text.to_owned())
}

fn with_port(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{MANAGER_PORT}")
    } else {
        format!("{host}:{MANAGER_PORT}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(json: &str) -> Result<JoinOrder, EnrolmentError> {
        let system = [SystemAddress { interface: "eth0".to_owned(), address: [10, 0, 0, 9].into() }];
        JoinOrder::new(serde_json::from_str(json).expect("valid JSON"), &system)
    }

    fn token() -> String {
        format!("SWMTKN-1-{}-{}", "0f".repeat(32), "a".repeat(25))
    }

    #[test]
    fn what_the_cli_sends_is_taken() {
        let json = format!(
            r#"{{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"","DataPathAddr":"","RemoteAddrs":["10.0.0.1:2377"],
                "JoinToken":"{}","Availability":"drain"}}"#,
            token()
        );
        let order = order(&json).expect("a good order");
        assert_eq!(order.remotes, ["10.0.0.1:2377"]);
        assert_eq!((order.availability.as_str(), order.address), ("drain", None));
        assert_eq!((order.advertise, order.listen.to_string().as_str()), (None, "0.0.0.0:2377"));
        let advertised = format!(
            r#"{{"RemoteAddrs":["a"],"JoinToken":"{}","ListenAddr":"0.0.0.0:99","AdvertiseAddr":"eth0"}}"#,
            token()
        );
        let advertise = super::tests::order(&advertised).expect("a good order").advertise;
        assert_eq!(advertise, Some(([10, 0, 0, 9], 99).into()), "a manager's port");
    }

    #[test]
    fn what_is_wrong_is_said_in_swarms_words() {
        let good = token();
        for (json, expected) in [
            ("{}".to_owned(), "at least 1 RemoteAddr is required to join"),
            (r#"{"RemoteAddrs":[""]}"#.to_owned(), r#"invalid remoteAddr "": invalid empty address"#),
            (r#"{"RemoteAddrs":["a:x"]}"#.to_owned(), r#"invalid remoteAddr "a:x": invalid port"#),
            (r#"{"RemoteAddrs":["a"],"JoinToken":"SWMTKN-1-x"}"#.to_owned(), "invalid join token"),
            (
                r#"{"ListenAddr":"a:x","RemoteAddrs":["a"]}"#.to_owned(),
                r#"invalid ListenAddr "a:x": listen address must be"#,
            ),
            (
                format!(r#"{{"RemoteAddrs":["a"],"JoinToken":"{good}","AdvertiseAddr":"eth7"}}"#),
                "advertise address must be a non-zero IP address",
            ),
            (
                format!(r#"{{"RemoteAddrs":["a"],"JoinToken":"{good}","Availability":"x"}}"#),
                r#"invalid Availability: "x""#,
            ),
        ] {
            let refused = order(&json).expect_err("a mistake");
            assert!(refused.to_string().starts_with(expected), "{json}: {refused}");
            assert!(refused.is_bad_request(), "{json}");
        }
    }

    #[test]
    fn a_manager_without_a_port_listens_on_the_usual_one() {
        for (text, expected) in [
            ("m1", "m1:2377"),
            ("m1:99", "m1:99"),
            ("2001:db8::1", "[2001:db8::1]:2377"),
            ("[2001:db8::1]:5", "[2001:db8::1]:5"),
        ] {
            assert_eq!(remote(text).as_deref(), Ok(expected), "{text}");
        }
    }
}

//! Why a node can't join or leave. Texts are Swarm's where Swarm has one, as scripts look for them.

use std::net::SocketAddr;

use thiserror::Error;

use super::address::AddressError;

/// Why a call about the node's membership failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EnrolmentError {
    /// The node is already a member, or about to become one.
    #[error(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
    )]
    AlreadyMember,
    /// The node is in no cluster.
    #[error("This node is not part of a swarm")]
    NotMember,
    /// The token's form is invalid.
    #[error("invalid join token")]
    BadToken,
    /// No manager is named.
    #[error("at least 1 RemoteAddr is required to join")]
    NoRemote,
    /// A manager's address is invalid, or its name can't be resolved.
    #[error("invalid remoteAddr {address:?}: {reason}")]
    BadRemote {
        /// The address as the client gave it.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The address to listen on is invalid.
    #[error("invalid ListenAddr {address:?}: {source}")]
    BadListen {
        /// The address as the client gave it.
        address: String,
        /// What is wrong with it.
        source: AddressError,
    },
    /// An address of this node is invalid.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The availability is none of the three.
    #[error("invalid Availability: {0:?}")]
    BadAvailability(String),
    /// The host's addresses can't be read.
    #[error("read this host's addresses: {0}")]
    HostAddresses(String),
    /// `--force-new-cluster` on a node in no cluster.
    #[error(
        "--force-new-cluster is for a manager that has lost the others, and this node is in no swarm: leave it out to make a new one"
    )]
    NoForce,
    /// A port that the data path can't have.
    #[error("Datapath port number is not in valid range (1024-49151) : {0}")]
    BadDataPathPort(u32),
    /// The data path has another port.
    #[error(
        "the tunnel of this node's agent has port {tunnel_port}, not {port}: start every agent with --vxlan-port {port}, or \
         leave --data-path-port out"
    )]
    OtherTunnelPort {
        /// The port that the client asked for.
        port: u32,
        /// The port of the tunnel.
        tunnel_port: u16,
    },
    /// A pool that is no network.
    #[error("invalid CIDR address: {0}")]
    BadPool(String),
    /// Several pools.
    #[error("mesh takes one pool of subnets: give --default-addr-pool once")]
    ManyPools,
    /// The spec has another name than Swarm's.
    #[error("swarm spec must be named \"default\"")]
    BadSpecName,
    /// The manager doesn't know the token.
    #[error("rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster")]
    WrongToken,
    /// The manager is of another cluster than the token.
    #[error("remote CA does not match fingerprint. Expected: {0}")]
    OtherCa(String),
    /// Nobody listens at the manager's address.
    #[error(
        "rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial tcp {0}: \
         connect: connection refused\""
    )]
    NobodyListens(SocketAddr),
    /// The manager refused for another reason.
    #[error("rpc error: code = {code} desc = {message}")]
    Refused {
        /// gRPC's code.
        code: String,
        /// The manager's words.
        message: String,
    },
    /// The node could not make what it needs to join.
    #[error("join the cluster: {0}")]
    Join(String),
    /// The node has not joined within Swarm's limit.
    #[error(
        "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the \
         \"docker info\" command to see the current swarm status of your node."
    )]
    Timeout,
    /// The node has joined, and its manager was refused.
    #[error("this node joined the swarm as a worker, its manager can't be one: {0}")]
    NoManager(String),
    /// The node was told to leave before it had joined.
    #[error("the attempt to join was given up: docker swarm leave came first")]
    GivenUp,
    /// The agent can't run as a member.
    #[error("this node joined, and can't take part: {0}; it has left the cluster again")]
    Start(String),
    /// The engine doesn't say which containers are the cluster's.
    #[error(
        "the Docker engine doesn't answer, so the containers of the swarm would stay: {0}. Use `--force` to leave anyway."
    )]
    Engine(String),
    /// The node left, and something of mesh remains on it.
    #[error(
        "this node left the swarm, but not all of mesh could be removed from it: {0}; next: mesh-agent uninstall"
    )]
    Leftovers(String),
    /// The agent stops.
    #[error("mesh-agent stops: try again once it runs")]
    Stopping,
}

impl EnrolmentError {
    /// Whether the client's request was at fault.
    pub fn is_bad_request(&self) -> bool {
        matches!(
            self,
            Self::BadToken
                | Self::NoRemote
                | Self::BadRemote { .. }
                | Self::BadListen { .. }
                | Self::Address(_)
                | Self::BadAvailability(_)
                | Self::NoForce
                | Self::BadDataPathPort(_)
                | Self::OtherTunnelPort { .. }
                | Self::BadPool(_)
                | Self::ManyPools
                | Self::BadSpecName
        )
    }
}

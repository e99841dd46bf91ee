//! A behaviour, and the cell in which it is checked.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_lab::cluster::Cluster;
use mesh_lab::layout::ip6_of;
use mesh_lab::record::NodeRecord;

use crate::ends;
use crate::table::Outcome;

/// The deadline of an answer to a datagram.
const ANSWER: Duration = Duration::from_secs(1);

/// A behaviour that must hold in every cell.
#[derive(Clone, Copy)]
pub(crate) struct Behaviour {
    /// The name that the report shows.
    pub(crate) name: &'static str,
    /// Checks it.
    pub(crate) check: fn(&Case<'_>) -> Result<Outcome>,
}

/// The client's and the ingress node's address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Where the task runs, relative to the node that the client connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    Local,
    Remote,
}

impl Placed {
    pub(crate) const ALL: [Self; 2] = [Self::Local, Self::Remote];
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Remote => "remote",
        })
    }
}

/// A cell: client, node and task.
pub(crate) struct Case<'a> {
    /// The lab that the case runs in.
    pub(crate) cluster: &'a Cluster,
    /// The address family of the case's connections.
    pub(crate) family: Family,
    /// The client's address.
    pub(crate) client: IpAddr,
    /// Where the task runs.
    pub(crate) placed: Placed,
    /// The node that the client connects to.
    pub(crate) node: &'a NodeRecord,
    /// That node's address in this family.
    pub(crate) ingress: IpAddr,
}

impl<'a> Case<'a> {
    /// A cell in this lab.
    ///
    /// # Errors
    /// The lab has too few nodes.
    pub(crate) fn of(cluster: &'a Cluster, family: Family, placed: Placed) -> Result<Self> {
        let home = ends::home(cluster)?;
        let ingress = match placed {
            Placed::Local => home,
            Placed::Remote => {
                cluster.record.nodes.iter().find(|node| node.name != home.name).context("one node only")?
            }
        };
        let of = |v4: Ipv4Addr| match family {
            Family::V4 => IpAddr::V4(v4),
            Family::V6 => IpAddr::V6(ip6_of(v4)),
        };
        Ok(Self {
            cluster,
            family,
            client: of(cluster.record.client.ip),
            placed,
            node: ingress,
            ingress: of(ingress.ip),
        })
    }

    /// A published port of the node.
    pub(crate) fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ingress, port)
    }

    /// Runs `work` in the client's namespace.
    pub(crate) fn as_client<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.cluster.client().run(work)
    }

    /// A UDP socket connected to a published port of the node. Call it in the client's namespace.
    pub(crate) fn udp(&self, port: u16) -> Result<UdpSocket> {
        let any = match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(self.port(port))?;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(socket)
    }

    /// Whether the lab is in userspace.
    pub(crate) fn is_userspace(&self) -> bool {
        self.cluster.record.datapath == "userspace"
    }
}

//! Chooses this node's addresses from what `docker swarm init` and `join` were given and what the
//! host has, by Swarm's rules and with Swarm's errors. Pure.
//!
//! mesh's nodes reach each other by IPv4, so the host's IPv6 addresses are not considered.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use thiserror::Error;

/// The port of a manager's node service.
pub const MANAGER_PORT: u16 = 2377;
/// Networks that the engine makes, which are no way to other hosts.
const ENGINES: [&str; 2] = ["docker0", "docker_gwbridge"];
/// The beginning of the names of the engine's further bridges, before 12 hex digits.
const ENGINES_PREFIX: &str = "br-";

/// An IPv4 address of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemAddress {
    /// The interface that has it.
    pub interface: String,
    /// The address, without its prefix length.
    pub address: Ipv4Addr,
}

/// Why there is no good address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddressError {
    /// The host has no interface of that name.
    #[error("no such interface")]
    NoInterface,
    /// The host has no address that others could reach.
    #[error("could not find the system's IP address")]
    NoAddress,
    /// The advertised address isn't the host's, and there are several to listen on.
    #[error(
        "must specify a listening address because the address to advertise is not recognized as a system address, and a \
         system's IP address to use could not be uniquely identified"
    )]
    MustListen,
    /// The listening address is invalid.
    #[error("listen address must be an IP address or network interface (with optional port number)")]
    BadListen,
    /// The advertised address is invalid.
    #[error(
        "advertise address must be a non-zero IP address or network interface (with optional port number)"
    )]
    BadAdvertise,
    /// The data path's address is invalid.
    #[error("data path address must be a non-zero IP address or network interface (without a port number)")]
    BadDataPath,
    /// An interface that was named has two addresses.
    #[error("interface {interface} has more than one IPv4 address ({first} and {second})")]
    Ambiguous {
        /// The interface's name.
        interface: String,
        /// One address.
        first: Ipv4Addr,
        /// Another one.
        second: Ipv4Addr,
    },
    /// The only interface has two addresses.
    #[error(
        "could not choose an IP address to advertise since this system has multiple addresses on interface {interface} \
         ({first} and {second})"
    )]
    SameInterface {
        /// The interface's name.
        interface: String,
        /// One address.
        first: Ipv4Addr,
        /// Another one.
        second: Ipv4Addr,
    },
    /// Two interfaces have addresses.
    #[error(
        "could not choose an IP address to advertise since this system has multiple addresses on different interfaces \
         ({first} on {one} and {second} on {other})"
    )]
    OtherInterface {
        /// One address.
        first: Ipv4Addr,
        /// The interface of the first address.
        one: String,
        /// Another address.
        second: Ipv4Addr,
        /// The interface of the second address.
        other: String,
    },
    /// The address is of a kind that mesh has no use for.
    #[error("{0} is no IPv4 address: nodes reach each other by IPv4")]
    NotIpv4(IpAddr),
}

/// What the client gave; an empty text stands for nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked<'a> {
    /// `--listen-addr`: where to listen for nodes.
    pub listen: &'a str,
    /// `--advertise-addr`: where others reach this node.
    pub advertise: &'a str,
    /// `--data-path-addr`: the address of traffic between nodes.
    pub data_path: &'a str,
}

/// The addresses of a node that becomes a manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManagerAddresses {
    /// Where it listens for nodes.
    pub listen: SocketAddr,
    /// Where nodes reach it.
    pub advertise: SocketAddr,
    /// The address of its traffic with other nodes.
    pub data_path: Ipv4Addr,
}

/// The addresses of a node that makes a cluster, or joins one as a manager.
///
/// # Errors
/// An address is invalid, or none can be chosen.
pub fn of_manager(asked: Asked<'_>, system: &[SystemAddress]) -> Result<ManagerAddresses, AddressError> {
    let listen = listen(asked.listen, system)?;
    let advertise = if asked.advertise.is_empty() {
        let address = match listen.ip() {
            IpAddr::V4(address) if !address.is_unspecified() => address,
            _ => of_system(system)?,
        };
        SocketAddr::new(address.into(), listen.port())
    } else {
        let (address, port) = advertise(asked.advertise, system)?;
        let is_ours = system.iter().any(|own| own.address == address);
        if !is_ours && listen.ip().is_unspecified() {
            of_system(system).map_err(|_| AddressError::MustListen)?;
        }
        SocketAddr::new(address.into(), port.unwrap_or(listen.port()))
    };
    let IpAddr::V4(advertised) = advertise.ip() else {
        return Err(AddressError::NotIpv4(advertise.ip()));
    };
    let data_path = if asked.data_path.is_empty() { advertised } else { data_path(asked.data_path, system)? };
    Ok(ManagerAddresses { listen, advertise, data_path })
}

/// The address of a node that joins; `None` if the client gave none, so that the one towards its
/// manager counts.
///
/// # Errors
/// An address is invalid.
pub fn of_worker(asked: Asked<'_>, system: &[SystemAddress]) -> Result<Option<Ipv4Addr>, AddressError> {
    let advertised = (!asked.advertise.is_empty()).then(|| advertise(asked.advertise, system)).transpose()?;
    let data_path = (!asked.data_path.is_empty()).then(|| data_path(asked.data_path, system)).transpose()?;
    Ok(data_path.or(advertised.map(|(address, _)| address)))
}

/// Where a manager that listens on `port` is reached, if the client said it.
///
/// # Errors
/// The address is invalid.
pub fn advertised(
    asked: Asked<'_>,
    system: &[SystemAddress],
    port: u16,
) -> Result<Option<SocketAddr>, AddressError> {
    if asked.advertise.is_empty() {
        return Ok(None);
    }
    let (address, own_port) = advertise(asked.advertise, system)?;
    Ok(Some(SocketAddr::new(address.into(), own_port.unwrap_or(port))))
}

/// The address to listen on.
///
/// # Errors
/// It is neither an address nor an interface.
pub fn listen(asked: &str, system: &[SystemAddress]) -> Result<SocketAddr, AddressError> {
    if asked.is_empty() {
        return Ok(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), MANAGER_PORT));
    }
    let (host, port) = split(asked).ok_or(AddressError::BadListen)?;
    let port = port.unwrap_or(MANAGER_PORT);
    match of_interface(host, system) {
        Ok(address) => Ok(SocketAddr::new(address.into(), port)),
        Err(AddressError::NoInterface) => {
            let address: IpAddr = host.parse().map_err(|_| AddressError::BadListen)?;
            Ok(SocketAddr::new(address, port))
        }
        Err(error) => Err(error),
    }
}

fn advertise(asked: &str, system: &[SystemAddress]) -> Result<(Ipv4Addr, Option<u16>), AddressError> {
    let (host, port) = split(asked).ok_or(AddressError::BadAdvertise)?;
    Ok((host_address(host, system, AddressError::BadAdvertise)?, port))
}

fn data_path(asked: &str, system: &[SystemAddress]) -> Result<Ipv4Addr, AddressError> {
    host_address(asked, system, AddressError::BadDataPath)
}

/// The address of an interface, or an address as text.
fn host_address(host: &str, system: &[SystemAddress], bad: AddressError) -> Result<Ipv4Addr, AddressError> {
    match of_interface(host, system) {
        Err(AddressError::NoInterface) => match host.parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() => Err(bad),
            Ok(IpAddr::V4(address)) => Ok(address),
            Ok(address) => Err(AddressError::NotIpv4(address)),
            Err(_) => Err(bad),
        },
        found => found,
    }
}

/// Host and port of `host`, `host:port`, `[v6]:port` or a plain IPv6 address.
fn split(text: &str) -> Option<(&str, Option<u16>)> {
    if text.parse::<IpAddr>().is_ok() {
        return Some((text, None));
    }
    match text.rsplit_once(':') {
        None => Some((text, None)),
        Some((host, port)) => {
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let port = port.parse().ok().filter(|port| *port > 0)?;
            (!host.is_empty()).then_some((host, Some(port)))
        }
    }
}

/// The one address of an interface.
fn of_interface(name: &str, system: &[SystemAddress]) -> Result<Ipv4Addr, AddressError> {
    let mut on_it = system.iter().filter(|own| own.interface == name);
    let first = on_it.next().ok_or(AddressError::NoInterface)?;
    match on_it.next() {
        None => Ok(first.address),
        Some(second) => Err(AddressError::Ambiguous {
            interface: name.to_owned(),
            first: first.address,
            second: second.address,
        }),
    }
}

/// The one address by which other hosts may reach this one.
///
/// # Errors
/// There is none, or more than one.
pub fn of_system(system: &[SystemAddress]) -> Result<Ipv4Addr, AddressError> {
    let mut usable = system.iter().filter(|own| is_usable(own));
    let first = usable.next().ok_or(AddressError::NoAddress)?;
    match usable.next() {
        None => Ok(first.address),
        Some(second) if second.interface == first.interface => Err(AddressError::SameInterface {
            interface: first.interface.clone(),
            first: first.address,
            second: second.address,
        }),
        Some(second) => Err(AddressError::OtherInterface {
            first: first.address,
            one: first.interface.clone(),
            second: second.address,
            other: second.interface.clone(),
        }),
    }
}

fn is_usable(own: &SystemAddress) -> bool {
    let address = own.address;
    let of_engine = ENGINES.contains(&own.interface.as_str())
        || own
            .interface
            .strip_prefix(ENGINES_PREFIX)
            .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    !(of_engine
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_unspecified())
}

#[cfg(test)]
mod tests;

//! What `mesh-control` was asked to do, checked. Nothing is opened or bound here.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use thiserror::Error;

use crate::cli::Cli;
use crate::pool::{PoolError, WantedPool};

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// etcd's client addresses; at least one.
    pub etcd: Vec<String>,
    /// Holds the key file and the join tokens.
    pub data_dir: PathBuf,
    /// This manager's name.
    pub name: String,
    /// Where agents and clients reach this manager.
    pub advertise: IpAddr,
    /// Where the node service listens.
    pub node_listen: SocketAddr,
    /// Where the Docker API listens.
    pub socket: PathBuf,
    /// Where metrics and health are served.
    pub metrics_listen: SocketAddr,
    /// What tasks' networks come out of.
    pub pool: WantedPool,
}

/// What is wrong with the configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No name, and no hostname to take instead.
    #[error("this machine has no hostname: give --name")]
    NoName,
    /// Names become part of a key.
    #[error("--name {0:?}: a name has 1 to 63 characters of letters, digits, '-', '_' and '.'")]
    BadName(String),
    /// An address that nobody can connect to.
    #[error("--advertise {0}: give the address of this machine that agents reach")]
    Unspecified(IpAddr),
    /// An empty entry in `--etcd`.
    #[error("--etcd: an address is empty; give http://HOST:2379[,…]")]
    NoEtcd,
    /// Tasks' networks can't come out of it.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// Port of the metrics.
const METRICS_PORT: u16 = 9465;
/// Longest name.
const NAME_LENGTH: usize = 63;

impl Config {
    /// Checks a command line; `hostname` serves when no name is given.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(cli: Cli, hostname: Option<String>) -> Result<Self, ConfigError> {
        let name = cli.name.or(hostname).ok_or(ConfigError::NoName)?;
        let good = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        if name.is_empty() || name.len() > NAME_LENGTH || !name.chars().all(good) {
            return Err(ConfigError::BadName(name));
        }
        if cli.advertise.is_unspecified() {
            return Err(ConfigError::Unspecified(cli.advertise));
        }
        if cli.etcd.is_empty() || cli.etcd.iter().any(|address| address.trim().is_empty()) {
            return Err(ConfigError::NoEtcd);
        }
        Ok(Self {
            etcd: cli.etcd,
            data_dir: cli.data_dir,
            name,
            advertise: cli.advertise,
            node_listen: cli.node_listen,
            socket: cli.socket,
            metrics_listen: cli
                .metrics_listen
                .unwrap_or_else(|| SocketAddr::new(cli.advertise, METRICS_PORT)),
            pool: WantedPool::new(cli.default_addr_pool, cli.default_addr_pool_mask_length)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn config(arguments: &[&str], hostname: Option<&str>) -> Result<Config, ConfigError> {
        let all = ["mesh-control"].iter().chain(arguments);
        Config::new(Cli::try_parse_from(all).unwrap(), hostname.map(str::to_owned))
    }

    #[test]
    fn a_name_is_given_or_the_hostname() {
        let advertise = ["--advertise", "10.0.0.1"];
        assert_eq!(config(&advertise, Some("host-1")).unwrap().name, "host-1");
        assert!(matches!(config(&advertise, None), Err(ConfigError::NoName)));
        for bad in ["", "a/b", &"x".repeat(64)] {
            let refused = config(&["--advertise", "10.0.0.1", "--name", bad], None);
            assert!(matches!(refused, Err(ConfigError::BadName(_))), "{bad:?} was taken: {refused:?}");
        }
    }

    #[test]
    fn metrics_are_served_on_the_advertised_address_by_default() {
        let listen = |flags: &[&str]| {
            let flags = [&["--advertise", "10.0.0.1"], flags].concat();
            config(&flags, Some("a")).unwrap().metrics_listen.to_string()
        };
        assert_eq!(listen(&[]), "10.0.0.1:9465");
        assert_eq!(listen(&["--metrics-listen", "0.0.0.0:1"]), "0.0.0.0:1");
    }

    #[test]
    fn addresses_that_lead_nowhere_are_refused() {
        let refused = config(&["--advertise", "0.0.0.0"], Some("a"));
        assert!(matches!(refused, Err(ConfigError::Unspecified(_))), "{refused:?}");
        let refused = config(&["--advertise", "10.0.0.1", "--etcd", "http://a:1,"], Some("a"));
        assert!(matches!(refused, Err(ConfigError::NoEtcd)), "{refused:?}");
    }
}

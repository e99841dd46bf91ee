//! The configuration of `mesh-control`, checked. Opens and binds nothing.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use mesh_state::store::{EtcdAccess, EtcdAccessError, EtcdIdentity, EtcdUser};
use thiserror::Error;

use crate::cli::Cli;
use crate::pool::{PoolError, WantedNetworkPool, WantedPool};

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The access to etcd.
    pub etcd: EtcdAccess,
    /// The directory of the key file and the join tokens.
    pub data_dir: PathBuf,
    /// Whether a new cluster may be created though there is the key of one.
    pub new_cluster: bool,
    /// This manager's name.
    pub name: String,
    /// The address at which agents and clients reach this manager.
    pub advertise: IpAddr,
    /// The node service's address.
    pub node_listen: SocketAddr,
    /// The Docker API's socket.
    pub socket: PathBuf,
    /// The address of metrics and health.
    pub metrics_listen: SocketAddr,
    /// The pool of tasks' addresses.
    pub pool: WantedPool,
    /// The pool of networks' subnets.
    pub network_pool: WantedNetworkPool,
    /// Whether clients can make components panic.
    pub debug_faults: bool,
}

/// What is wrong with the configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// There is no name, and no hostname to use instead.
    #[error("this machine has no hostname: give --name")]
    NoName,
    /// A name has a character that keys can't have, or a bad length.
    #[error("--name {0:?}: a name has 1 to 63 characters of letters, digits, '-', '_' and '.'")]
    BadName(String),
    /// An address that no client can connect to.
    #[error("--advertise {0}: give the address of this machine that agents reach")]
    Unspecified(IpAddr),
    /// An address of etcd is invalid, or not allowed.
    #[error("--etcd")]
    Etcd(#[from] EtcdAccessError),
    /// The pool is invalid.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// The default port of the metrics.
const METRICS_PORT: u16 = 9465;
/// The longest name.
const NAME_LENGTH: usize = 63;

impl Config {
    /// Checks a command line; `hostname` is the default of the name.
    ///
    /// # Errors
    /// The first mistake.
    pub fn new(cli: Cli, hostname: Option<String>) -> Result<Self, ConfigError> {
        let name = cli.name.or(hostname).ok_or(ConfigError::NoName)?;
        let good = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        if name.is_empty() || name.len() > NAME_LENGTH || !name.chars().all(good) {
            return Err(ConfigError::BadName(name));
        }
        if cli.advertise.is_unspecified() {
            return Err(ConfigError::Unspecified(cli.advertise));
        }
        let identity = cli.etcd_cert.zip(cli.etcd_key);
        let etcd = EtcdAccess {
            addresses: cli.etcd,
            ca: cli.etcd_ca,
            identity: identity.map(|(certificate, key)| EtcdIdentity { certificate, key }),
            user: cli
                .etcd_user
                .zip(cli.etcd_password_file)
                .map(|(name, password_file)| EtcdUser { name, password_file }),
            allow_plain_text: cli.etcd_insecure,
        };
        etcd.check()?;
        Ok(Self {
            etcd,
            data_dir: cli.data_dir,
            new_cluster: cli.new_cluster,
            name,
            advertise: cli.advertise,
            node_listen: cli.node_listen,
            socket: cli.socket,
            metrics_listen: cli
                .metrics_listen
                .unwrap_or_else(|| SocketAddr::new(cli.advertise, METRICS_PORT)),
            pool: WantedPool::new(cli.default_addr_pool, cli.default_addr_pool_mask_length)?,
            network_pool: WantedNetworkPool::new(cli.network_addr_pool, cli.network_addr_pool_mask_length)?,
            debug_faults: cli.debug_faults,
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
    fn the_name_defaults_to_the_hostname() {
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
        let refused = config(&["--advertise", "10.0.0.1", "--etcd", "http://127.0.0.1:1,"], Some("a"));
        assert!(matches!(refused, Err(ConfigError::Etcd(EtcdAccessError::BadAddress { .. }))), "{refused:?}");
    }

    #[test]
    fn plain_text_to_another_machine_needs_a_flag() {
        let mut arguments = vec!["--advertise", "10.0.0.1", "--etcd", "http://10.0.0.2:2379"];
        let refused = config(&arguments, Some("a"));
        assert!(matches!(refused, Err(ConfigError::Etcd(EtcdAccessError::PlainText { .. }))), "{refused:?}");
        arguments.push("--etcd-insecure");
        assert!(config(&arguments, Some("a")).unwrap().etcd.allow_plain_text);
    }

    #[test]
    fn certificates_and_a_user_for_etcd_are_taken() {
        let mut arguments = vec!["--advertise", "10.0.0.1", "--etcd", "https://10.0.0.2:2379"];
        arguments.extend(["--etcd-ca", "ca.pem", "--etcd-cert", "c.pem", "--etcd-key", "c.key"]);
        arguments.extend(["--etcd-user", "mesh", "--etcd-password-file", "password"]);
        let etcd = config(&arguments, Some("a")).unwrap().etcd;
        let identity = EtcdIdentity { certificate: "c.pem".into(), key: "c.key".into() };
        assert_eq!(etcd.identity, Some(identity));
        assert_eq!(etcd.user, Some(EtcdUser { name: "mesh".to_owned(), password_file: "password".into() }));
        for alone in [["--etcd-cert", "c.pem"], ["--etcd-key", "c.key"], ["--etcd-user", "mesh"]] {
            let all = ["mesh-control", "--advertise", "10.0.0.1"].into_iter().chain(alone);
            assert!(Cli::try_parse_from(all).is_err(), "{alone:?} alone was taken");
        }
    }
}

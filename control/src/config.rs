//! The configuration of `mesh-control`, checked. Opens and binds nothing.

mod backups;
mod remote_api;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use mesh_state::store::{EtcdAccess, EtcdAccessError, EtcdIdentity, EtcdUser};
use thiserror::Error;

use crate::cli::Cli;
use crate::founding::Founding;
use crate::managed_etcd::ManagedEtcd;
use crate::pool::{PoolError, WantedNetworkPool, WantedPool};
use crate::seal::unlock_key::UnlockKey;
pub use backups::Backups;
pub use remote_api::RemoteApi;

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
    /// The node service's port at that address.
    pub advertise_port: u16,
    /// The node service's address.
    pub node_listen: SocketAddr,
    /// The Docker API's socket.
    pub socket: PathBuf,
    /// The address of metrics and health.
    pub metrics_listen: SocketAddr,
    /// The Docker API for clients on other machines; `None`: it is off.
    pub remote_api: Option<RemoteApi>,
    /// Scheduled backups; `None`: there are none.
    pub backups: Option<Backups>,
    /// The pool of tasks' addresses.
    pub pool: WantedPool,
    /// The pool of networks' subnets.
    pub network_pool: WantedNetworkPool,
    /// The unlock key that the operator gave, if this manager's key file was wrapped.
    pub unlock: Option<UnlockKey>,
    /// Whether clients can make components panic.
    pub debug_faults: bool,
    /// Whether clients can give certificates a life of less than an hour.
    pub debug_short_certificates: bool,
}

/// How a manager is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settings {
    /// With an etcd that its operator runs.
    External(Config),
    /// With an etcd of its own.
    Managed(ManagedSettings),
}

/// The settings of a manager with an etcd of its own, which its founding completes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedSettings {
    /// This manager's name.
    pub name: String,
    /// The directory of its state.
    pub data_dir: PathBuf,
    /// The Docker API's socket.
    pub socket: PathBuf,
    /// The unlock key that the operator gave, if this manager's key file was wrapped.
    pub unlock: Option<UnlockKey>,
    /// Whether clients can make components panic.
    pub debug_faults: bool,
    /// Whether clients can give certificates a life of less than an hour.
    pub debug_short_certificates: bool,
    etcd_program: PathBuf,
    etcd_run_dir: PathBuf,
    metrics_listen: Option<SocketAddr>,
    remote_api: Option<RemoteApi>,
    backups: Option<Backups>,
    pool: WantedPool,
    new_cluster: bool,
}

impl Settings {
    /// Checks a command line; `hostname` is the default of the name.
    ///
    /// # Errors
    /// The first mistake.
    pub fn new(cli: Cli, hostname: Option<String>) -> Result<Self, ConfigError> {
        if cli.etcd.is_empty() {
            ManagedSettings::new(cli, hostname).map(Self::Managed)
        } else {
            Config::new(cli, hostname).map(Self::External)
        }
    }
}

impl ManagedSettings {
    fn new(cli: Cli, hostname: Option<String>) -> Result<Self, ConfigError> {
        if cli.network_addr_pool.is_some() || cli.network_addr_pool_mask_length.is_some() {
            return Err(ConfigError::NetworkPool);
        }
        let remote_api = RemoteApi::new(&cli, hostname.as_deref())?;
        let backups = Backups::new(&cli);
        // Its directory is this manager's own, and in memory as a rule.
        let beside_socket = || cli.socket.with_file_name("etcd");
        Ok(Self {
            name: name_of(cli.name.or(hostname))?,
            etcd_run_dir: cli.etcd_run_dir.unwrap_or_else(beside_socket),
            data_dir: cli.data_dir,
            socket: cli.socket,
            unlock: None,
            debug_faults: cli.debug_faults,
            debug_short_certificates: cli.debug_short_certificates,
            etcd_program: cli.etcd_program,
            metrics_listen: cli.metrics_listen,
            remote_api,
            backups,
            pool: WantedPool::new(cli.default_addr_pool, cli.default_addr_pool_mask_length)?,
            new_cluster: cli.new_cluster,
        })
    }

    /// The same with the unlock key that the operator gave.
    #[must_use]
    pub fn unlocked_with(&self, unlock: Option<UnlockKey>) -> Self {
        Self { unlock, ..self.clone() }
    }

    /// The directory of the etcd.
    pub fn etcd_directory(&self) -> PathBuf {
        self.data_dir.join("etcd")
    }

    /// The directory in memory of the etcd's private keys.
    pub fn etcd_run_dir(&self) -> &Path {
        &self.etcd_run_dir
    }

    /// The etcd of a manager that was founded so.
    pub fn etcd(&self, founding: &Founding) -> ManagedEtcd {
        ManagedEtcd {
            program: self.etcd_program.clone(),
            directory: self.etcd_directory(),
            run_dir: self.etcd_run_dir.clone(),
            name: self.name.clone(),
            advertise: founding.advertise.ip(),
            joins: founding.joins.clone(),
            force_new_cluster: false,
        }
    }

    /// The whole configuration of a manager that was founded so.
    ///
    /// # Errors
    /// The pools of the founding are invalid.
    pub fn config(&self, founding: &Founding) -> Result<Config, ConfigError> {
        let advertise = founding.advertise.ip();
        if advertise.is_unspecified() {
            return Err(ConfigError::Unspecified(advertise));
        }
        Ok(Config {
            etcd: self.etcd(founding).access(),
            data_dir: self.data_dir.clone(),
            new_cluster: self.new_cluster,
            name: self.name.clone(),
            advertise,
            advertise_port: founding.advertise.port(),
            node_listen: founding.listen,
            socket: self.socket.clone(),
            metrics_listen: self.metrics_listen.unwrap_or_else(|| SocketAddr::new(advertise, METRICS_PORT)),
            remote_api: self.remote_api.clone(),
            backups: self.backups.clone(),
            pool: self.pool,
            network_pool: WantedNetworkPool::new(founding.network_pool, founding.network_prefix)?,
            unlock: self.unlock.clone(),
            debug_faults: self.debug_faults,
            debug_short_certificates: self.debug_short_certificates,
        })
    }
}

/// Checks the name of a manager.
fn name_of(name: Option<String>) -> Result<String, ConfigError> {
    let name = name.ok_or(ConfigError::NoName)?;
    let good = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    if name.is_empty() || name.len() > NAME_LENGTH || !name.chars().all(good) {
        return Err(ConfigError::BadName(name));
    }
    Ok(name)
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
    /// A host that no certificate can name.
    #[error("--docker-names {0:?}: give addresses, or host names of letters, digits, '-' and '.'")]
    BadHost(String),
    /// No address is named.
    #[error("--etcd needs --advertise: give the address of this machine that agents reach")]
    NoAdvertise,
    /// The pool of networks is the founding's.
    #[error(
        "--network-addr-pool is for --etcd: docker swarm init --default-addr-pool chooses the pool of a new cluster"
    )]
    NetworkPool,
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
        let remote_api = RemoteApi::new(&cli, hostname.as_deref())?;
        let backups = Backups::new(&cli);
        let name = name_of(cli.name.or(hostname))?;
        let advertise = cli.advertise.ok_or(ConfigError::NoAdvertise)?;
        if advertise.is_unspecified() {
            return Err(ConfigError::Unspecified(advertise));
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
            advertise,
            advertise_port: cli.node_listen.port(),
            node_listen: cli.node_listen,
            socket: cli.socket,
            metrics_listen: cli.metrics_listen.unwrap_or_else(|| SocketAddr::new(advertise, METRICS_PORT)),
            remote_api,
            backups,
            pool: WantedPool::new(cli.default_addr_pool, cli.default_addr_pool_mask_length)?,
            network_pool: WantedNetworkPool::new(cli.network_addr_pool, cli.network_addr_pool_mask_length)?,
            unlock: None,
            debug_faults: cli.debug_faults,
            debug_short_certificates: cli.debug_short_certificates,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn config(arguments: &[&str], hostname: Option<&str>) -> Result<Config, ConfigError> {
        let usual = ["--etcd", "http://127.0.0.1:2379"];
        let usual = usual.iter().filter(|_| !arguments.contains(&"--etcd"));
        let all = ["mesh-control"].iter().chain(usual).chain(arguments);
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

    #[test]
    fn without_an_etcd_of_the_operators_a_manager_runs_its_own() {
        let settings = |arguments: &[&str]| {
            let all = ["mesh-control"].iter().chain(arguments);
            Cli::try_parse_from(all).map(|cli| Settings::new(cli, Some("a".to_owned())))
        };
        let Settings::Managed(managed) = settings(&["--data-dir", "/d"]).unwrap().unwrap() else {
            panic!("an etcd of the operator's")
        };
        let founding = Founding {
            advertise: ([10, 0, 0, 1], 99).into(),
            listen: ([0, 0, 0, 0], 99).into(),
            network_pool: "10.20.0.0/16".parse().ok(),
            network_prefix: Some(26),
            joins: None,
            restores: false,
        };
        let config = managed.config(&founding).unwrap();
        assert_eq!(config.etcd.addresses, ["https://127.0.0.1:4802"]);
        let keys = config.etcd.identity.clone().unwrap().key;
        assert_eq!(keys, Path::new("/run/mesh-control/etcd/client.key"), "beside the socket");
        assert_eq!(
            (config.advertise_port, config.metrics_listen.to_string().as_str()),
            (99, "10.0.0.1:9465")
        );
        let bad = Founding { network_prefix: Some(8), ..founding };
        assert!(matches!(managed.config(&bad), Err(ConfigError::Pool(_))));
        assert!(settings(&["--advertise", "10.0.0.1"]).is_err(), "docker swarm init says the address");
        assert!(settings(&["--etcd-ca", "ca.pem"]).is_err(), "of which etcd?");
        let both = ["--etcd-run-dir", "/run/x", "--etcd", "http://127.0.0.1:1"];
        assert!(settings(&both).is_err(), "whose keys would be there?");
        assert!(matches!(
            settings(&["--network-addr-pool", "10.0.0.0/8"]),
            Ok(Err(ConfigError::NetworkPool))
        ));
    }
}

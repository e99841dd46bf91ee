//! Where the Docker API is served to clients on other machines, and the hosts in its certificate.

use std::net::{IpAddr, SocketAddr};

use super::ConfigError;
use crate::cli::Cli;

/// The longest label of a host name.
const LABEL_LENGTH: usize = 63;
/// The longest host name.
const HOST_LENGTH: usize = 253;

/// Where the Docker API is served to clients on other machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteApi {
    /// The address that it listens on.
    pub listen: SocketAddr,
    /// The hosts in its certificate, beside the manager's advertised address.
    pub names: Vec<String>,
}

impl RemoteApi {
    /// By a command line; `hostname` is the machine's.
    pub(super) fn new(cli: &Cli, hostname: Option<&str>) -> Result<Option<Self>, ConfigError> {
        let Some(listen) = cli.docker_listen else { return Ok(None) };
        if let Some(bad) = cli.docker_names.iter().find(|name| !is_host(name)) {
            return Err(ConfigError::BadHost(bad.clone()));
        }
        let own = hostname.filter(|name| is_host(name)).map(str::to_owned);
        // A listener on one address is reached by that one.
        let bound = Some(listen.ip()).filter(|address| !address.is_unspecified());
        let mut names: Vec<String> =
            own.into_iter().chain(bound.map(|address| address.to_string())).collect();
        names.extend(cli.docker_names.iter().cloned());
        Ok(Some(Self { listen, names }))
    }

    /// All hosts in the certificate of a manager that is reached at `advertise`.
    pub fn hosts(&self, advertise: IpAddr) -> Vec<String> {
        let mut hosts = vec![advertise.to_string()];
        for name in &self.names {
            if !hosts.contains(name) {
                hosts.push(name.clone());
            }
        }
        hosts
    }
}

/// Whether a certificate can name this host: an address, or labels of letters, digits and hyphens.
fn is_host(host: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= LABEL_LENGTH
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.parse::<IpAddr>().is_ok() || (host.len() <= HOST_LENGTH && host.split('.').all(is_label))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn the_remote_api_is_off_unless_an_address_is_given() {
        let api = |flags: &[&str]| {
            let cli = Cli::try_parse_from(["mesh-control"].iter().chain(flags)).unwrap();
            RemoteApi::new(&cli, Some("host-1"))
        };
        let hosts = |flags: &[&str]| api(flags).unwrap().unwrap().hosts([10, 0, 0, 1].into());
        assert_eq!(api(&[]).unwrap(), None);
        assert_eq!(hosts(&["--docker-listen", "0.0.0.0:2376"]), ["10.0.0.1", "host-1"]);
        let named = ["--docker-listen", "10.9.0.1:2376", "--docker-names", "swarm.example,10.0.0.1"];
        assert_eq!(hosts(&named), ["10.0.0.1", "host-1", "10.9.0.1", "swarm.example"]);
        let refused = api(&["--docker-listen", "0.0.0.0:2376", "--docker-names", "a b"]);
        assert!(matches!(refused, Err(ConfigError::BadHost(_))), "{refused:?}");
        let alone = Cli::try_parse_from(["mesh-control", "--docker-names", "swarm.example"]);
        assert!(alone.is_err(), "names of an API that is off were taken");
    }
}

//! The access to etcd: addresses, certificates, and a user if etcd requires one.
//!
//! Invariants: nothing is sent to etcd in plain text over a network unless the operator allowed it;
//! keys and passwords come from files, never from a command line, and are read again for each new
//! connection, so that they can be replaced on disk.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use thiserror::Error;
use tonic::transport::Uri;
use zeroize::Zeroizing;

use super::{CONNECT_DEADLINE, PING_DEADLINE, PING_INTERVAL};

/// The start of a certificate in PEM.
const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// How this client reaches etcd.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EtcdAccess {
    /// Client addresses of its members, `https://HOST:PORT` or `http://HOST:PORT`; at least one.
    pub addresses: Vec<String>,
    /// The CA that signed the members' certificates, PEM; needed for `https`.
    pub ca: Option<PathBuf>,
    /// The certificate and key that this client presents to the members.
    pub identity: Option<EtcdIdentity>,
    /// The user of this client, if etcd's authentication is on and doesn't go by certificates.
    pub user: Option<EtcdUser>,
    /// Whether `http` is allowed to addresses that are not this machine's own.
    pub allow_plain_text: bool,
}

/// A client's certificate and key, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdIdentity {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file.
    pub key: PathBuf,
}

/// With what mesh logs in to an etcd that demands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdUser {
    /// The name by which etcd knows the user.
    pub name: String,
    /// The file that holds its password; white space at the end doesn't count.
    pub password_file: PathBuf,
}

/// Why etcd can't be reached as configured.
#[derive(Debug, Error)]
pub enum EtcdAccessError {
    /// No member is named.
    #[error("no address of etcd is given: name at least one, as https://HOST:2379")]
    NoAddress,
    /// An address can't be parsed.
    #[error("etcd address {address:?}: write https://HOST:PORT (or http:// for an etcd on this machine)")]
    BadAddress {
        /// The given address.
        address: String,
    },
    /// A network would carry keys and tokens in plain text.
    #[error(
        "etcd address {address}: plain text would show the cluster's state to the network, and let others change it. \
         Give etcd certificates (`mesh etcd-certificates` makes them) and write https:// with --etcd-ca, --etcd-cert and \
         --etcd-key; or give --etcd-insecure if nobody else can reach that network"
    )]
    PlainText {
        /// The address of etcd as it was given.
        address: String,
    },
    /// There is no CA to verify certificates with.
    #[error("etcd address {address}: https needs the CA of etcd's certificates: give --etcd-ca FILE")]
    NoCa {
        /// The address of etcd as it was given.
        address: String,
    },
    /// There are certificates, but no address uses TLS.
    #[error("certificates for etcd are given, but every address begins with http://: write https://")]
    UnusedTls,
    /// A certificate or key is invalid.
    #[error("use the certificates for etcd address {address}: {message}")]
    Client {
        /// The address of etcd as it was given.
        address: String,
        /// The TLS client's message.
        message: String,
    },
    /// A file can't be read.
    #[error("read {}", path.display())]
    File {
        /// The file of a certificate, key or password.
        path: PathBuf,
        /// The error of the call that failed.
        #[source]
        source: std::io::Error,
    },
}

impl EtcdAccessError {
    pub(super) fn client(address: &str, error: &etcd_client::Error) -> Self {
        Self::Client { address: address.to_owned(), message: error.to_string() }
    }
}

impl EtcdAccess {
    /// Plain-text access to these addresses, for an etcd on this machine.
    pub fn plain(addresses: &[String]) -> Self {
        Self { addresses: addresses.to_vec(), ..Self::default() }
    }

    /// Checks what can be checked without reading a file.
    ///
    /// # Errors
    /// The first mistake; its text names the flags of mesh-control.
    pub fn check(&self) -> Result<(), EtcdAccessError> {
        if self.addresses.is_empty() {
            return Err(EtcdAccessError::NoAddress);
        }
        let mut encrypted = false;
        for address in &self.addresses {
            let bad = || EtcdAccessError::BadAddress { address: address.clone() };
            let uri: Uri = address.parse().map_err(|_| bad())?;
            let host = uri.host().filter(|_| uri.port().is_some()).ok_or_else(bad)?;
            match uri.scheme_str() {
                Some("https") if self.ca.is_none() => {
                    return Err(EtcdAccessError::NoCa { address: address.clone() });
                }
                Some("https") => encrypted = true,
                Some("http") if is_loopback(host) || self.allow_plain_text => {}
                Some("http") => return Err(EtcdAccessError::PlainText { address: address.clone() }),
                _ => return Err(bad()),
            }
        }
        if !encrypted && (self.ca.is_some() || self.identity.is_some()) {
            return Err(EtcdAccessError::UnusedTls);
        }
        Ok(())
    }

    /// The options of a connection to `address`, from the files as they are now.
    pub(super) async fn options(&self, address: &str) -> Result<ConnectOptions, EtcdAccessError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_DEADLINE)
            .with_keep_alive(PING_INTERVAL, PING_DEADLINE)
            .with_require_leader(true);
        if let (true, Some(ca)) = (address.starts_with("https"), &self.ca) {
            let authority = read(ca).await?;
            // TLS would ignore what it can't parse, and then trust no certificate.
            if !authority.windows(PEM_CERTIFICATE.len()).any(|text| text == PEM_CERTIFICATE) {
                let source = std::io::Error::new(ErrorKind::InvalidData, "it holds no certificate in PEM");
                return Err(EtcdAccessError::File { path: ca.clone(), source });
            }
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(&*authority));
            if let Some(EtcdIdentity { certificate, key }) = &self.identity {
                tls = tls.identity(Identity::from_pem(&*read(certificate).await?, &*read(key).await?));
            }
            options = options.with_tls(tls);
        }
        if let Some(EtcdUser { name, password_file }) = &self.user {
            let password = read(password_file).await?;
            let password = String::from_utf8_lossy(&password);
            options = options.with_user(name, password.trim_end()).with_auto_token_refresh(true);
        }
        Ok(options)
    }
}

/// Whether a host name or address is this machine's loopback.
fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, EtcdAccessError> {
    let read = tokio::fs::read(path).await;
    read.map(Zeroizing::new).map_err(|source| EtcdAccessError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(addresses: &[&str]) -> EtcdAccess {
        EtcdAccess::plain(&addresses.iter().map(|address| (*address).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn plain_text_stays_on_this_machine() {
        for own in
            ["http://127.0.0.1:2379", "http://127.8.8.8:1", "http://localhost:2379", "http://[::1]:2379"]
        {
            access(&[own]).check().unwrap_or_else(|error| panic!("{own}: {error}"));
        }
        for outside in [
            "http://10.77.0.11:2379",
            "http://etcd:2379",
            "http://[fd77::11]:2379",
            "http://localhost.evil:1",
        ] {
            let refused = access(&["http://127.0.0.1:2379", outside]).check();
            assert!(
                matches!(&refused, Err(EtcdAccessError::PlainText { address }) if address == outside),
                "{outside} was taken: {refused:?}"
            );
            let allowed = EtcdAccess { allow_plain_text: true, ..access(&[outside]) };
            assert!(allowed.check().is_ok(), "{outside} was refused though it was allowed");
        }
    }

    #[test]
    fn https_needs_a_ca_and_a_ca_needs_https() {
        let https = access(&["https://10.77.0.11:2379"]);
        assert!(matches!(https.check(), Err(EtcdAccessError::NoCa { .. })), "https without a CA was taken");
        let ca = Some(PathBuf::from("ca.pem"));
        EtcdAccess { ca: ca.clone(), ..https }.check().unwrap();
        let unused = EtcdAccess { ca, ..access(&["http://127.0.0.1:2379"]) };
        assert!(matches!(unused.check(), Err(EtcdAccessError::UnusedTls)), "a CA for nothing was taken");
    }

    #[test]
    fn an_address_has_scheme_host_and_port() {
        for bad in ["", "10.0.0.1:2379", "https://10.0.0.1", "ftp://a:1", "http://", "unix:///x"] {
            let refused = access(&[bad]).check();
            assert!(matches!(refused, Err(EtcdAccessError::BadAddress { .. })), "{bad:?}: {refused:?}");
        }
        assert!(matches!(access(&[]).check(), Err(EtcdAccessError::NoAddress)));
    }
}

//! An etcd of this manager's own, run as a child: the default, without `--etcd`.
//!
//! Purpose: an operator installs Debian's `etcd-server` and never sees it. Its data, its CA and its
//! certificates are below `DATA/etcd`.
//!
//! Invariants: clients are served on loopback alone and members at the advertised address alone,
//! both by mutual TLS; nothing is served in plain text. The child ends with this process, however
//! that ends.
//!
//! Left to others: what is stored in it (mesh-state), the cluster's own CA ([`crate::ca`]).

pub mod arguments;
mod certificates;
mod child;
pub mod plan;
pub mod resignation;
pub mod upkeep;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use chrono::Utc;
use mesh_etcd_pki::PkiError;
use mesh_state::store::{EtcdAccess, EtcdIdentity};
use thiserror::Error;

pub use child::supervise;

/// The port at which clients on this machine reach the child. Not etcd's usual ports: on those, the
/// service of Debian's `etcd-server` starts with the package.
pub const CLIENT_PORT: u16 = 4802;
/// The port at which other managers' members reach it.
pub const PEER_PORT: u16 = 4803;

/// Where the child keeps what, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedEtcd {
    /// The program to run, looked for in `PATH` if it is a bare name.
    pub program: PathBuf,
    /// The directory of its data and certificates.
    pub directory: PathBuf,
    /// Its name among the members.
    pub name: String,
    /// The address at which other managers reach it.
    pub advertise: IpAddr,
    /// The members of the cluster that it joins, itself included: peer URLs by name. `None` for the
    /// first member.
    pub joins: Option<BTreeMap<String, String>>,
    /// Whether its first start forgets all other members.
    pub force_new_cluster: bool,
}

/// The URL at which other members reach the one at `address`.
pub fn peer_url(address: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(address, PEER_PORT))
}

/// Why the child can't be run.
#[derive(Debug, Error)]
pub enum ManagedEtcdError {
    /// A directory can't be made.
    #[error("make {}", path.display())]
    Directory {
        /// The directory that was to be made.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// A certificate can't be made.
    #[error("make the certificates of etcd")]
    Certificates(#[from] PkiError),
    /// The program can't be started.
    #[error(
        "start {}: install the package etcd-server, or name an etcd of yours with --etcd",
        program.display()
    )]
    Start {
        /// The program that was to run.
        program: PathBuf,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
}

impl ManagedEtcd {
    /// The directory of the child's data.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The directory of its certificates.
    pub fn certificates(&self) -> PathBuf {
        self.directory.join("pki")
    }

    /// Makes what the child needs before it starts: directories and certificates. Blocks.
    ///
    /// # Errors
    /// A file or a certificate can't be made.
    pub fn prepare(&self) -> Result<(), ManagedEtcdError> {
        for path in [self.directory.clone(), self.data(), self.certificates()] {
            mesh_runtime::private_file::create_private_dir(&path)
                .map_err(|source| ManagedEtcdError::Directory { path, source })?;
        }
        certificates::refresh(&self.certificates(), self.advertise, Utc::now())?;
        Ok(())
    }

    /// How this manager reaches the child.
    pub fn access(&self) -> EtcdAccess {
        access(&self.certificates())
    }
}

/// The access to the child whose certificates are in `directory`.
fn access(directory: &Path) -> EtcdAccess {
    EtcdAccess {
        addresses: vec![format!("https://127.0.0.1:{CLIENT_PORT}")],
        ca: Some(directory.join("ca.pem")),
        identity: Some(EtcdIdentity {
            certificate: directory.join("client.pem"),
            key: directory.join("client.key"),
        }),
        ..EtcdAccess::default()
    }
}

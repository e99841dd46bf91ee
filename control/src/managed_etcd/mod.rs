//! An etcd of this manager's own, run as a child: the default, without `--etcd`.
//!
//! Purpose: an operator installs Debian's `etcd-server` and never sees it. Its data and its CA are
//! below `DATA/etcd`, its certificates in a directory in memory.
//!
//! Invariants: clients are served on loopback alone and members at the advertised address alone,
//! both by mutual TLS; nothing is served in plain text. No private key is on a disk in clear. The
//! child ends with this process, however that ends.
//!
//! Left to others: what is stored in it (mesh-state), the cluster's own CA ([`crate::ca`]).

pub mod arguments;
pub mod authority;
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
use mesh_runtime::private_file::create_private_dir;
use mesh_state::store::{EtcdAccess, EtcdIdentity};
use thiserror::Error;

use crate::seal::Sealer;
use authority::AuthorityError;

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
    /// The directory of its data and its CA.
    pub directory: PathBuf,
    /// The directory in memory of its certificates and their keys.
    pub run_dir: PathBuf,
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
    /// The directory of private keys would be on a disk.
    #[error(
        "{} is on a disk, and etcd's private keys must not be: name a directory on a tmpfs, as below /run, with --etcd-run-dir",
        path.display()
    )]
    OnDisk {
        /// The directory of the keys.
        path: PathBuf,
    },
    /// The private keys can't be removed.
    #[error("remove etcd's private keys from {}", path.display())]
    Clear {
        /// The directory of the keys.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// The CA can't be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
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

    /// The directory of its CA.
    pub fn pki(&self) -> PathBuf {
        self.directory.join("pki")
    }

    /// Makes what the child needs before it starts: directories, the CA, and certificates with
    /// their keys. Blocks.
    ///
    /// # Errors
    /// A file or a certificate can't be made.
    pub fn prepare(&self, sealer: &Sealer) -> Result<(), ManagedEtcdError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ManagedEtcdError::Directory { path, source }
        };
        for path in [self.directory.clone(), self.data(), self.pki()] {
            create_private_dir(&path).map_err(failed(&path))?;
        }
        if !certificates::make_directory(&self.run_dir).map_err(failed(&self.run_dir))? {
            return Err(ManagedEtcdError::OnDisk { path: self.run_dir.clone() });
        }
        let now = Utc::now();
        let authority = authority::open(&self.pki(), sealer, now)?;
        certificates::refresh(&authority, &self.run_dir, self.advertise, now)?;
        Ok(())
    }

    /// How this manager reaches the child.
    pub fn access(&self) -> EtcdAccess {
        EtcdAccess {
            addresses: vec![format!("https://127.0.0.1:{CLIENT_PORT}")],
            ca: Some(self.pki().join("ca.pem")),
            identity: Some(EtcdIdentity {
                certificate: self.run_dir.join("client.pem"),
                key: self.run_dir.join("client.key"),
            }),
            ..EtcdAccess::default()
        }
    }
}

/// Removes the private keys of a child that has ended. Blocks.
///
/// # Errors
/// [`ManagedEtcdError::Clear`]
pub fn remove_keys(run_dir: &Path) -> Result<(), ManagedEtcdError> {
    certificates::clear(run_dir)
        .map_err(|source| ManagedEtcdError::Clear { path: run_dir.to_owned(), source })
}

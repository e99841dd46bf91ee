//! `mesh etcd-certificates`: makes the certificates of etcd's members and their clients.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::Context as _;
use mesh_etcd_pki::{CA_FILE, CLIENT_FILE, EtcdAuthority, MEMBER_NAME};

use crate::cli::Member;

/// Makes certificates for `members` and their clients in `directory`; returns instructions for
/// their use.
pub(crate) fn make(directory: &Path, days: u64, members: &[Member]) -> anyhow::Result<String> {
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("make {}", directory.display()))?;
    let now = chrono::Utc::now();
    let authority = EtcdAuthority::open(directory, now)?;
    for member in members {
        authority.issue_member(&member.addresses, days, now)?.write(directory, &member.name)?;
    }
    authority.issue_client(days, now)?.write(directory, CLIENT_FILE)?;
    Ok(format!(
        "made certificates for {} members of etcd in {}\n\n\
         Bring {CA_FILE}.pem and its own NAME.pem and NAME.key to each member, which etcd takes as\n  \
         --client-cert-auth --trusted-ca-file {CA_FILE}.pem --cert-file NAME.pem --key-file NAME.key\n  \
         --peer-client-cert-auth --peer-trusted-ca-file {CA_FILE}.pem --peer-cert-file NAME.pem --peer-key-file NAME.key\n  \
         --peer-cert-allowed-cn {MEMBER_NAME}\n\
         and to each manager {CA_FILE}.pem, {CLIENT_FILE}.pem and {CLIENT_FILE}.key, which mesh-control takes as\n  \
         --etcd-ca {CA_FILE}.pem --etcd-cert {CLIENT_FILE}.pem --etcd-key {CLIENT_FILE}.key\n\
         Keep {CA_FILE}.key away from all of them.",
        members.len(),
        directory.display(),
    ))
}

//! etcd's certificates in a lab: a CA for each lab, whose key is not kept, a certificate for each
//! member and one for its clients.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use mesh_etcd_pki::{CA_FILE, CLIENT_FILE, EtcdAuthority};

pub(super) use mesh_etcd_pki::MEMBER_NAME;

use super::layout::NodeLayout;

/// Longer than a lab lives, and than `cargo xtask soak clocks` sets its clocks forward.
const DAYS: u64 = 3650;
const MEMBER_FILE: &str = "member";

/// Gives every manager its certificates.
pub(super) fn hand_out(managers: &[NodeLayout]) -> Result<()> {
    let now = chrono::Utc::now();
    let (authority, _) = EtcdAuthority::create(now)?;
    for manager in managers {
        let directory = directory(manager);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .context("make the directory of etcd's certificates")?;
        fs::write(ca(manager), authority.certificate_pem()).context("write the CA of etcd")?;
        let names = [manager.ip().to_string(), manager.name()];
        authority.issue_member(&names, DAYS, now)?.write(&directory, MEMBER_FILE)?;
        authority.issue_client(DAYS, now)?.write(&directory, CLIENT_FILE)?;
    }
    Ok(())
}

/// etcdctl's variables for a command that runs on `node`; `own` says whether the etcd is the one
/// that mesh-control runs.
pub(super) fn etcdctl_variables(node: &NodeLayout, own: bool) -> [(&'static str, PathBuf); 4] {
    if own {
        // mesh-control's defaults.
        let authority = node.control_dir().join("etcd/pki").join(format!("{CA_FILE}.pem"));
        let keys = node.control_socket().with_file_name("etcd");
        return [
            ("ETCDCTL_ENDPOINTS", PathBuf::from("https://127.0.0.1:4802")),
            ("ETCDCTL_CACERT", authority),
            ("ETCDCTL_CERT", keys.join(format!("{CLIENT_FILE}.pem"))),
            ("ETCDCTL_KEY", keys.join(format!("{CLIENT_FILE}.key"))),
        ];
    }
    [
        ("ETCDCTL_ENDPOINTS", PathBuf::from(format!("https://{}:2379", node.ip()))),
        ("ETCDCTL_CACERT", ca(node)),
        ("ETCDCTL_CERT", client_certificate(node)),
        ("ETCDCTL_KEY", client_key(node)),
    ]
}

fn directory(node: &NodeLayout) -> PathBuf {
    node.state_dir().join("etcd-tls")
}

/// The path of the CA of the lab's etcd.
pub(super) fn ca(node: &NodeLayout) -> PathBuf {
    directory(node).join(format!("{CA_FILE}.pem"))
}

/// The certificate that the node's etcd presents to clients and to the other members.
pub(super) fn member_certificate(node: &NodeLayout) -> PathBuf {
    directory(node).join(format!("{MEMBER_FILE}.pem"))
}

/// The key of [`member_certificate`].
pub(super) fn member_key(node: &NodeLayout) -> PathBuf {
    directory(node).join(format!("{MEMBER_FILE}.key"))
}

/// The certificate that the node's mesh-control presents to etcd.
pub(super) fn client_certificate(node: &NodeLayout) -> PathBuf {
    directory(node).join(format!("{CLIENT_FILE}.pem"))
}

/// The key of [`client_certificate`].
pub(super) fn client_key(node: &NodeLayout) -> PathBuf {
    directory(node).join(format!("{CLIENT_FILE}.key"))
}

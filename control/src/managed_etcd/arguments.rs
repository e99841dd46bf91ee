//! The child's command line. Pure.

use std::ffi::OsString;
use std::net::SocketAddr;

use mesh_etcd_pki::MEMBER_NAME;

use super::{CLIENT_PORT, ManagedEtcd, PEER_PORT};

/// The most bytes of the child's database. Beyond it, etcd refuses writes until some are deleted; a
/// cluster of a hundred nodes and ten thousand tasks takes less than a tenth.
pub const QUOTA_BYTES: u64 = 4 << 30;

impl ManagedEtcd {
    /// The arguments of the child that begins, or goes on with, a cluster of one member.
    ///
    /// etcd reads the `initial` ones only while its data directory is empty.
    pub fn arguments(&self) -> Vec<OsString> {
        let pki = self.certificates();
        let file = |name: &str| pki.join(name).into_os_string();
        let text = OsString::from;
        let clients = format!("https://127.0.0.1:{CLIENT_PORT}");
        let peers = format!("https://{}", SocketAddr::new(self.advertise, PEER_PORT));
        let flags: [(&str, OsString); 21] = [
            ("--name", text(self.name.clone())),
            ("--data-dir", self.data().into_os_string()),
            ("--listen-client-urls", text(clients.clone())),
            ("--advertise-client-urls", text(clients)),
            ("--listen-peer-urls", text(peers.clone())),
            ("--initial-advertise-peer-urls", text(peers.clone())),
            ("--initial-cluster", text(format!("{}={peers}", self.name))),
            ("--initial-cluster-state", text("new".to_owned())),
            ("--client-cert-auth", text("true".to_owned())),
            ("--trusted-ca-file", file("ca.pem")),
            ("--cert-file", file("member.pem")),
            ("--key-file", file("member.key")),
            ("--peer-client-cert-auth", text("true".to_owned())),
            ("--peer-trusted-ca-file", file("ca.pem")),
            ("--peer-cert-file", file("member.pem")),
            ("--peer-key-file", file("member.key")),
            ("--peer-cert-allowed-cn", text(MEMBER_NAME.to_owned())),
            ("--quota-backend-bytes", text(QUOTA_BYTES.to_string())),
            ("--logger", text("zap".to_owned())),
            ("--log-outputs", text("stderr".to_owned())),
            ("--log-level", text("warn".to_owned())),
        ];
        flags
            .into_iter()
            .map(|(name, value)| {
                let mut flag = OsString::from(name);
                flag.push("=");
                flag.push(value);
                flag
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_served_in_plain_text_or_to_anybody_without_a_certificate() {
        let etcd = ManagedEtcd {
            program: "etcd".into(),
            directory: "/d".into(),
            name: "m1".to_owned(),
            advertise: [10, 0, 0, 1].into(),
        };
        let arguments: Vec<String> =
            etcd.arguments().into_iter().map(|one| one.to_string_lossy().into_owned()).collect();
        assert!(!arguments.iter().any(|one| one.contains("http://")), "plain text in {arguments:?}");
        for expected in [
            "--listen-client-urls=https://127.0.0.1:4802",
            "--listen-peer-urls=https://10.0.0.1:4803",
            "--client-cert-auth=true",
            "--peer-client-cert-auth=true",
            "--peer-cert-allowed-cn=mesh-etcd",
            "--initial-cluster=m1=https://10.0.0.1:4803",
        ] {
            assert!(arguments.iter().any(|one| one == expected), "expected {expected} in {arguments:?}");
        }
    }
}

//! The child's command line. Pure.

use std::ffi::OsString;

use mesh_etcd_pki::MEMBER_NAME;

use super::{CLIENT_PORT, ManagedEtcd, peer_url};

/// The most bytes of the child's database. Beyond it, etcd refuses writes until some are deleted; a
/// cluster of a hundred nodes and ten thousand tasks takes less than a tenth.
pub const QUOTA_BYTES: u64 = 4 << 30;

impl ManagedEtcd {
    /// The arguments of the child.
    ///
    /// etcd reads the `initial` ones only while its data directory is empty; from then on, the
    /// members are in its data.
    pub fn arguments(&self) -> Vec<OsString> {
        let file = |name: &str| self.run_dir.join(name).into_os_string();
        let ca = self.pki().join("ca.pem").into_os_string();
        let text = OsString::from;
        let clients = format!("https://127.0.0.1:{CLIENT_PORT}");
        let peers = peer_url(self.advertise);
        let (state, members) = match &self.joins {
            Some(members) => {
                let members: Vec<String> =
                    members.iter().map(|(name, url)| format!("{name}={url}")).collect();
                ("existing", members.join(","))
            }
            None => ("new", format!("{}={peers}", self.name)),
        };
        let flags: [(&str, OsString); 21] = [
            ("--name", text(self.name.clone())),
            ("--data-dir", self.data().into_os_string()),
            ("--listen-client-urls", text(clients.clone())),
            ("--advertise-client-urls", text(clients)),
            ("--listen-peer-urls", text(peers.clone())),
            ("--initial-advertise-peer-urls", text(peers)),
            ("--initial-cluster", text(members)),
            ("--initial-cluster-state", text(state.to_owned())),
            ("--client-cert-auth", text("true".to_owned())),
            ("--trusted-ca-file", ca.clone()),
            ("--cert-file", file("member.pem")),
            ("--key-file", file("member.key")),
            ("--peer-client-cert-auth", text("true".to_owned())),
            ("--peer-trusted-ca-file", ca),
            ("--peer-cert-file", file("member.pem")),
            ("--peer-key-file", file("member.key")),
            ("--peer-cert-allowed-cn", text(MEMBER_NAME.to_owned())),
            ("--quota-backend-bytes", text(QUOTA_BYTES.to_string())),
            ("--logger", text("zap".to_owned())),
            ("--log-outputs", text("stderr".to_owned())),
            ("--log-level", text("warn".to_owned())),
        ];
        let forces = self.force_new_cluster.then(|| text("--force-new-cluster".to_owned()));
        flags
            .into_iter()
            .map(|(name, value)| {
                let mut flag = OsString::from(name);
                flag.push("=");
                flag.push(value);
                flag
            })
            .chain(forces)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd() -> ManagedEtcd {
        ManagedEtcd {
            program: "etcd".into(),
            directory: "/d".into(),
            run_dir: "/r".into(),
            name: "m1".to_owned(),
            advertise: [10, 0, 0, 1].into(),
            joins: None,
            force_new_cluster: false,
        }
    }

    fn arguments(etcd: &ManagedEtcd) -> Vec<String> {
        etcd.arguments().into_iter().map(|one| one.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_manager_that_joins_names_all_members() {
        let members = [("m0", "https://10.0.0.9:4803"), ("m1", "https://10.0.0.1:4803")];
        let members = members.map(|(name, url)| (name.to_owned(), url.to_owned()));
        let joins = arguments(&ManagedEtcd { joins: Some(members.into()), ..etcd() });
        for expected in [
            "--initial-cluster=m0=https://10.0.0.9:4803,m1=https://10.0.0.1:4803",
            "--initial-cluster-state=existing",
        ] {
            assert!(joins.iter().any(|one| one == expected), "expected {expected} in {joins:?}");
        }
        let forced = arguments(&ManagedEtcd { force_new_cluster: true, ..etcd() });
        assert_eq!(forced.last().map(String::as_str), Some("--force-new-cluster"));
    }

    #[test]
    fn nothing_is_served_in_plain_text_or_to_anybody_without_a_certificate() {
        let arguments = arguments(&etcd());
        assert!(!arguments.iter().any(|one| one.contains("http://")), "plain text in {arguments:?}");
        for expected in [
            "--listen-client-urls=https://127.0.0.1:4802",
            "--listen-peer-urls=https://10.0.0.1:4803",
            "--client-cert-auth=true",
            "--peer-client-cert-auth=true",
            "--peer-cert-allowed-cn=mesh-etcd",
            "--trusted-ca-file=/d/pki/ca.pem",
            "--key-file=/r/member.key",
            "--peer-key-file=/r/member.key",
            "--initial-cluster=m1=https://10.0.0.1:4803",
        ] {
            assert!(arguments.iter().any(|one| one == expected), "expected {expected} in {arguments:?}");
        }
    }
}

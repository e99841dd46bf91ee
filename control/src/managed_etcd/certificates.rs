//! The certificates of the child and of this manager as its client. etcd reads its files again for
//! each connection, and so does the client, so a new certificate needs no restart.

use std::net::IpAddr;
use std::path::Path;

use chrono::{DateTime, Utc};
use mesh_etcd_pki::{CLIENT_FILE, EtcdAuthority, PkiError};
use x509_parser::pem::parse_x509_pem;

/// The validity of a certificate, in days.
const DAYS: u64 = 90;
/// The name of the member's files, without extension.
const MEMBER_FILE: &str = "member";

/// Makes the CA if there is none, and each certificate that is missing or past half of its life.
pub(super) fn refresh(directory: &Path, advertise: IpAddr, now: DateTime<Utc>) -> Result<(), PkiError> {
    let authority = EtcdAuthority::open(directory, now)?;
    if is_due(directory, MEMBER_FILE, now) {
        authority.issue_member(&[advertise.to_string()], DAYS, now)?.write(directory, MEMBER_FILE)?;
    }
    if is_due(directory, CLIENT_FILE, now) {
        authority.issue_client(DAYS, now)?.write(directory, CLIENT_FILE)?;
    }
    Ok(())
}

/// Whether a certificate must be made anew: one that can't be read counts as missing.
fn is_due(directory: &Path, name: &str, now: DateTime<Utc>) -> bool {
    let pem = std::fs::read(directory.join(format!("{name}.pem"))).ok();
    let key = directory.join(format!("{name}.key")).exists();
    let validity = pem.and_then(|pem| {
        let (_, pem) = parse_x509_pem(&pem).ok()?;
        let certificate = pem.parse_x509().ok()?;
        Some((certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp()))
    });
    match validity {
        Some((since, until)) => !key || now.timestamp() >= since + (until - since) / 2,
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use chrono::Days;

    use super::*;

    #[test]
    fn certificates_are_renewed_at_half_of_their_life() {
        let directory = tempfile::tempdir().unwrap();
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let read = || std::fs::read_to_string(directory.path().join("member.pem")).unwrap();
        let at = |days| refresh(directory.path(), [10, 0, 0, 1].into(), now + Days::new(days)).unwrap();
        at(0);
        let first = read();
        at(30);
        assert_eq!(read(), first, "a young certificate stays");
        at(50);
        let second = read();
        assert_ne!(second, first, "an old one is replaced");
        std::fs::remove_file(directory.path().join("member.key")).unwrap();
        at(51);
        assert_ne!(read(), second, "a certificate without its key is useless");
    }
}

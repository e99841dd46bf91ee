//! Metrics of the validity of this manager's certificates.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chrono::Utc;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts, Registry};
use tokio::sync::watch;
use x509_parser::pem::parse_x509_pem;

use crate::ca::root::TrustedRoot;
use crate::node_service::renewing_server::ServerExpiry;
use crate::trust::Trust;

/// Reads the clock and the certificates at each scrape.
struct Certificates {
    server: ServerExpiry,
    trust: watch::Receiver<Arc<Trust>>,
    etcd: Option<PathBuf>,
    left: IntGaugeVec,
}

/// Registers `mesh_certificate_seconds_left`, for the nodes' server, the cluster's CA, and the
/// certificate for etcd. The last one is a file that its operator replaces, so it is read at each
/// scrape.
///
/// # Errors
/// A family of the same name is already registered.
pub fn register(
    server: ServerExpiry,
    trust: watch::Receiver<Arc<Trust>>,
    etcd: Option<PathBuf>,
    registry: &Registry,
) -> Result<(), prometheus::Error> {
    let help = "Seconds until the certificate expires; negative once it has.";
    let left = IntGaugeVec::new(Opts::new("mesh_certificate_seconds_left", help), &["certificate"])?;
    registry.register(Box::new(Certificates { server, trust, etcd, left }))
}

impl Collector for Certificates {
    fn desc(&self) -> Vec<&Desc> {
        self.left.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = Utc::now().timestamp();
        let server = Some(self.server.load(Ordering::Relaxed)).filter(|until| *until > 0);
        let etcd = self.etcd.as_ref().and_then(|path| std::fs::read(path).ok()).and_then(|pem| until(&pem));
        let ca =
            self.trust.borrow().roots.first().and_then(TrustedRoot::until).map(|until| until.timestamp());
        let known = [("server", server), ("ca", ca), ("etcd", etcd)];
        self.left.reset();
        for (certificate, until) in known {
            if let Some(until) = until {
                self.left.with_label_values(&[certificate]).set(until - now);
            }
        }
        self.left.collect()
    }
}

/// When the first certificate in a file expires.
fn until(pem: &[u8]) -> Option<i64> {
    let (_, pem) = parse_x509_pem(pem).ok()?;
    Some(pem.parse_x509().ok()?.validity().not_after.timestamp())
}

//! Counts the certificates that a manager makes.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// How many certificates this manager has made since it started.
#[derive(Debug, Clone)]
pub struct Issued {
    /// For nodes that joined.
    pub joined: IntCounter,
    /// For nodes that renewed theirs.
    pub renewed: IntCounter,
    /// For its own server.
    pub server: IntCounter,
}

impl Issued {
    /// Registers `mesh_certificates_issued_total`.
    ///
    /// # Errors
    /// A family of the same name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let help = "Certificates made by this manager: for nodes that joined, for nodes that renewed, for its server.";
        let family = IntCounterVec::new(Opts::new("mesh_certificates_issued_total", help), &["purpose"])?;
        registry.register(Box::new(family.clone()))?;
        let counter = |purpose: &str| family.with_label_values(&[purpose]);
        Ok(Self { joined: counter("join"), renewed: counter("renewal"), server: counter("server") })
    }
}

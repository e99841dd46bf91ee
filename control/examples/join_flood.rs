//! Calls a manager's `Join` without a token, with a hostname of 4 MB, at a given rate: for `cargo
//! xtask soak listeners`.
//!
//! Arguments: the manager's address, an agent's `identity.json` (for the CA), calls per second,
//! seconds.

use std::time::Duration;

use mesh_state::proto::JoinRequest;
use mesh_state::proto::membership_client::MembershipClient;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

const HOSTNAME_BYTES: usize = 4 << 20;
const CALL_LIMIT: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [manager, identity, rate, seconds] = words.as_slice() else {
        return Err("give MANAGER IDENTITY.JSON CALLS-A-SECOND SECONDS".into());
    };
    let identity: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(identity)?)?;
    let ca = identity["ca_pem"].as_str().ok_or("the identity holds no CA")?;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name("mesh-manager");
    let endpoint = Endpoint::from_shared(format!("https://{manager}"))?.tls_config(tls)?.timeout(CALL_LIMIT);
    let (rate, seconds): (u32, u64) = (rate.parse()?, seconds.parse()?);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    while ticks.tick().await < end {
        let endpoint = endpoint.clone();
        tokio::spawn(async move {
            let Ok(channel) = endpoint.connect().await else { return };
            let request = JoinRequest {
                token: "SWMTKN-1-none".to_owned(),
                csr_pem: "none".to_owned(),
                hostname: "x\n".repeat(HOSTNAME_BYTES / 2),
                availability: String::new(),
            };
            if MembershipClient::new(channel).join(request).await.is_ok() {
                eprintln!("join_flood: a call without a token was answered with a certificate");
            }
        });
    }
    Ok(())
}

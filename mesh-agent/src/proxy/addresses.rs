//! The addresses of a client's connection, which a relay and a PROXY header pass on.

use std::net::SocketAddr;

/// The two addresses of a client's connection, as the client sees them.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionAddresses {
    /// The client's address.
    pub(super) client: SocketAddr,
    /// The published address and port that the client connected to.
    pub(super) destination: SocketAddr,
}

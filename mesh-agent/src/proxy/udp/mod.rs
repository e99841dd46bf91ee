//! UDP: flows of datagrams between clients and tasks.
//!
//! Purpose: a flow is a client's address and the published address it sends to; it has one backend,
//! reached directly or in frames through the relay of the backend's node.
//!
//! Invariants: flows are bounded like connections; a datagram for which there is no room is
//! dropped, never waited for; a flow whose backend is gone ends, and the client's next datagram
//! selects another.

pub(super) mod relayed;
pub(super) mod sessions;

mod link;
mod socket;

//! UDP: flows of datagrams between clients and tasks.
//!
//! Purpose: a flow is a client's address and the address it speaks to; it has one backend, directly or through the owner's relay,
//! where its datagrams travel in frames.
//!
//! Invariants: flows are bounded like connections; a datagram that finds no room is dropped, never waited for; a flow whose
//! backend is gone ends, and the client's next datagram selects another.

pub(super) mod relayed;
pub(super) mod sessions;

mod link;
mod socket;

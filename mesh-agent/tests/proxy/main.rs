//! The proxy and the relay over real sockets on loopback.

mod mesh;
mod relay;
mod tcp;
mod udp;

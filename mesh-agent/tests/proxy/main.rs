//! The proxy and the relay over real sockets on loopback.

mod host_ports;
mod mesh;
mod relay;
mod tcp;
mod udp;

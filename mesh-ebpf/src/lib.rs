//! Packet logic of mesh, shared by kernel programs and host tests.

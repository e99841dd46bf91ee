//! The generated messages and services of `proto/mesh.proto`.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]

tonic::include_proto!("mesh.v1");

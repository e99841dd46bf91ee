//! Classifies the etcd client's errors: whether to retry later, and whether the request was sent.
//!
//! Invariant: pure.

use std::error::Error;
use std::io::ErrorKind;

use etcd_client::Error as EtcdError;

use crate::store::StoreError;

/// An error and its sources, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        causes.push(error);
        cause = error.source();
    }
    causes
}

/// Whether there was no connection, so that nothing was sent.
pub(super) fn was_never_sent(error: &EtcdError) -> bool {
    let EtcdError::GRpcStatus(status) = error else { return false };
    causes(status).into_iter().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|error| {
        match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => true,
            // The connector's own deadline has no OS error; a timeout of an established connection
            // has one.
            ErrorKind::TimedOut => error.raw_os_error().is_none(),
            _ => false,
        }
    })
}

pub(super) fn store_error(operation: &'static str, error: &EtcdError) -> StoreError {
    // gRPC's codes for "retry later"; gRPC's specification fixes their numbers.
    const CANCELLED: i32 = 1;
    const UNKNOWN: i32 = 2;
    const UNAVAILABLE: i32 = 14;
    match error {
        EtcdError::GRpcStatus(status) => {
            let message = status.message().to_owned();
            match status.code() as i32 {
                CANCELLED | UNKNOWN | UNAVAILABLE => {
                    let root = causes(status).last().map(|root| format!(": {root}")).unwrap_or_default();
                    StoreError::Unavailable { operation, message: message + &root }
                }
                _ => StoreError::Refused { operation, message },
            }
        }
        EtcdError::InvalidArgs(message) => StoreError::Refused { operation, message: message.clone() },
        other => StoreError::Unavailable { operation, message: other.to_string() },
    }
}

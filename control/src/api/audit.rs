//! A line in the log for each call of a remote client that changes the cluster or reads a
//! credential: who made it, what, and how it ended.
//!
//! Invariants: no body and no query is logged; a call that breaks off has its line, too, as its
//! change may have been made.

use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use mesh_admission::text::Outside;
use tracing::info;

use super::version::unversioned;
use crate::remote_api::RemoteCaller;

/// Paths whose answers let their reader join the cluster or unlock its managers.
const CREDENTIALS: [&str; 2] = ["/swarm", "/swarm/unlockkey"];

/// The line of one call, which is written when this is dropped.
struct Line {
    client: String,
    method: Method,
    path: String,
    status: Option<StatusCode>,
}

impl Drop for Line {
    fn drop(&mut self) {
        let status = self.status.map_or_else(|| "broke off".to_owned(), |status| status.as_u16().to_string());
        let (client, path) = (self.client.as_str(), Outside(&self.path));
        info!(client, method = %self.method, %path, status, "a remote client's call");
    }
}

/// Passes a request on, and logs it if it is to be logged.
pub(super) async fn log(request: Request, next: Next) -> Response {
    let path = unversioned(request.uri().path());
    if !is_logged(request.method(), path) {
        return next.run(request).await;
    }
    let client = request.extensions().get::<RemoteCaller>().map(|caller| caller.0.to_string());
    let mut line = Line {
        client: client.unwrap_or_default(),
        method: request.method().clone(),
        path: path.to_owned(),
        status: None,
    };
    let response = next.run(request).await;
    line.status = Some(response.status());
    response
}

fn is_logged(method: &Method, path: &str) -> bool {
    !matches!(*method, Method::GET | Method::HEAD) || CREDENTIALS.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_reads_of_credentials_are_logged() {
        for (method, path, expected) in [
            (Method::POST, "/services/create", true),
            (Method::DELETE, "/nodes/n1", true),
            (Method::GET, "/services", false),
            (Method::HEAD, "/_ping", false),
            (Method::GET, "/swarm", true),
            (Method::GET, "/swarm/unlockkey", true),
        ] {
            assert_eq!(is_logged(&method, path), expected, "{method} {path}");
        }
    }
}

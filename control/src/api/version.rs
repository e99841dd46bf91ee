//! Checks and strips the `/v1.NN` prefix of Docker's paths, so that routes are written once.
//!
//! Invariant: a path without the prefix is served as the newest version; a version outside the
//! range is refused in Docker's words.

use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// The newest API version served.
pub(crate) const NEWEST: ApiVersion = ApiVersion { major: 1, minor: 50 };

/// The oldest API version served.
pub(crate) const OLDEST: ApiVersion = ApiVersion { major: 1, minor: 24 };

/// From this version on, multiplexed streams have a media type of their own.
const FRAMES_NAMED: ApiVersion = ApiVersion { major: 1, minor: 42 };

/// The media type of a multiplexed stream for a client of version `asked`.
pub(crate) fn frames_media_type(asked: Option<&ApiVersion>) -> &'static str {
    if asked.is_some_and(|version| *version < FRAMES_NAMED) {
        RAW_STREAM
    } else {
        "application/vnd.docker.multiplexed-stream"
    }
}

/// The media type of a raw stream.
pub(crate) const RAW_STREAM: &str = "application/vnd.docker.raw-stream";

/// A version of Docker's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ApiVersion {
    major: u16,
    minor: u16,
}

impl ApiVersion {
    /// Parses a version as Docker does: digits and dots; the first two numbers count, and a missing
    /// one is 0.
    fn of(text: &str) -> Option<Self> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return None;
        }
        let mut numbers = text.split('.').map(|number| match number {
            "" => 0,
            digits => digits.parse().unwrap_or(u16::MAX),
        });
        Some(Self { major: numbers.next().unwrap_or(0), minor: numbers.next().unwrap_or(0) })
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Strips the version from the request's path, or refuses the version.
pub(crate) async fn strip(mut request: Request, next: Next) -> Response {
    match split(request.uri().path()) {
        (None, _) => next.run(request).await,
        (Some(version), _) if version > NEWEST => ApiError::BadRequest(format!(
            "client version {version} is too new. Maximum supported API version is {NEWEST}"
        ))
        .into_response(),
        (Some(version), _) if version < OLDEST => ApiError::BadRequest(format!(
            "client version {version} is too old. Minimum supported API version is {OLDEST}, please upgrade your client to a newer version"
        ))
        .into_response(),
        (Some(version), rest) => match with_path(request.uri(), rest) {
            Some(uri) => {
                *request.uri_mut() = uri;
                request.extensions_mut().insert(version);
                next.run(request).await
            }
            None => ApiError::PageNotFound.into_response(),
        },
    }
}

/// A path without its version.
pub(crate) fn unversioned(path: &str) -> &str {
    split(path).1
}

/// Splits `/v1.43/services` into the version and `/services`; a path without the prefix has no
/// version.
fn split(path: &str) -> (Option<ApiVersion>, &str) {
    let parsed = path.strip_prefix("/v").and_then(|tail| {
        let (version, rest) = tail.split_at(tail.find('/')?);
        Some((ApiVersion::of(version)?, rest))
    });
    match parsed {
        Some((version, rest)) => (Some(version), rest),
        None => (None, path),
    }
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(text).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_version_is_split_off() {
        let version = |minor| Some(ApiVersion { major: 1, minor });
        let cases = [
            ("/v1.43/services", (version(43), "/services")),
            ("/v1.50/services/x/update", (version(50), "/services/x/update")),
            ("/services", (None, "/services")),
            ("/version", (None, "/version")),
            ("/v1.43", (None, "/v1.43")),
            ("/volumes/v1.2", (None, "/volumes/v1.2")),
            ("/v1.41.0/services", (version(41), "/services")),
            ("/v1/services", (version(0), "/services")),
            ("/v./services", (Some(ApiVersion { major: 0, minor: 0 }), "/services")),
            ("/v1.99999/services", (version(u16::MAX), "/services")),
            ("/vx.y/services", (None, "/vx.y/services")),
        ];
        for (path, expected) in cases {
            assert_eq!(split(path), expected, "splitting {path}");
        }
    }

    #[test]
    fn only_newer_clients_get_the_multiplexed_media_type() {
        let asked = |minor| ApiVersion { major: 1, minor };
        assert_eq!(frames_media_type(Some(&asked(41))), RAW_STREAM);
        for version in [Some(asked(42)), Some(asked(50)), None] {
            assert!(frames_media_type(version.as_ref()).ends_with("multiplexed-stream"), "{version:?}");
        }
    }

    #[test]
    fn versions_compare_by_number_not_by_text() {
        assert!(ApiVersion { major: 1, minor: 9 } < OLDEST);
        assert!(ApiVersion { major: 1, minor: 100 } > NEWEST);
        assert!(ApiVersion { major: 2, minor: 0 } > NEWEST);
    }

    #[test]
    fn the_query_stays_when_the_prefix_goes() {
        let uri: Uri = "/v1.43/services?status=true".parse().unwrap();
        assert_eq!(with_path(&uri, "/services").unwrap().to_string(), "/services?status=true");
    }
}

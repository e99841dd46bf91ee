//! Request bodies and query parameters: reads them with limits, accepts the spellings of Docker's
//! clients, refuses them in Docker's form.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{FromRequestParts, Query, Request};
use axum::http::Uri;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use mesh_state::go_json;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;
use zeroize::Zeroize as _;

use super::error::ApiError;
use super::version;
use crate::docker_json::{Shape, respell};

/// The most bytes of a body. A service is stored with its previous spec and a copy of its spec, all
/// in one transaction of at most 1.2 MB, which leaves a quarter for one spec.
pub(crate) const BODY_LIMIT: usize = 256 * 1024;

/// The most bytes of a secret's or config's body. The longest config takes 1.4 MB of it in base64;
/// the answer to a longer one should name the config's limit, not this one. What is too large for a
/// transaction is refused later.
pub(crate) const DEPENDENCY_BODY_LIMIT: usize = 4 * 1024 * 1024;

/// The most bytes of an oversized body that are read and dropped, so that the client gets to read
/// the answer.
const DRAINED_MAX: usize = 16 * 1024 * 1024;

/// The deadline for the whole body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// For bodies whose words need no check.
const UNCHECKED: fn(&Value) -> Result<(), ApiError> = |_| Ok(());

/// Reads a request's whole body before anything is answered: a client that gets an answer while it
/// still writes sees a broken pipe instead. A body whose announced length is beyond [`DRAINED_MAX`]
/// is refused without reading it.
pub(crate) async fn take_in(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let limit = limit_of(head.uri.path());
    if body.size_hint().lower() > DRAINED_MAX as u64 {
        return ApiError::BodyTooLarge { limit }.into_response();
    }
    match timeout(BODY_TIMEOUT, read_limited(body, limit)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Err(error)) => error.into_response(),
        Err(_) => {
            let message = format!("the request body did not come within {BODY_TIMEOUT:?}");
            ApiError::BadRequest(message).into_response()
        }
    }
}

/// The body limit of a path.
fn limit_of(path: &str) -> usize {
    let holds_data =
        ["/secrets/", "/configs/"].iter().any(|part| version::unversioned(path).starts_with(part));
    if holds_data { DEPENDENCY_BODY_LIMIT } else { BODY_LIMIT }
}

async fn read_limited(mut body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut kept = BytesMut::new();
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::BadRequest(format!("read the request body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        seen += data.len();
        if seen <= limit {
            kept.extend_from_slice(&data);
        } else if seen > DRAINED_MAX {
            break;
        }
    }
    if seen > limit { Err(ApiError::BodyTooLarge { limit }) } else { Ok(kept.freeze()) }
}

/// Reads a JSON body of a known shape.
///
/// # Errors
/// [`ApiError::BadRequest`] if it isn't the expected JSON.
pub(crate) async fn read_json<T: DeserializeOwned>(request: Request, shape: &Shape) -> Result<T, ApiError> {
    read_checked_json(request, shape, UNCHECKED).await
}

/// As [`read_json`], but `check` checks the words in it first.
///
/// # Errors
/// [`ApiError::BadRequest`] with the check's message, or if it isn't the expected JSON.
pub(crate) async fn read_checked_json<T: DeserializeOwned>(
    request: Request,
    shape: &Shape,
    check: fn(&Value) -> Result<(), ApiError>,
) -> Result<T, ApiError> {
    parse(&take_json(request).await?, shape, check)
}

/// As [`read_json`], for a body with secrets: it is wiped after parsing, and no error quotes it.
///
/// # Errors
/// [`ApiError::BadRequest`] if it isn't the expected JSON.
pub(crate) async fn read_private_json<T: DeserializeOwned>(
    request: Request,
    shape: &Shape,
) -> Result<T, ApiError> {
    let bytes = take_json(request).await?;
    let parsed = parse(&bytes, shape, UNCHECKED);
    if let Ok(mut bytes) = bytes.try_into_mut() {
        bytes.as_mut().zeroize();
    }
    parsed
}

async fn take_json(request: Request) -> Result<Bytes, ApiError> {
    if let Some(found) = foreign_content_type(&request) {
        return Err(ApiError::BadRequest(format!(
            "unsupported Content-Type header ({found}): must be 'application/json'"
        )));
    }
    // [`take_in`] has limited its size already.
    read_limited(request.into_body(), usize::MAX).await
}

fn foreign_content_type(request: &Request) -> Option<String> {
    let value = request.headers().get(CONTENT_TYPE)?.to_str().unwrap_or("unreadable");
    let essence = value.split(';').next().unwrap_or_default().trim();
    (!essence.is_empty() && !essence.eq_ignore_ascii_case("application/json")).then(|| value.to_owned())
}

/// Parses JSON of a known shape.
fn parse<T: DeserializeOwned>(
    bytes: &[u8],
    shape: &Shape,
    check: fn(&Value) -> Result<(), ApiError>,
) -> Result<T, ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::BadRequest("invalid JSON: got EOF while reading request body".to_owned()));
    }
    let invalid = |error: &dyn std::fmt::Display| ApiError::BadRequest(format!("invalid JSON: {error}"));
    let mut value = go_json::parse(bytes).map_err(|error| invalid(&error))?;
    if !value.is_object() {
        return Err(ApiError::BadRequest("invalid JSON: expected an object".to_owned()));
    }
    respell::normalise(&mut value, shape).map_err(|error| invalid(&error))?;
    check(&value)?;
    serde_path_to_error::deserialize(value)
        .map_err(|error| ApiError::BadRequest(format!("invalid JSON: {}: {}", error.path(), error.inner())))
}

/// The query's parameters; the last of a repeated one counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Params(HashMap<String, String>);

impl Params {
    /// The parameters of a call; none if they can't be parsed.
    pub(crate) fn of(uri: &Uri) -> Self {
        Query::try_from_uri(uri).map_or_else(|_| Self(HashMap::new()), |Query(map)| Self(map))
    }

    /// A parameter's text.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A boolean parameter, as Docker reads it: absent, empty, `0`, `no`, `false` and `none` are
    /// false.
    pub(crate) fn flag(&self, name: &str) -> bool {
        let value = self.get(name).unwrap_or_default().trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// The revision that a client read before an update.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] if it is missing or not a number.
    pub(crate) fn version(&self, object: &str) -> Result<i64, ApiError> {
        let text = self.get("version").unwrap_or_default();
        text.parse().map_err(|_| ApiError::BadRequest(format!("invalid {object} version '{text}'")))
    }
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(map)| Self(map))
            .map_err(|error| ApiError::BadRequest(error.body_text()))
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::spec::ServiceSpec;

    use super::*;
    use crate::docker_json::shapes::SERVICE_SPEC;

    #[test]
    fn an_invalid_spec_is_refused_with_the_path_of_the_mistake() {
        let cases: [(&str, &str); 10] = [
            ("", "invalid JSON: got EOF"),
            ("{", "invalid JSON: EOF while parsing"),
            (r#"{"Name":"x"}{}"#, "invalid JSON: trailing characters"),
            ("[]", "invalid JSON: expected an object"),
            (r#"{"Name":"x","Name":"y"}"#, "invalid JSON: the key Name comes twice"),
            (
                r#"{"Name":"x","name":"y"}"#,
                "invalid JSON: the field Name comes twice, in different spellings",
            ),
            (r#"{"Name":7}"#, "invalid JSON: Name: invalid type: integer `7`"),
            (
                r#"{"EndpointSpec":{"Ports":[{"TargetPort":70000}]}}"#,
                "invalid JSON: EndpointSpec.Ports[0].TargetPort: invalid value: integer `70000`",
            ),
            (
                r#"{"EndpointSpec":{"Ports":[{"Protocol":"quic"}]}}"#,
                "invalid JSON: EndpointSpec.Ports[0].Protocol: unknown variant `quic`, expected one of `tcp`",
            ),
            (
                r#"{"Mode":{"Replicated":{"Replicas":-1}}}"#,
                "invalid JSON: Mode.Replicated.Replicas: invalid value",
            ),
        ];
        for (text, expected) in cases {
            let error =
                parse::<ServiceSpec>(text.as_bytes(), &SERVICE_SPEC, UNCHECKED).unwrap_err().to_string();
            assert!(error.starts_with(expected), "expected {expected:?} for {text}, saw {error:?}");
        }
    }

    #[test]
    fn only_secrets_and_configs_may_be_large() {
        for path in ["/secrets/create", "/v1.41/configs/create", "/v1.41/secrets/x/update"] {
            assert_eq!(limit_of(path), DEPENDENCY_BODY_LIMIT, "{path}");
        }
        for path in ["/services/create", "/v1.41/services/secrets/update", "/secretsx"] {
            assert_eq!(limit_of(path), BODY_LIMIT, "{path}");
        }
    }

    #[test]
    fn a_version_is_a_number() {
        let params = |text: &str| Params(HashMap::from([("version".to_owned(), text.to_owned())]));
        assert!(matches!(params("12").version("service"), Ok(12)));
        let error = params("x").version("service").unwrap_err().to_string();
        assert_eq!(error, "invalid service version 'x'");
        assert_eq!(Params::default().version("node").unwrap_err().to_string(), "invalid node version ''");
    }

    #[test]
    fn booleans_are_read_as_docker_reads_them() {
        for (value, expected) in [("1", true), ("true", true), ("", false), ("0", false), ("False", false)] {
            let params = Params(HashMap::from([("force".to_owned(), value.to_owned())]));
            assert_eq!(params.flag("force"), expected, "force={value}");
        }
    }
}

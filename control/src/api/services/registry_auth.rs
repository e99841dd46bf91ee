//! Credentials for registries: read from a request's header, and sealed before anything is written.

use axum::http::HeaderMap;
use mesh_state::cluster::Sealed;
use mesh_state::service::Service;

use crate::api::body::Params;
use crate::api::error::ApiError;
use crate::context::{ApiContext, REGISTRY_AUTH};

/// The header with credentials for a registry.
const HEADER: &str = "x-registry-auth";

/// The credentials that a service has after an update.
#[derive(Debug, Clone)]
pub(crate) enum Choice {
    /// These new ones.
    Given(Sealed),
    /// The ones that it has.
    Current,
    /// The ones of its previous spec.
    Previous,
}

impl Choice {
    /// The credentials that a request chooses.
    ///
    /// # Errors
    /// An unknown source of credentials; a header that is not text; the key file.
    pub(crate) fn read(context: &ApiContext, headers: &HeaderMap, params: &Params) -> Result<Self, ApiError> {
        if let Some(sealed) = given(context, headers)? {
            return Ok(Self::Given(sealed));
        }
        match params.get("registryAuthFrom").unwrap_or_default() {
            "" | "spec" => Ok(Self::Current),
            "previous-spec" => Ok(Self::Previous),
            other => Err(ApiError::BadRequest(format!("unsupported registryAuthFrom value '{other}'"))),
        }
    }

    /// The credentials of `current` after the update.
    pub(crate) fn of(&self, current: &Service) -> Option<Sealed> {
        match self {
            Self::Given(sealed) => Some(sealed.clone()),
            Self::Current => current.registry_auth.clone(),
            Self::Previous => current.previous_registry_auth.clone(),
        }
    }
}

/// The credentials in a request's header, sealed. Clients send `e30=`, an empty object, for none.
///
/// # Errors
/// The header is not text; the key file.
pub(crate) fn given(context: &ApiContext, headers: &HeaderMap) -> Result<Option<Sealed>, ApiError> {
    let Some(header) = headers.get(HEADER) else { return Ok(None) };
    let text = header.to_str().map_err(|_| ApiError::BadRequest("X-Registry-Auth is not text".to_owned()))?;
    if matches!(text.trim_end_matches('='), "" | "e30") {
        return Ok(None);
    }
    Ok(Some(context.sealer.seal(REGISTRY_AUTH, text.as_bytes())?))
}

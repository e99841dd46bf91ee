//! `/services`: creates, lists, inspects, updates, rolls back and removes services.

pub(crate) mod networks;
mod registry_auth;
pub(crate) mod write;

#[cfg(test)]
mod write_tests;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use chrono::Utc;
use mesh_state::ids::ServiceId;
use mesh_state::service::Service;
use mesh_state::spec::ServiceSpec;

use super::access::{self, Visible};
use super::body::{Params, read_checked_json};
use super::dto;
use super::error::{ApiError, ObjectKind};
use super::filters::Filters;
use super::validate::words;
use super::{lookup, names, unknown};
use crate::context::ApiContext;
use crate::docker_json::shapes;
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use registry_auth::Choice;

const KNOWN_FILTERS: [&str; 5] = ["name", "id", "label", "mode", "runtime"];

const NOT_YET_VISIBLE: &str =
    "the change is stored, but this manager lags behind etcd: it may take a moment until you see it";

/// `POST /services/create`
pub(crate) async fn create(
    State(context): State<ApiContext>,
    request: Request,
) -> Result<(StatusCode, Json<dto::Created>), ApiError> {
    let auth = registry_auth::given(&context, request.headers())?;
    let spec: ServiceSpec = read_checked_json(request, &shapes::SERVICE_SPEC, words::in_service).await?;
    let told: Vec<String> = unknown::warning(&spec, &shapes::SERVICE_SPEC)?.into_iter().collect();
    let id = ServiceId::random(&mut rand::rng());
    let visible = access::write(&context, |snapshot| {
        let mut spec = spec.clone();
        if spec.name.is_empty() {
            spec.name = names::generate(&mut rand::rng(), |name| write::is_name_taken(snapshot, name));
        }
        write::create(snapshot, Utc::now(), &id, spec, auth.clone())
    })
    .await?;
    Ok((StatusCode::CREATED, Json(dto::Created { id: id.to_string(), warnings: warnings(visible, told) })))
}

/// `GET /services`
pub(crate) async fn list(
    State(context): State<ApiContext>,
    params: Params,
) -> Result<Json<Vec<dto::Service>>, ApiError> {
    let filters = Filters::parse(params.get("filters"), &KNOWN_FILTERS)?;
    let snapshot = access::seen(&context).await?;
    let with_status = params.flag("status");
    let matching = snapshot.services.values().filter(|service| {
        filters.any("name", |name| service.spec.name.starts_with(name))
            && filters.any("id", |id| service.id.as_str().starts_with(id))
            && filters.any("runtime", |runtime| runtime == "container")
            && filters.labels("label", &service.spec.labels)
            && filters.any("mode", |mode| mode == mode_of(&service.spec))
    });
    Ok(Json(
        matching
            .map(|service| {
                let answer = dto::Service::new(&snapshot, service);
                if with_status { answer.with_status(&snapshot, service) } else { answer }
            })
            .collect(),
    ))
}

/// `GET /services/{id}`
pub(crate) async fn inspect(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
    params: Params,
) -> Result<Json<dto::Service>, ApiError> {
    let snapshot = access::seen(&context).await?;
    let answer = dto::Service::new(&snapshot, find(&snapshot, &query)?);
    Ok(Json(if params.flag("insertDefaults") { answer.with_defaults() } else { answer }))
}

/// `POST /services/{id}/update`
pub(crate) async fn update(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
    params: Params,
    request: Request,
) -> Result<Json<dto::Updated>, ApiError> {
    let auth = Choice::read(&context, request.headers(), &params)?;
    let version = params.version("service")?;
    let to_previous = match params.get("rollback").unwrap_or_default() {
        "" => false,
        "previous" => true,
        other => return Err(ApiError::BadRequest(format!("unrecognized rollback option {other}"))),
    };
    // The body of a rollback holds the spec to be replaced, which is stored already.
    let spec: Option<ServiceSpec> = if to_previous {
        None
    } else {
        Some(read_checked_json(request, &shapes::SERVICE_SPEC, words::in_service).await?)
    };
    let told = spec.as_ref().map(|spec| unknown::warning(spec, &shapes::SERVICE_SPEC)).transpose()?.flatten();
    access::catch_up(&context, version).await?;
    let visible = access::write(&context, |snapshot| {
        let current = find(snapshot, &query)?;
        let now = Utc::now();
        match &spec {
            Some(spec) => write::update(snapshot, now, current, version, spec.clone(), auth.of(current)),
            None => write::rollback(snapshot, now, current, version),
        }
    })
    .await?;
    Ok(Json(dto::Updated { warnings: warnings(visible, told.into_iter().collect()) }))
}

/// `DELETE /services/{id}`
pub(crate) async fn remove(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id = find(&*access::current(&context).await?, &query)?.id.clone();
    access::write(&context, |snapshot| match snapshot.services.get(&id) {
        Some(current) => write::remove(snapshot, current),
        None => Err(ApiError::NotFound { kind: ObjectKind::Service, query: query.clone() }),
    })
    .await?;
    Ok(StatusCode::OK)
}

/// The service that a client refers to.
pub(crate) fn find<'a>(snapshot: &'a ClusterSnapshot, query: &str) -> Result<&'a Stored<Service>, ApiError> {
    lookup::find(
        ObjectKind::Service,
        query,
        snapshot.services.values(),
        |service| service.id.as_str(),
        |service| &service.spec.name,
    )
}

/// The mode's name in a list's filter.
fn mode_of(spec: &ServiceSpec) -> &'static str {
    let mode = &spec.mode;
    if mode.replicated_job.is_some() {
        "replicated-job"
    } else if mode.global_job.is_some() {
        "global-job"
    } else if mode.global.is_some() {
        "global"
    } else {
        "replicated"
    }
}

/// The warnings in the answer to a write.
fn warnings(visible: Visible, mut all: Vec<String>) -> Option<Vec<String>> {
    if visible == Visible::Later {
        all.push(NOT_YET_VISIBLE.to_owned());
    }
    (!all.is_empty()).then_some(all)
}

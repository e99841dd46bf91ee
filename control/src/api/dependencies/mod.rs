//! `/secrets` and `/configs`: creates, lists, inspects, relabels and removes them. They differ in
//! their limits, and in that a config's data is shown.
//!
//! Invariant: no answer and no message contains a secret's data.

mod spec;
mod write;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use chrono::Utc;
use futures::{StreamExt as _, TryStreamExt as _};
use mesh_state::dependency::{Dependency, DependencyKind};
use mesh_state::ids::DependencyId;
use serde::Serialize;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::body::{Params, read_private_json};
use super::error::{ApiError, ObjectKind};
use super::filters::Filters;
use super::{access, dto, lookup};
use crate::context::ApiContext;
use crate::docker_json::shapes;
use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::vault;
use spec::DependencySpec;

const KNOWN_FILTERS: [&str; 4] = ["id", "name", "names", "label"];

/// The most configs whose data is read at the same time for a list.
const READS_AT_ONCE: usize = 8;

/// The routes of one kind.
pub(crate) fn routes(kind: DependencyKind) -> Router<ApiContext> {
    let root = format!("/{}", kind.plural());
    Router::new()
        .route(&root, get(list))
        .route(&format!("{root}/create"), post(create))
        .route(&format!("{root}/{{id}}"), get(inspect).delete(remove))
        .route(&format!("{root}/{{id}}/update"), post(update))
        .layer(Extension(kind))
}

/// The answer to a creation; unlike a service's it has no warnings.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Created {
    #[serde(rename = "ID")]
    id: String,
}

/// `POST /secrets/create`
async fn create(
    State(context): State<ApiContext>,
    Extension(kind): Extension<DependencyKind>,
    request: Request,
) -> Result<(StatusCode, Json<Created>), ApiError> {
    let spec: DependencySpec = read_private_json(request, &shapes::DEPENDENCY_SPEC).await?;
    spec.check(kind)?;
    let data = spec.checked_data(kind)?;
    let id = DependencyId::random(&mut rand::rng());
    let sealed = vault::seal(&context.sealer, kind, &id, &data)
        .map_err(|error| ApiError::Unseal(error.to_string()))?;
    drop(data);
    access::write(&context, |snapshot| write::create(snapshot, Utc::now(), kind, &id, &spec, &sealed))
        .await?;
    Ok((StatusCode::CREATED, Json(Created { id: id.to_string() })))
}

/// `GET /secrets`
async fn list(
    State(context): State<ApiContext>,
    Extension(kind): Extension<DependencyKind>,
    params: Params,
) -> Result<Json<Vec<dto::Dependency>>, ApiError> {
    let filters = Filters::parse(params.get("filters"), &KNOWN_FILTERS)?;
    let snapshot = access::seen(&context).await?;
    let matching = of_kind(&snapshot, kind).filter(|found| {
        filters.any("id", |id| found.id.as_str().starts_with(id))
            && filters.any("name", |name| found.name.starts_with(name))
            && filters.any("names", |name| found.name == name)
            && filters.labels("label", &found.labels)
    });
    let answers = futures::stream::iter(matching.cloned().collect::<Vec<_>>())
        .map(|found| shown(&context, kind, found))
        .buffered(READS_AT_ONCE);
    Ok(Json(answers.try_collect().await?))
}

/// `GET /secrets/{id}`
async fn inspect(
    State(context): State<ApiContext>,
    Extension(kind): Extension<DependencyKind>,
    Path(query): Path<String>,
) -> Result<Json<dto::Dependency>, ApiError> {
    let found = find(&*access::seen(&context).await?, kind, &query)?.clone();
    Ok(Json(shown(&context, kind, found).await?))
}

/// `POST /secrets/{id}/update`
async fn update(
    State(context): State<ApiContext>,
    Extension(kind): Extension<DependencyKind>,
    Path(query): Path<String>,
    params: Params,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let version = params.version(kind.as_str())?;
    let spec: DependencySpec = read_private_json(request, &shapes::DEPENDENCY_SPEC).await?;
    access::catch_up(&context, version).await?;
    let id = find(&*access::current(&context).await?, kind, &query)?.id.clone();
    // An object's data never changes, so it can be compared before the write is decided.
    let same_data = match spec.data()? {
        None => true,
        Some(given) => {
            stored_data(&context, kind, &id).await?.is_some_and(|stored| stored.ct_eq(&given).into())
        }
    };
    access::write(&context, |snapshot| {
        let current = find(snapshot, kind, id.as_str())?;
        write::update(Utc::now(), kind, current, version, &spec, same_data)
    })
    .await?;
    Ok(StatusCode::OK)
}

/// `DELETE /secrets/{id}`
async fn remove(
    State(context): State<ApiContext>,
    Extension(kind): Extension<DependencyKind>,
    Path(query): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id = find(&*access::current(&context).await?, kind, &query)?.id.clone();
    access::write(&context, |snapshot| match snapshot.dependencies.get(&(kind, id.clone())) {
        Some(current) => write::remove(snapshot, kind, current),
        None => Err(not_found(kind, &query)),
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An object as the API shows it: a config with its data.
async fn shown(
    context: &ApiContext,
    kind: DependencyKind,
    found: Stored<Dependency>,
) -> Result<dto::Dependency, ApiError> {
    let data = match kind {
        DependencyKind::Secret => None,
        DependencyKind::Config => stored_data(context, kind, &found.id).await?,
    };
    Ok(dto::Dependency::new(&found, data.as_ref().map(|data| data.as_slice())))
}

async fn stored_data(
    context: &ApiContext,
    kind: DependencyKind,
    id: &DependencyId,
) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
    Ok(vault::read(context.store.as_ref(), &context.sealer, kind, id).await?)
}

fn of_kind(
    snapshot: &ClusterSnapshot,
    kind: DependencyKind,
) -> impl Iterator<Item = &Stored<Dependency>> + Clone {
    snapshot.dependencies.iter().filter(move |((of, _), _)| *of == kind).map(|(_, found)| found)
}

/// The secret or config that a client refers to.
fn find<'a>(
    snapshot: &'a ClusterSnapshot,
    kind: DependencyKind,
    query: &str,
) -> Result<&'a Stored<Dependency>, ApiError> {
    lookup::find(kind.into(), query, of_kind(snapshot, kind), |found| found.id.as_str(), |found| &found.name)
}

fn not_found(kind: DependencyKind, query: &str) -> ApiError {
    ApiError::NotFound { kind: ObjectKind::from(kind), query: query.to_owned() }
}

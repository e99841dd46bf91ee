//! `_ping`, `version`, `info`: the first requests of every client. They are answered without etcd,
//! too.

use axum::Json;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, PRAGMA};
use axum::response::{IntoResponse, Response};
use mesh_state::Timestamp;
use serde::Serialize;

use super::dto;
use super::error::ApiError;
use super::version::{NEWEST, OLDEST};
use crate::context::ApiContext;

/// `GET /_ping` and, without the body, `HEAD /_ping`
pub(crate) async fn ping() -> Response {
    let header = HeaderName::from_static;
    let headers = [
        (header("api-version"), NEWEST.to_string()),
        (header("ostype"), "linux".to_owned()),
        (header("docker-experimental"), "false".to_owned()),
        (header("builder-version"), "1".to_owned()),
        (header("swarm"), "active/manager".to_owned()),
        (header("server"), server()),
        (CACHE_CONTROL, "no-cache, no-store, must-revalidate".to_owned()),
        (PRAGMA, "no-cache".to_owned()),
        (CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
    ];
    (headers, "OK").into_response()
}

fn server() -> String {
    format!("mesh/{} (linux)", env!("CARGO_PKG_VERSION"))
}

/// The answer of `/version`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct VersionInfo {
    platform: Platform,
    components: Vec<Component>,
    version: &'static str,
    api_version: String,
    #[serde(rename = "MinAPIVersion")]
    min_api_version: String,
    os: &'static str,
    arch: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Platform {
    name: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: &'static str,
    version: &'static str,
}

/// `GET /version`
pub(crate) async fn version() -> Json<VersionInfo> {
    let version = env!("CARGO_PKG_VERSION");
    Json(VersionInfo {
        platform: Platform { name: "mesh" },
        components: vec![Component { name: "mesh-control", version }],
        version,
        api_version: NEWEST.to_string(),
        min_api_version: OLDEST.to_string(),
        os: "linux",
        arch: go_architecture(std::env::consts::ARCH),
    })
}

/// Go's name of an architecture, which Docker's clients expect.
fn go_architecture(rust: &'static str) -> &'static str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The answer of `/info`: the whole swarm part, and what is known of this manager's node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Info {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    server_version: String,
    #[serde(rename = "OSType")]
    os_type: &'static str,
    architecture: String,
    kernel_version: String,
    #[serde(rename = "NCPU")]
    n_cpu: i64,
    mem_total: i64,
    system_time: Timestamp,
    swarm: dto::SwarmInfo,
}

/// `GET /info`. Answered while etcd is unreachable, too; then the swarm part has the error.
pub(crate) async fn info(State(context): State<ApiContext>) -> Json<Info> {
    let error = if context.is_store_connected() { String::new() } else { ApiError::Disconnected.message() };
    let snapshot = context.snapshot();
    let own = context.own_node.id().and_then(|id| snapshot.nodes.get(&id));
    let said = own.map(|node| node.description.clone()).unwrap_or_default();
    Json(Info {
        id: own.map(|node| node.id.to_string()).unwrap_or_default(),
        name: context.manager_name.clone(),
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        os_type: "linux",
        architecture: said.architecture,
        kernel_version: said.kernel,
        n_cpu: said.nano_cpus / 1_000_000_000,
        mem_total: said.memory_bytes,
        system_time: chrono::Utc::now(),
        swarm: dto::SwarmInfo::new(&snapshot, own.map(|node| &node.value), error),
    })
}

//! `/services/{id}/logs` and `/tasks/{id}/logs`: checks the request, and starts the reader.
//!
//! Invariant: everything that can be refused is refused before the stream begins, as its status
//! can't change after that.
//!
//! Left to others: the reading itself ([`crate::logs`]).

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::StreamExt as _;
use mesh_state::ids::ServiceId;
use mesh_state::spec::TaskSpec;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::body::Params;
use super::error::ApiError;
use super::version::{ApiVersion, RAW_STREAM, frames_media_type};
use super::{access, moment, services, tasks};
use crate::context::ApiContext;
use crate::logs::broker::{LogSelection, READERS_MAX};
use crate::logs::forward::Forwarder;
use crate::logs::frame::Format;
use crate::logs::reader::{Reader, Reading};
use crate::logs::selection::Subject;

/// Chunks of the stream queued for the client.
const PIECES_WAITING: usize = 4;

/// `GET /services/{id}/logs`
pub(crate) async fn of_service(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
    params: Params,
    request: Request,
) -> Result<Response, ApiError> {
    let snapshot = access::seen(&context).await?;
    let service = services::find(&snapshot, &query)?;
    let subject = Subject::Service(service.id.clone());
    let reading = reading(&params, subject, &service.id, has_terminal(&service.spec.task_template))?;
    stream(&context, reading, &request)
}

/// `GET /tasks/{id}/logs`
pub(crate) async fn of_task(
    State(context): State<ApiContext>,
    Path(query): Path<String>,
    params: Params,
    request: Request,
) -> Result<Response, ApiError> {
    let snapshot = access::seen(&context).await?;
    let task = tasks::find(&snapshot, &query)?;
    let terminal = snapshot.spec_of(task).is_some_and(|spec| has_terminal(&spec.task_template));
    stream(&context, reading(&params, Subject::Task(task.id.clone()), &task.service_id, terminal)?, &request)
}

fn has_terminal(template: &TaskSpec) -> bool {
    let container = template.container_spec.as_ref();
    container.is_some_and(|container| container.extra.get("TTY") == Some(&Value::Bool(true)))
}

/// The reader's settings from the parameters; errors are in the engine's words.
fn reading(
    params: &Params,
    subject: Subject,
    service: &ServiceId,
    terminal: bool,
) -> Result<Reading, ApiError> {
    let (stdout, stderr) = (params.flag("stdout"), params.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::BadRequest("Bad parameters: you must choose at least one stream".to_owned()));
    }
    let tail = match params.get("tail").unwrap_or_default() {
        "" | "all" => -1,
        text => match text.parse::<i64>() {
            Ok(lines) if lines >= 0 => lines,
            Ok(_) => return Err(ApiError::BadRequest("negative tail values not supported".to_owned())),
            Err(_) => {
                let message = "tail value must be a positive integer or \"all\"";
                return Err(ApiError::BadRequest(message.to_owned()));
            }
        },
    };
    Ok(Reading {
        subject,
        service: service.clone(),
        wanted: LogSelection { stdout, stderr, follow: params.flag("follow") },
        since: moment::parse("since", params.get("since").unwrap_or_default())?,
        tail,
        format: Format {
            raw: terminal,
            timestamps: params.flag("timestamps"),
            details: params.flag("details"),
        },
    })
}

fn stream(context: &ApiContext, reading: Reading, request: &Request) -> Result<Response, ApiError> {
    let place = context.logs.enter().ok_or_else(|| {
        let message =
            format!("{READERS_MAX} clients read logs from this manager already: end some, or ask another");
        ApiError::Unavailable(message)
    })?;
    let version = request.extensions().get::<ApiVersion>();
    let media_type = if reading.format.raw { RAW_STREAM } else { frames_media_type(version) };
    let (pieces, stream) = mpsc::channel::<Bytes>(PIECES_WAITING);
    let forwarder = Forwarder {
        store: context.store.clone(),
        manager: context.manager_name.clone(),
        address: context.node_address(),
        stopping: context.stopping.clone(),
    };
    let reader = Reader::new(reading, context.logs.clone(), forwarder, context.feed.snapshots.clone());
    let stopping = context.stopping.clone();
    tokio::spawn(async move {
        reader.run(pieces, stopping).await;
        drop(place);
    });
    let body = Body::from_stream(ReceiverStream::new(stream).map(Ok::<_, Infallible>));
    Ok(([(CONTENT_TYPE, media_type)], body).into_response())
}

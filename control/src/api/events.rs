//! `/events`: streams events of the cluster's objects, one JSON object per line.
//!
//! Left to others: the engine's events, which the agent's socket merges with these.

mod select;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt as _, stream};
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use self::select::{KNOWN, Selection};
use super::body::Params;
use super::error::ApiError;
use super::filters::Filters;
use super::moment;
use crate::context::ApiContext;
use crate::feed::events::SwarmEvent;

/// An event in Docker's form.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Message<'a> {
    r#type: &'static str,
    action: &'static str,
    actor: Actor<'a>,
    #[serde(rename = "scope")]
    scope: &'static str,
    #[serde(rename = "time")]
    time: i64,
    #[serde(rename = "timeNano")]
    time_nano: i64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Actor<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    attributes: &'a BTreeMap<String, String>,
}

/// `GET /events`
pub(crate) async fn stream(State(context): State<ApiContext>, params: Params) -> Result<Response, ApiError> {
    let moment = |name: &str| -> Result<_, ApiError> {
        Ok(moment::parse(name, params.get(name).unwrap_or_default())?.map(DateTime::from_timestamp_nanos))
    };
    let selection = Selection {
        filters: Filters::parse(params.get("filters"), &KNOWN)?,
        since: moment("since")?,
        until: moment("until")?,
    };
    if let (Some(since), Some(until)) = (selection.since, selection.until)
        && since > until
    {
        let message = "`since` time must be before `until` time";
        return Err(ApiError::BadRequest(message.to_owned()));
    }
    let (past, coming) = context.feed.events.listen();
    let past: Vec<_> = past.iter().filter(|event| selection.wants_past(event)).map(|e| line(e)).collect();
    let left = selection.until.map(|until| (until - Utc::now()).to_std().unwrap_or(Duration::ZERO));
    let live = live(coming, selection, context.stopping.clone());
    let end = async move {
        match left {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    };
    let lines = stream::iter(past).chain(live.take_until(end)).map(Ok::<_, Infallible>);
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

/// The selected events as they happen, until the manager stops.
fn live(
    coming: broadcast::Receiver<Arc<SwarmEvent>>,
    selection: Selection,
    stopping: CancellationToken,
) -> impl Stream<Item = Bytes> {
    stream::unfold((coming, selection, stopping), async |(mut coming, selection, stopping)| {
        loop {
            let event = stopping.run_until_cancelled(coming.recv()).await?;
            match event {
                Ok(event) if selection.wants(&event) => {
                    return Some((line(&event), (coming, selection, stopping)));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "a listener to events is too slow"),
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

fn line(event: &SwarmEvent) -> Bytes {
    let message = Message {
        r#type: event.kind.as_str(),
        action: event.action.as_str(),
        actor: Actor { id: &event.id, attributes: &event.attributes },
        scope: "swarm",
        time: event.at.timestamp(),
        time_nano: event.at.timestamp_nanos_opt().unwrap_or_default(),
    };
    match serde_json::to_vec(&message) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            bytes.into()
        }
        Err(error) => {
            tracing::error!(error = mesh_runtime::error_chain(&error), "can't encode an event");
            Bytes::new()
        }
    }
}

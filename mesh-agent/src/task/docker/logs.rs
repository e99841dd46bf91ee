//! Reads tasks' logs from a real Docker engine.
//!
//! bollard can't request details and panics on an engine's own error frame, so the stream is parsed
//! here, over the same hyper that bollard uses.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_state::ids::TaskId;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{CALL_TIMEOUT, DockerEngine, InspectContainerOptions, failed_or_absent, present};
use crate::task::container_spec::{NODE_LABEL, TASK_ID_LABEL};
use crate::task::logs::{LogDecoder, LogRequest, LogSource, LogStream};
use crate::task::runtime::RuntimeError;
use mesh_runtime::error_chain;

/// Bytes of an error's body that are read.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

#[async_trait]
impl LogSource for DockerEngine {
    async fn task_log(&self, task: &TaskId, request: &LogRequest) -> Result<Option<LogStream>, RuntimeError> {
        let containers = self.list(("label", format!("{TASK_ID_LABEL}={task}"))).await?;
        // Swarm's own tasks on the same engine have this label, too.
        let own = containers.into_iter().find(|container| {
            container.labels.as_ref().is_some_and(|labels| labels.contains_key(NODE_LABEL))
        });
        let Some(id) = own.and_then(|container| container.id) else { return Ok(None) };
        let inspected =
            self.client(CALL_TIMEOUT)?.inspect_container(&id, None::<InspectContainerOptions>).await;
        let Some(container) = present(inspected.map_err(failed_or_absent))? else { return Ok(None) };
        let terminal = container.config.and_then(|config| config.tty).unwrap_or(false);
        let Some(body) = self.open_log(&id, request).await? else { return Ok(None) };
        Ok(Some(lines(body, LogDecoder::new(terminal))))
    }
}

impl DockerEngine {
    /// Opens the stream of a container's log; absent if the container is gone.
    async fn open_log(&self, id: &str, request: &LogRequest) -> Result<Option<Incoming>, RuntimeError> {
        let flag = |on: bool| u8::from(on);
        let tail = request.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let path = format!(
            "/containers/{id}/logs?stdout={}&stderr={}&follow={}&since={}&tail={tail}&timestamps=1&details=1",
            flag(request.stdout),
            flag(request.stderr),
            flag(request.follow),
            request.since,
        );
        // An engine may answer only once it has a line to send, so a following reader waits without
        // a deadline.
        let answered = if request.follow {
            self.get(&path).await?
        } else {
            let late = || RuntimeError::Unavailable(format!("no logs within {CALL_TIMEOUT:?}"));
            timeout(CALL_TIMEOUT, self.get(&path)).await.map_err(|_| late())??
        };
        match answered.status() {
            StatusCode::OK => Ok(Some(answered.into_body())),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(RuntimeError::Refused(refusal(status, answered.into_body()).await)),
        }
    }

    async fn get(&self, path: &str) -> Result<Response<Incoming>, RuntimeError> {
        let connect = timeout(CALL_TIMEOUT, UnixStream::connect(&self.socket));
        let stream = connect.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(broken)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = error_chain(&error), "the engine's log stream broke off");
            }
        });
        let request =
            Request::get(path).header(HOST, "docker").body(Empty::<Bytes>::new()).map_err(broken)?;
        sender.send_request(request).await.map_err(broken)
    }
}

/// The lines of a stream; dropping them closes its connection.
fn lines(body: Incoming, decoder: LogDecoder) -> LogStream {
    let read = stream::unfold(Some((body, decoder)), async |open| {
        let (mut body, mut decoder) = open?;
        loop {
            match decoder.line() {
                Ok(Some(line)) => return Some((Ok(line), Some((body, decoder)))),
                Ok(None) => {}
                Err(error) => return Some((Err(error), None)),
            }
            match body.frame().await {
                Some(Ok(frame)) => frame.data_ref().into_iter().for_each(|bytes| decoder.push(bytes)),
                Some(Err(error)) => return Some((Err(broken(error)), None)),
                None => return decoder.rest().map(|line| (Ok(line), None)),
            }
        }
    });
    // A reader that batches lines polls once more after the end.
    read.fuse().boxed()
}

async fn refusal(status: StatusCode, body: Incoming) -> String {
    let read = Limited::new(body, REFUSAL_BYTES_MAX).collect().await;
    let bytes = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let told: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let message = told.as_ref().and_then(|told| told["message"].as_str()).map(str::to_owned);
    message.unwrap_or_else(|| format!("the engine answered {status}"))
}

fn broken(error: impl std::error::Error + 'static) -> RuntimeError {
    RuntimeError::Unavailable(error_chain(&error))
}

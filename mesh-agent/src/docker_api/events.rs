//! `GET /events`: merges the engine's events and the cluster's into one stream.
//!
//! Invariants: an event is passed on whole, never mixed with another; the engine's stream is the
//! base: when it ends the answer ends, while a manager that goes away is asked again until it is
//! back, and one that doesn't answer delays nothing; only the line that is being received is
//! buffered.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use futures::stream;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::{Request, Response, StatusCode, Uri};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::Body;
use super::error::{ApiError, Peer, full};
use super::filters::Query;
use super::upstream::Upstream;

/// The most bytes of one event, which includes labels.
const EVENT_BYTES_MAX: usize = 1 << 20;
/// How long a manager may take to begin its answer.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer about past events waits for a manager.
const PAST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after its end a manager's stream is asked for again.
const CONTROL_PAUSE: Duration = Duration::from_secs(2);

/// Answers `request` with events of both; `engine` is the engine's answer.
pub(super) async fn merged(
    request: &Request<Empty<Bytes>>,
    engine: Response<Incoming>,
    control: Upstream,
) -> Response<Body> {
    if engine.status() != StatusCode::OK {
        return engine.map(BodyExt::boxed);
    }
    let (mut head, body) = engine.into_parts();
    head.headers.remove(CONTENT_LENGTH);
    head.headers.remove(TRANSFER_ENCODING);
    let query = Query::of(request.uri());
    let ends_now = query.value("until").is_some_and(|until| is_past(&until, SystemTime::now()));
    let mut events =
        Events { engine: Lines::new(body), cluster: Cluster::new(request.uri().clone(), control) };
    if ends_now {
        if tokio::time::timeout(PAST_TIMEOUT, events.cluster.settle()).await.is_err() {
            debug!("past events without the cluster's: the manager doesn't answer");
        }
        return Response::from_parts(head, full(events.sorted().await));
    }
    let frames = stream::unfold(events, async |mut events| {
        let line = events.next().await?;
        Some((line.map(Frame::data), events))
    });
    Response::from_parts(head, StreamBody::new(frames).boxed())
}

/// Both streams.
struct Events {
    engine: Lines,
    cluster: Cluster,
}

impl Events {
    /// The next event of either stream; `None` at the end of the engine's.
    async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        tokio::select! {
            line = self.engine.next() => line,
            line = self.cluster.next() => Some(Ok(line)),
        }
    }

    /// All events up to a moment that has passed, sorted by time.
    async fn sorted(mut self) -> Bytes {
        let mut lines = Vec::new();
        while let Some(Ok(line)) = self.engine.next().await {
            lines.push(line);
        }
        if let State::Telling(mut cluster) = self.cluster.state {
            while let Some(Ok(line)) = cluster.next().await {
                lines.push(line);
            }
        }
        lines.sort_by_key(|line| time_of(line));
        lines.concat().into()
    }
}

/// The cluster's events, as long as a manager sends them.
struct Cluster {
    uri: Uri,
    control: Upstream,
    state: State,
}

/// The state of the manager's stream. Waiting on it is cancel-safe.
enum State {
    Asking(AbortOnDropHandle<Result<Response<Incoming>, ApiError>>),
    Telling(Lines),
    Pausing(Instant),
    /// The manager refused the request; asking again is of no use.
    Refused,
}

impl Cluster {
    fn new(uri: Uri, control: Upstream) -> Self {
        let mut cluster = Self { uri, control, state: State::Refused };
        cluster.ask();
        cluster
    }

    fn ask(&mut self) {
        let mut request = Request::new(Empty::<Bytes>::new());
        request.uri_mut().clone_from(&self.uri);
        let control = self.control.clone();
        self.state = State::Asking(AbortOnDropHandle::new(tokio::spawn(async move {
            control.call_within(CONTROL_TIMEOUT, request).await
        })));
        // A manager that comes back knows nothing older than itself, and would repeat what it has
        // already sent.
        self.uri = without_since(&self.uri);
    }

    /// Waits for the manager's answer, if it is being asked.
    async fn settle(&mut self) {
        let State::Asking(answer) = &mut self.state else { return };
        let answer = answer.await.unwrap_or_else(|error| {
            Err(ApiError::Unreadable { peer: Peer::Control, reason: error.to_string() })
        });
        self.state = match answer {
            Ok(answer) if answer.status() == StatusCode::OK => State::Telling(Lines::new(answer.into_body())),
            // What the manager refuses it will refuse again; the engine has accepted it.
            Ok(answer) if answer.status().is_client_error() => State::Refused,
            Ok(answer) => {
                debug!(status = %answer.status(), "can't get the cluster's events; will ask again");
                State::Pausing(Instant::now() + CONTROL_PAUSE)
            }
            Err(error) => {
                debug!(
                    error = mesh_runtime::error_chain(&error),
                    "can't get the cluster's events; will ask again"
                );
                State::Pausing(Instant::now() + CONTROL_PAUSE)
            }
        };
    }

    /// The next event; waits for ever if none can come.
    async fn next(&mut self) -> Bytes {
        loop {
            match &mut self.state {
                State::Asking(_) => self.settle().await,
                State::Telling(lines) => {
                    if let Some(Ok(line)) = lines.next().await {
                        return line;
                    }
                    self.state = State::Pausing(Instant::now() + CONTROL_PAUSE);
                }
                State::Pausing(until) => {
                    sleep_until(*until).await;
                    self.ask();
                }
                State::Refused => std::future::pending().await,
            }
        }
    }
}

/// The lines of a body. Waiting for one is cancel-safe.
pub(super) struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    pub(super) async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            if let Some(line) = take_line(&mut self.buffer) {
                return Some(Ok(line));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    self.buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                }
                Some(Err(error)) => return Some(Err(error)),
                // The rest is no complete event.
                None => return None,
            }
        }
    }
}

/// A line with its end, or, if the line is too long, as much of it as may be buffered.
fn take_line(buffer: &mut BytesMut) -> Option<Bytes> {
    let end = buffer.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    let length = end.or((buffer.len() > EVENT_BYTES_MAX).then_some(buffer.len()))?;
    Some(buffer.split_to(length).freeze())
}

/// When an event happened, in nanoseconds.
fn time_of(line: &[u8]) -> i64 {
    let event: Option<Value> = serde_json::from_slice(line).ok();
    event.and_then(|event| event["timeNano"].as_i64()).unwrap_or_default()
}

/// Whether a moment, `seconds[.nanoseconds]`, has passed.
fn is_past(moment: &str, now: SystemTime) -> bool {
    let seconds = moment.split('.').next().and_then(|seconds| seconds.parse::<u64>().ok());
    seconds.is_some_and(|seconds| UNIX_EPOCH + Duration::from_secs(seconds) < now)
}

fn without_since(uri: &Uri) -> Uri {
    let query = Query::of(uri).without("since").encoded();
    format!("{}?{query}", uri.path()).parse().unwrap_or_else(|_| uri.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole() {
        let mut buffer = BytesMut::from(&b"{\"a\":1}\n{\"b\""[..]);
        assert_eq!(take_line(&mut buffer).as_deref(), Some(&b"{\"a\":1}\n"[..]));
        assert_eq!(take_line(&mut buffer), None);
        buffer.extend_from_slice(b":2}\n");
        assert_eq!(take_line(&mut buffer).as_deref(), Some(&b"{\"b\":2}\n"[..]));
        let mut endless = BytesMut::from(vec![b'x'; EVENT_BYTES_MAX + 1].as_slice());
        assert!(take_line(&mut endless).is_some(), "an endless line is kept whole");
    }

    #[test]
    fn events_are_told_apart_by_time() {
        assert_eq!(time_of(br#"{"timeNano":17,"time":1}"#), 17);
        assert_eq!(time_of(b"nonsense"), 0);
        let now = UNIX_EPOCH + Duration::from_secs(100);
        assert!(is_past("99.999999999", now) && is_past("99", now));
        assert!(!is_past("101", now) && !is_past("soon", now) && !is_past("", now));
    }

    #[test]
    fn a_manager_that_comes_back_is_asked_for_what_is_new() {
        let uri = "/v1.41/events?since=1.5&filters=%7B%7D&until=9".parse().unwrap();
        assert_eq!(without_since(&uri).to_string(), "/v1.41/events?filters=%7B%7D&until=9");
    }
}

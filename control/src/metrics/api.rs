//! Metrics of requests to the Docker API, by route template, so that ids make no series of their
//! own.

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// The route label of a request that matches no route.
const UNMATCHED: &str = "unmatched";

/// Counts and durations of requests.
#[derive(Debug, Clone)]
pub struct ApiMetrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
}

impl ApiMetrics {
    /// Registers the metric families.
    ///
    /// # Errors
    /// A family of the same name is already registered.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels = ["method", "route", "code"];
        let requests =
            IntCounterVec::new(Opts::new("mesh_api_requests_total", "Requests to the Docker API."), &labels)?;
        let options =
            HistogramOpts::new("mesh_api_request_duration_seconds", "Time from a request to its response.");
        let seconds = HistogramVec::new(options, &labels)?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { requests, seconds })
    }

    /// Wraps `router` so that every request is counted.
    pub fn layer(self, router: Router) -> Router {
        router.layer(from_fn_with_state(self, count))
    }
}

async fn count(State(metrics): State<ApiMetrics>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().as_str().to_owned();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    let status = response.status();
    let labels = [method.as_str(), route, status.as_str()];
    metrics.requests.with_label_values(&labels).inc();
    metrics.seconds.with_label_values(&labels).observe(began.elapsed().as_secs_f64());
    response
}

//! Panics on request, to test their effect on a whole daemon.
//!
//! A daemon that is started with its hidden flag `--debug-faults` answers `GET /debug/panic` with
//! the names of its components, and a `POST` of one of them makes that component panic. Without the
//! flag neither exists. Any client of the metrics listener may then end the daemon, so only labs
//! set the flag.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::broadcast;

/// The most queued requests.
const QUEUE: usize = 16;

/// The components that panic on request.
#[derive(Debug, Clone)]
pub struct Faults {
    names: Arc<Mutex<BTreeSet<&'static str>>>,
    asked: broadcast::Sender<String>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { names: Arc::default(), asked: broadcast::Sender::new(QUEUE) }
    }
}

impl Faults {
    /// Runs `component`, and panics in its place on request.
    pub fn wrap<F>(&self, name: &'static str, component: F) -> impl Future<Output = F::Output> + Send + use<F>
    where
        F: Future + Send,
    {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        let mut asked = self.asked.subscribe();
        async move {
            let wanted = async { while asked.recv().await.is_ok_and(|wanted| wanted != name) {} };
            tokio::select! {
                output = component => output,
                () = wanted => panic!("{name} was asked to panic"),
            }
        }
    }

    /// `GET` and `POST /debug/panic`.
    pub fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        let listed = self.clone();
        let list = move || async move { listed.known().into_iter().collect::<Vec<_>>().join("\n") };
        let ask = move |name: String| async move {
            if self.ask(name) {
                (StatusCode::ACCEPTED, "it panics\n")
            } else {
                (StatusCode::NOT_FOUND, "no such component: GET this path for their names\n")
            }
        };
        Router::new().route("/debug/panic", get(list).post(ask))
    }

    fn known(&self) -> BTreeSet<&'static str> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests a panic of a component; `false` if there is none of that name.
    fn ask(&self, name: String) -> bool {
        self.known().contains(name.as_str()) && self.asked.send(name).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn the_named_component_panics_and_no_other() {
        let faults = Faults::default();
        let named = tokio::spawn(faults.wrap("named", std::future::pending::<()>()));
        let other = tokio::spawn(faults.wrap("other", std::future::pending::<()>()));
        let router: Router = faults.router();
        let ask = |name: &'static str| {
            let request = Request::post("/debug/panic").body(Body::from(name)).expect("a request");
            router.clone().oneshot(request)
        };
        assert_eq!(ask("unknown").await.expect("an answer").status(), StatusCode::NOT_FOUND);
        assert_eq!(ask("named").await.expect("an answer").status(), StatusCode::ACCEPTED);
        assert!(named.await.expect_err("it panics").is_panic());
        assert!(!other.is_finished(), "the other component was not asked to panic");
    }
}

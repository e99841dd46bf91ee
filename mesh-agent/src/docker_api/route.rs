//! Which upstream answers a call. Pure: method and path in, [`Route`] out.

use hyper::{Method, Uri};

use super::filters::Query;

/// Who answers a call, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// The engine, untouched.
    Engine,
    /// The manager on this node, untouched.
    Control,
    /// `/_ping`: the engine's answer with the node's place in the swarm in its headers.
    Ping,
    /// `/info`: the engine's answer with the swarm's section.
    Info,
    /// `GET /events`: of both.
    Events,
    /// `GET /networks`: of both.
    NetworkList,
    /// `POST /networks/create`: the body tells whose.
    NetworkCreate,
    /// `POST /networks/prune`: of both, without what mesh's own tasks use.
    NetworkPrune,
    /// One network, by id or name: the engine's, else the cluster's.
    NetworkOne,
    /// `GET /containers/json` with the filter `is-task`: tasks' containers are known by their label.
    TaskContainers,
}

impl Route {
    /// The route of a call; the version prefix may be there or not.
    pub(super) fn of(method: &Method, uri: &Uri) -> Self {
        let segments = segments(uri.path());
        match (method.as_str(), segments.as_slice()) {
            ("GET" | "HEAD", ["_ping"]) => Self::Ping,
            ("GET", ["info"]) => Self::Info,
            ("GET", ["events"]) => Self::Events,
            (_, ["services" | "tasks" | "nodes" | "swarm" | "secrets" | "configs", ..]) => Self::Control,
            ("GET", ["networks"]) => Self::NetworkList,
            ("POST", ["networks", "create"]) => Self::NetworkCreate,
            ("POST", ["networks", "prune"]) => Self::NetworkPrune,
            ("GET" | "DELETE", ["networks", _]) => Self::NetworkOne,
            ("GET", ["containers", "json"]) if Query::of(uri).filter("is-task").is_some() => {
                Self::TaskContainers
            }
            _ => Self::Engine,
        }
    }
}

/// What a call asks of this node's own membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Membership {
    /// `POST /swarm/init`, `POST /swarm/join`.
    Enter,
    /// `POST /swarm/leave`.
    Leave,
}

impl Membership {
    /// Reads a call.
    pub(super) fn of(method: &Method, uri: &Uri) -> Option<Self> {
        match (method.as_str(), segments(uri.path()).as_slice()) {
            ("POST", ["swarm", "init" | "join"]) => Some(Self::Enter),
            ("POST", ["swarm", "leave"]) => Some(Self::Leave),
            _ => None,
        }
    }
}

/// The path's parts behind the version prefix.
fn segments(path: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.first().is_some_and(|first| is_version(first)) {
        parts.remove(0);
    }
    parts
}

/// Whether `part` is `v1.41` or the like.
fn is_version(part: &str) -> bool {
    part.strip_prefix('v').and_then(|rest| rest.split_once('.')).is_some_and(|(major, minor)| {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits(major) && digits(minor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, uri: &str, expected: Route) {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(Route::of(&method, &uri.parse().unwrap()), expected, "{method} {uri}");
    }

    #[test]
    fn swarm_calls_go_to_control() {
        for path in [
            "/services",
            "/services/create",
            "/tasks/x/logs",
            "/nodes",
            "/swarm/init",
            "/secrets/a",
            "/configs",
        ] {
            check("GET", path, Route::Control);
            check("POST", &format!("/v1.41{path}"), Route::Control);
        }
    }

    #[test]
    fn calls_about_this_nodes_membership_are_told_apart() {
        let of = |method: Method, uri: &str| Membership::of(&method, &uri.parse().unwrap());
        assert_eq!(of(Method::POST, "/v1.41/swarm/init"), Some(Membership::Enter));
        assert_eq!(of(Method::POST, "/swarm/join"), Some(Membership::Enter));
        assert_eq!(of(Method::POST, "/swarm/leave?force=1"), Some(Membership::Leave));
        assert_eq!(of(Method::POST, "/swarm/update"), None);
        assert_eq!(of(Method::GET, "/swarm"), None);
    }

    #[test]
    fn all_else_goes_to_the_engine() {
        for path in
            ["/containers/json", "/containers/services/json", "/servicesx", "/images/tasks/json", "/version"]
        {
            check("GET", path, Route::Engine);
        }
        check("POST", "/v1.41/containers/x/attach?stream=1", Route::Engine);
        check("POST", "/networks/x/connect", Route::Engine);
        check("GET", "/distribution/nginx/json", Route::Engine);
        check("GET", "/v1.41/v1.41/services", Route::Engine);
        check("GET", "/", Route::Engine);
    }

    #[test]
    fn composed_answers_are_told_apart() {
        check("HEAD", "/_ping", Route::Ping);
        check("GET", "/v1.24/info", Route::Info);
        check("GET", "/v1.41/events?since=1", Route::Events);
        check("GET", "/networks?filters=%7B%7D", Route::NetworkList);
        check("POST", "/v1.50/networks/create", Route::NetworkCreate);
        check("POST", "/networks/prune?filters=%7B%7D", Route::NetworkPrune);
        check("DELETE", "/networks/abc", Route::NetworkOne);
        check(
            "GET",
            "/containers/json?filters=%7B%22is-task%22%3A%5B%22true%22%5D%7D",
            Route::TaskContainers,
        );
    }
}

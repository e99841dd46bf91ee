//! Decides which upstream answers a call. Pure: method and path in, [`Route`] out.

use hyper::{Method, Request, Uri};
use mesh_admission::register::Call;
use mesh_state::api_paths::CONTROL_SEGMENTS;

use super::filters::Query;
use super::membership::Membership;
use super::path::CallPath;

/// Who answers a call, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// The engine answers; the call passes through.
    Engine,
    /// The manager on this node answers; the call passes through.
    Control,
    /// `POST /swarm/init`, `join` and `leave`: this node's own membership.
    Membership(Membership),
    /// `/_ping`: the engine's answer, with the node's place in the swarm in its headers.
    Ping,
    /// `/info`: the engine's answer with mesh's swarm section.
    Info,
    /// `GET /events`: merged from both.
    Events,
    /// `GET /networks`: merged from both.
    NetworkList,
    /// `POST /networks/create`: the body decides which of the two.
    NetworkCreate,
    /// `POST /networks/prune`: merged from both, without the network of mesh's own tasks.
    NetworkPrune,
    /// One network, by id or name: the engine's or the cluster's.
    NetworkOne,
    /// `POST /networks/{x}/connect`: the engine's, at the cluster's address on its networks.
    NetworkConnect,
    /// `POST /networks/{x}/disconnect`: the engine's, which knows the cluster's networks by name.
    NetworkDisconnect,
    /// `POST /containers/create`: the engine's, at the cluster's addresses on its networks.
    ContainerCreate,
    /// `GET /containers/json` with the filter `is-task`, which becomes a filter on tasks' label.
    TaskContainers,
}

impl Route {
    /// The route of a call by its path's parts behind the version, and its query.
    pub(super) fn of(method: &Method, parts: &[&str], uri: &Uri) -> Self {
        if let Some(call) = Membership::of(method, parts) {
            return Self::Membership(call);
        }
        match (method.as_str(), parts) {
            ("GET" | "HEAD", ["_ping"]) => Self::Ping,
            ("GET", ["info"]) => Self::Info,
            ("GET", ["events"]) => Self::Events,
            (_, [first, ..]) if CONTROL_SEGMENTS.contains(first) => Self::Control,
            ("GET", ["networks"]) => Self::NetworkList,
            ("POST", ["networks", "create"]) => Self::NetworkCreate,
            ("POST", ["networks", "prune"]) => Self::NetworkPrune,
            ("GET" | "DELETE", ["networks", _]) => Self::NetworkOne,
            ("POST", ["networks", _, "connect"]) => Self::NetworkConnect,
            ("POST", ["networks", _, "disconnect"]) => Self::NetworkDisconnect,
            ("POST", ["containers", "create"]) => Self::ContainerCreate,
            ("GET", ["containers", "json"]) if Query::of(uri).filter("is-task").is_some() => {
                Self::TaskContainers
            }
            _ => Self::Engine,
        }
    }
}

/// Classifies a call by how long it may last, so that slow calls can't take every place: `docker
/// service ls` is short, and is answered whatever the engine does and however many clients follow
/// events.
pub(super) fn kind_of<B>(request: &Request<B>) -> Call {
    let Ok(path) = CallPath::of(request.uri()) else { return Call::Short };
    let parts = path.parts();
    match (Route::of(request.method(), &parts, request.uri()), parts.as_slice()) {
        (Route::Events, _)
        | (Route::Control, [_, _, "logs"])
        | (
            _,
            ["containers", _, "attach" | "logs" | "wait" | "stats" | "export" | "archive"]
            | ["containers", _, "attach", "ws"]
            | ["exec", _, "start"]
            | ["build" | "session" | "grpc"]
            | ["images", "create" | "load" | "get"]
            | ["images", .., "push" | "get"]
            | ["plugins", ..],
        ) => Call::Stream,
        (Route::Control | Route::Ping, _) => Call::Short,
        _ => Call::Slow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, uri: &str, expected: Route) {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let parsed: Uri = uri.parse().unwrap();
        let path = CallPath::of(&parsed).unwrap();
        assert_eq!(Route::of(&method, &path.parts(), &parsed), expected, "{method} {uri}");
    }

    #[test]
    fn swarm_calls_go_to_control() {
        for path in [
            "/services",
            "/services/create",
            "/tasks/x/logs",
            "/nodes",
            "/swarm/update",
            "/secrets/a",
            "/configs",
        ] {
            check("GET", path, Route::Control);
            check("POST", &format!("/v1.41{path}"), Route::Control);
        }
    }

    #[test]
    fn calls_about_this_nodes_membership_are_told_apart() {
        let of = |method: Method, uri: &str| {
            Membership::of(&method, &CallPath::of(&uri.parse().unwrap()).unwrap().parts())
        };
        assert_eq!(of(Method::POST, "/v1.41/swarm/init"), Some(Membership::Init));
        assert_eq!(of(Method::POST, "/swarm/join"), Some(Membership::Join));
        assert_eq!(of(Method::POST, "/swarm/leave?force=1"), Some(Membership::Leave));
        assert_eq!(of(Method::POST, "/swarm/update"), None);
        assert_eq!(of(Method::GET, "/swarm"), None);
    }

    #[test]
    fn no_spelling_of_a_swarm_call_reaches_the_engine() {
        for path in ["/v1.41.0/swarm/init", "/v1.41/s%77arm/init", "/v1.41%2fswarm/init", "//swarm/init"] {
            check("POST", path, Route::Membership(Membership::Init));
        }
        check("POST", "/v1.41.0/networks/prune", Route::NetworkPrune);
        check("POST", "/v1.41/n%65tworks/create", Route::NetworkCreate);
    }

    #[test]
    fn calls_are_told_apart_by_what_may_hold_them_up() {
        let kind = |uri: &str| kind_of(&Request::get(uri).body(()).unwrap());
        for uri in ["/_ping", "/v1.41/services", "/v1.41/services/create", "/nodes/x", "/a/../b"] {
            assert_eq!(kind(uri), Call::Short, "{uri}");
        }
        for uri in ["/v1.41/info", "/containers/json", "/networks", "/images/json"] {
            assert_eq!(kind(uri), Call::Slow, "{uri}");
        }
        for uri in [
            "/events",
            "/services/x/logs?follow=1",
            "/v1.41/containers/x/attach",
            "/containers/x/attach/ws",
            "/exec/x/start",
            "/build",
            "/images/a/b/push",
        ] {
            assert_eq!(kind(uri), Call::Stream, "{uri}");
        }
    }

    #[test]
    fn all_else_goes_to_the_engine() {
        for path in
            ["/containers/json", "/containers/services/json", "/servicesx", "/images/tasks/json", "/version"]
        {
            check("GET", path, Route::Engine);
        }
        check("POST", "/v1.41/containers/x/attach?stream=1", Route::Engine);
        check("GET", "/distribution/nginx/json", Route::Engine);
        check("GET", "/v1.41/v1.41/services", Route::Engine);
        // Clients can't make the calls by which agents report to managers.
        for path in ["/mesh/node/n1", "/v1.41/mesh/node/n1", "/v1.41/m%65sh/node/n1", "//mesh/node/n1"] {
            check("POST", path, Route::Engine);
        }
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
        check("POST", "/v1.41/containers/create?name=x", Route::ContainerCreate);
        check("POST", "/containers/cr%65ate", Route::ContainerCreate);
        check("POST", "/v1.41/networks/x/connect", Route::NetworkConnect);
        check("POST", "/networks/x/disconnect", Route::NetworkDisconnect);
        check(
            "GET",
            "/containers/json?filters=%7B%22is-task%22%3A%5B%22true%22%5D%7D",
            Route::TaskContainers,
        );
    }
}

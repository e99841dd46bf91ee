//! Selects the events that a client wants: Docker's filters (`daemon/events/filter.go` in moby).
//! Pure.

use mesh_state::Timestamp;

use crate::api::filters::Filters;
use crate::feed::events::SwarmEvent;

/// Filters by an object of the engine: no event of the cluster is about one.
const ENGINES: [&str; 5] = ["container", "daemon", "image", "plugin", "volume"];

/// Filters by an object of the cluster, by kind.
const OBJECTS: [&str; 5] = ["config", "network", "node", "secret", "service"];

/// All filters of `docker events`.
pub(crate) const KNOWN: [&str; 14] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

/// The events that a client wants.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// The filters by object, type, action, scope and label.
    pub(crate) filters: Filters,
    /// Past events from this moment on; `None`: no past events.
    pub(crate) since: Option<Timestamp>,
    /// Events up to this moment.
    pub(crate) until: Option<Timestamp>,
}

impl Selection {
    /// Whether a past event is wanted.
    pub(crate) fn wants_past(&self, event: &SwarmEvent) -> bool {
        self.since.is_some_and(|since| event.at >= since) && self.wants(event)
    }

    /// Whether a new event is wanted.
    pub(crate) fn wants(&self, event: &SwarmEvent) -> bool {
        let filters = &self.filters;
        let name = event.attributes.get("name").map_or("", String::as_str);
        let kind = event.kind.as_str();
        let named = |wanted: &str| event.id.starts_with(wanted) || name.starts_with(wanted);
        self.until.is_none_or(|until| event.at <= until)
            && filters.any("type", |wanted| wanted == kind)
            && filters.any("event", |wanted| wanted == event.action.as_str())
            && filters.any("scope", |wanted| wanted == "swarm")
            && filters.labels("label", &event.attributes)
            && ENGINES.iter().all(|object| filters.values(object).is_empty())
            && OBJECTS.iter().all(|object| filters.any(object, |wanted| *object == kind && named(wanted)))
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::feed::events::{Action, EventKind};

    fn event() -> SwarmEvent {
        let attributes = [("name", "web"), ("replicas.new", "2")];
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let (kind, action) = (EventKind::Service, Action::Update);
        SwarmEvent { kind, action, id: "abc".to_owned(), attributes, at: Timestamp::default() }
    }

    #[test]
    fn filters_are_dockers() {
        for (text, expected) in [
            ("{}", true),
            (r#"{"type":["service"]}"#, true),
            (r#"{"type":["node","service"]}"#, true),
            (r#"{"type":["container"]}"#, false),
            (r#"{"event":["update"],"scope":["swarm"]}"#, true),
            (r#"{"event":["create"]}"#, false),
            (r#"{"scope":["local"]}"#, false),
            (r#"{"service":["we"]}"#, true),
            (r#"{"service":["ab"]}"#, true),
            (r#"{"service":["db"]}"#, false),
            (r#"{"node":["web"]}"#, false),
            (r#"{"container":["web"]}"#, false),
            (r#"{"label":["replicas.new=2"]}"#, true),
            (r#"{"label":["com.example"]}"#, false),
        ] {
            let filters = Filters::parse(Some(text), &KNOWN).unwrap();
            let selection = Selection { filters, ..Selection::default() };
            assert_eq!(selection.wants(&event()), expected, "filtering by {text}");
        }
    }

    #[test]
    fn past_events_are_sent_only_on_request() {
        let event = event();
        let later = event.at + TimeDelta::seconds(1);
        let earlier = event.at - TimeDelta::seconds(1);
        let past = |since, until| {
            let selection = Selection { filters: Filters::default(), since, until };
            selection.wants_past(&event)
        };
        assert!(past(Some(earlier), None) && past(Some(event.at), Some(event.at)));
        assert!(!past(None, None), "sent without a request");
        assert!(!past(Some(later), None), "too early");
        assert!(!past(Some(earlier), Some(earlier)), "too late");
    }
}

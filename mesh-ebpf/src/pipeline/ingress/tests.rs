//! When a repeated SYN goes elsewhere.

use super::*;

#[test]
fn a_task_that_answers_directly_gets_more_time() {
    let retries = |events, state: BackendState, ms: u64| {
        let flow = Flow { events: flow_event::SYN | events, ..Flow::default() };
        let backend = Backend { state: state as u8, ..Backend::default() };
        matches!(again(&flow, Some(&backend), ms * 1_000_000), Again::Retries)
    };
    let (active, draining) = (BackendState::Active, BackendState::Draining);
    assert!(!retries(0, active, 499) && retries(0, active, 500), "an answer through the tunnel");
    assert!(retries(0, draining, 1), "of a task that leaves");
    assert!(
        !retries(flow_event::DSR, active, 1999) && retries(flow_event::DSR, active, 2000),
        "a direct one"
    );
    assert!(!retries(flow_event::DSR, draining, 1), "its answer may be on its way");
    assert!(!retries(flow_event::SYN_ACK, active, 5000), "it has answered");
}

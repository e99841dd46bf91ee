//! The walk of a task, step by step, and what holds for every situation.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 2);

fn now() -> Timestamp {
    Timestamp::from_timestamp(1_000, 0).unwrap()
}

fn container(phase: Phase) -> ContainerFacts {
    let running = phase == Phase::Running;
    ContainerFacts {
        phase,
        pid: if running { 42 } else { 0 },
        address: running.then_some(ADDRESS),
        ..ContainerFacts::made("c1".to_owned())
    }
}

fn last(state: TaskState) -> TaskStatus {
    TaskStatus { state, message: "before".to_owned(), ..TaskStatus::default() }
}

const JOINED: MeshLink = MeshLink::Joined { pid: 42, address: Some(ADDRESS) };

fn step(
    desired: TaskState,
    container: Option<&ContainerFacts>,
    last: &TaskStatus,
    link: MeshLink,
) -> TaskStep {
    next(now(), &Situation { desired, container, last, link, drains: false })
}

#[track_caller]
fn reported(step: TaskStep) -> TaskStatus {
    match step {
        TaskStep::Report(status) => status,
        other => panic!("expected a report, got {other:?}"),
    }
}

#[test]
fn a_task_walks_from_assigned_to_running_in_swarms_words() {
    let mut status = last(TaskState::Assigned);
    let (mut made, mut link) = (None, MeshLink::Apart);
    let mut words = Vec::new();
    for _ in 0..20 {
        match step(TaskState::Running, made.as_ref(), &status, link) {
            TaskStep::Report(told) => {
                words.push(format!("{} {}", told.state.as_str(), told.message));
                status = told;
            }
            TaskStep::Prepare => made = Some(container(Phase::Created)),
            TaskStep::Start => made = Some(container(Phase::Running)),
            TaskStep::Join => link = JOINED,
            TaskStep::Wait => break,
            other => panic!("unexpected {other:?} at {status:?}"),
        }
    }
    let expected = [
        "accepted accepted",
        "preparing preparing",
        "ready prepared",
        "starting starting",
        "running started",
    ];
    assert_eq!(words, expected);
    let seen = status.container.expect("a running task tells its container");
    assert_eq!((seen.container_id.as_str(), seen.pid, seen.address), ("c1", 42, Some(ADDRESS.into())));
}

#[test]
fn desired_ready_stops_before_the_start() {
    let made = container(Phase::Created);
    assert_eq!(step(TaskState::Ready, Some(&made), &last(TaskState::Ready), MeshLink::Apart), TaskStep::Wait);
    assert_eq!(step(TaskState::Ready, None, &last(TaskState::Preparing), MeshLink::Apart), TaskStep::Prepare);
}

#[test]
fn a_running_task_drains_before_it_is_stopped() {
    let (running, exited) = (container(Phase::Running), container(Phase::Exited));
    let at = |container, state, link| {
        let last = last(state);
        next(now(), &Situation { desired: TaskState::Shutdown, container, last: &last, link, drains: true })
    };
    assert_eq!(at(Some(&running), TaskState::Running, JOINED), TaskStep::Drain);
    assert_eq!(
        at(Some(&running), TaskState::Running, MeshLink::Unknown),
        TaskStep::Drain,
        "the agent is new"
    );
    assert_eq!(
        at(Some(&running), TaskState::Starting, MeshLink::Apart),
        TaskStep::Stop,
        "nobody was sent to it"
    );
    assert_eq!(at(Some(&exited), TaskState::Running, JOINED), TaskStep::Leave, "it ended meanwhile");
}

#[test]
fn exit_codes_become_swarms_ends() {
    let mut done = container(Phase::Exited);
    let told = reported(step(TaskState::Running, Some(&done), &last(TaskState::Running), MeshLink::Apart));
    assert_eq!((told.state, told.message.as_str(), told.err.as_str()), (TaskState::Complete, "finished", ""));
    done.exit_code = 3;
    let told = reported(step(TaskState::Running, Some(&done), &last(TaskState::Running), MeshLink::Apart));
    assert_eq!((told.state, told.message.as_str()), (TaskState::Failed, "before"));
    assert_eq!(told.err, "task: non-zero exit (3)");
}

#[test]
fn a_container_that_is_gone_was_killed() {
    assert_eq!(step(TaskState::Running, None, &last(TaskState::Running), JOINED), TaskStep::Leave);
    let told = reported(step(TaskState::Running, None, &last(TaskState::Running), MeshLink::Apart));
    assert_eq!((told.state, told.err.as_str()), (TaskState::Failed, "task: non-zero exit (137)"));
}

#[test]
fn running_waits_for_health_and_an_unhealthy_container_is_ended() {
    let mut checked = container(Phase::Running);
    checked.health = Health::Starting;
    assert_eq!(
        step(TaskState::Running, Some(&checked), &last(TaskState::Starting), MeshLink::Apart),
        TaskStep::Wait
    );
    checked.health = Health::Healthy;
    assert_eq!(
        step(TaskState::Running, Some(&checked), &last(TaskState::Starting), MeshLink::Apart),
        TaskStep::Join
    );

    checked.health = Health::Unhealthy;
    let told = reported(step(TaskState::Running, Some(&checked), &last(TaskState::Running), JOINED));
    assert_eq!((told.state, told.err.as_str()), (TaskState::Running, UNHEALTHY));
    assert_eq!(step(TaskState::Running, Some(&checked), &told, JOINED), TaskStep::Stop);
    let mut stopped = container(Phase::Exited);
    stopped.exit_code = 137;
    let end = reported(step(TaskState::Running, Some(&stopped), &told, MeshLink::Apart));
    assert_eq!(end.err, "task: non-zero exit (137): dockerexec: unhealthy container");
    stopped.exit_code = 0;
    let end = reported(step(TaskState::Running, Some(&stopped), &told, MeshLink::Apart));
    assert_eq!(end.state, TaskState::Failed, "a container that was ended for its health did not complete");
}

#[test]
fn a_restarted_agent_adopts_what_runs() {
    let runs = container(Phase::Running);
    assert_eq!(
        step(TaskState::Running, Some(&runs), &last(TaskState::Running), MeshLink::Unknown),
        TaskStep::Join
    );
    let mut known = last(TaskState::Running);
    known.container =
        reported(step(TaskState::Running, Some(&runs), &last(TaskState::Starting), JOINED)).container;
    assert_eq!(step(TaskState::Running, Some(&runs), &known, JOINED), TaskStep::Wait);
    // Without any memory of it, too.
    let told = reported(step(TaskState::Running, Some(&runs), &last(TaskState::Preparing), MeshLink::Apart));
    assert_eq!(told.state, TaskState::Ready);
}

#[test]
fn a_trouble_that_passed_is_no_longer_told() {
    let runs = container(Phase::Running);
    let mut known = reported(step(TaskState::Running, Some(&runs), &last(TaskState::Starting), JOINED));
    assert_eq!(step(TaskState::Running, Some(&runs), &known, JOINED), TaskStep::Wait);
    known.err = "connect the task to the mesh: no device".to_owned();
    let told = reported(step(TaskState::Running, Some(&runs), &known, JOINED));
    assert_eq!(told.err, "");
}

#[test]
fn a_container_with_another_process_is_joined_and_told_again() {
    let mut other = container(Phase::Running);
    other.pid = 43;
    assert_eq!(step(TaskState::Running, Some(&other), &last(TaskState::Running), JOINED), TaskStep::Join);
    let link = MeshLink::Joined { pid: 43, address: Some(ADDRESS) };
    let told = reported(step(TaskState::Running, Some(&other), &last(TaskState::Running), link));
    assert_eq!(told.container.map(|seen| seen.pid), Some(43));
}

#[test]
fn shutdown_ends_the_container_and_keeps_it_and_remove_takes_it() {
    let runs = container(Phase::Running);
    let ended = container(Phase::Exited);
    let running = last(TaskState::Running);
    assert_eq!(step(TaskState::Shutdown, Some(&runs), &running, JOINED), TaskStep::Stop);
    assert_eq!(step(TaskState::Shutdown, Some(&ended), &running, JOINED), TaskStep::Leave);
    let told = reported(step(TaskState::Shutdown, Some(&ended), &running, MeshLink::Apart));
    assert_eq!((told.state, told.message.as_str()), (TaskState::Shutdown, "shutdown"));
    assert_eq!(step(TaskState::Shutdown, Some(&ended), &told, MeshLink::Apart), TaskStep::Wait);
    assert_eq!(step(TaskState::Remove, Some(&ended), &told, MeshLink::Apart), TaskStep::Remove);
    assert_eq!(step(TaskState::Remove, None, &told, MeshLink::Apart), TaskStep::Forget);
}

#[test]
fn failures_are_rejections_before_the_start() {
    assert_eq!(failure(now(), &last(TaskState::Preparing), "No such image: x:1").state, TaskState::Rejected);
    assert_eq!(failure(now(), &last(TaskState::Starting), "x").state, TaskState::Failed);
    let mut broken = container(Phase::Created);
    broken.error = "no such file".to_owned();
    let told = reported(step(TaskState::Running, Some(&broken), &last(TaskState::Starting), MeshLink::Apart));
    assert_eq!(told.err, "starting container failed: no such file");
}

#[test]
fn an_absent_grace_is_ten_seconds() {
    assert_eq!(stop_grace(None), Duration::from_secs(10));
    assert_eq!(stop_grace(Some(0)), Duration::ZERO);
    assert_eq!(stop_grace(Some(1_500_000_000)), Duration::from_millis(1_500));
}

const STATES: [TaskState; 14] = [
    TaskState::New,
    TaskState::Pending,
    TaskState::Assigned,
    TaskState::Accepted,
    TaskState::Preparing,
    TaskState::Ready,
    TaskState::Starting,
    TaskState::Running,
    TaskState::Complete,
    TaskState::Shutdown,
    TaskState::Failed,
    TaskState::Rejected,
    TaskState::Remove,
    TaskState::Orphaned,
];

fn any_container() -> impl Strategy<Value = Option<ContainerFacts>> {
    let phase = prop::sample::select(vec![Phase::Created, Phase::Running, Phase::Exited]);
    let health =
        prop::sample::select(vec![Health::Unchecked, Health::Starting, Health::Healthy, Health::Unhealthy]);
    prop::option::of((phase, health, 0i64..3, any::<bool>()).prop_map(
        |(phase, health, exit_code, broken)| {
            let error = if broken { "broken".to_owned() } else { String::new() };
            ContainerFacts { exit_code, error, health, ..container(phase) }
        },
    ))
}

proptest! {
    #[test]
    fn no_step_lowers_a_state_or_revives_an_end(
        desired in prop::sample::select(vec![TaskState::Ready, TaskState::Running, TaskState::Shutdown, TaskState::Remove]),
        observed in prop::sample::select(STATES.to_vec()),
        container in any_container(),
        link in prop::sample::select(vec![MeshLink::Unknown, MeshLink::Apart, JOINED]),
    ) {
        let last = last(observed);
        let step = step(desired, container.as_ref(), &last, link);
        if let TaskStep::Report(told) = &step {
            prop_assert!(told.state >= observed, "{observed:?} fell to {:?}", told.state);
            prop_assert!(!observed.is_terminal(), "told {told:?} after the end {observed:?}");
            prop_assert_ne!(told, &last, "a report that changes nothing would repeat for ever");
        }
        if observed.is_terminal() {
            prop_assert!(!matches!(step, TaskStep::Start | TaskStep::Prepare | TaskStep::Join), "{step:?} after {observed:?}");
        }
        if step == TaskStep::Start {
            prop_assert_eq!(container.map(|c| c.phase), Some(Phase::Created), "only a fresh container is started");
        }
    }
}

//! Secrets and configs of tasks on a real engine.

use std::os::unix::fs::MetadataExt as _;

use mesh_agent::control_link::AssignmentChange;
use mesh_agent::task::dependencies::delivered::{Delivered, ObjectData, PrivateBytes};
use mesh_state::dependency::DependencyKind;
use mesh_state::task::TaskState;

use crate::engine::{self, stderr, stdout};
use crate::{Agent, assignment, set};

fn delivery(id: &str, found: ObjectData) -> AssignmentChange {
    AssignmentChange::Dependency(Delivered { kind: DependencyKind::Secret, id: id.into(), found })
}

#[test]
fn secrets_are_files_in_memory_that_outlive_the_agent_and_go_with_the_task() {
    let Some(engine) = engine::start() else { return };
    let mut agent = Agent::start(&engine, engine.path("tasks"));
    let file = serde_json::json!({"Name": "password", "UID": "7", "GID": "9", "Mode": 0o440});
    let referring = |id: &str, desired| {
        let spec = serde_json::json!({
            "Image": "busybox", "Command": ["sleep", "600"], "StopGracePeriod": 0,
            "Secrets": [{"File": file, "SecretID": "s", "SecretName": "db"}],
            "Configs": [{"File": {"Name": "/etc/app.conf"}, "ConfigID": "s", "ConfigName": "app"}],
        });
        let mut assignment = assignment(id, &spec, desired);
        assignment.task.id = id.into();
        assignment
    };
    agent.assign(AssignmentChange::Full(vec![referring("t1", TaskState::Running)]));
    let waiting = agent.until("t1", TaskState::Preparing);
    // The node's network may still be in the making, which the status says.
    assert!(!waiting.err.contains("manager"), "a delivery is on its way, but: {}", waiting.err);
    let data = |text: &str| ObjectData::Data(PrivateBytes::new(text.as_bytes().to_vec()));
    agent.assign(delivery("s", data("s3cr3t")));
    agent.assign(AssignmentChange::Dependency(Delivered {
        kind: DependencyKind::Config,
        id: "s".into(),
        found: data("listen 80"),
    }));
    agent.until("t1", TaskState::Running);
    let inside = |command: &str| engine.docker(&["exec", "web.1.t1", "sh", "-c", command]);
    assert_eq!(stdout(&inside("cat /run/secrets/password /etc/app.conf")), "s3cr3tlisten 80");
    let refused = inside("echo x > /run/secrets/password");
    assert!(!refused.status.success() && stderr(&refused).contains("Read-only"), "{}", stderr(&refused));
    let written = agent.files.join("task-t1/0");
    let facts = std::fs::metadata(&written).unwrap();
    assert_eq!((facts.uid(), facts.gid(), facts.mode() & 0o7777), (7, 9, 0o440), "owner and mode");

    // The next agent has no manager and needs none.
    let files = agent.files.clone();
    agent.kill();
    let mut agent = Agent::start(&engine, engine.path("tasks"));
    agent.assign(AssignmentChange::Full(vec![referring("t1", TaskState::Running)]));
    agent.until("t1", TaskState::Running);
    assert_eq!(stdout(&inside("cat /run/secrets/password")), "s3cr3t", "after the agent's restart");

    agent.assign(set(referring("t1", TaskState::Shutdown)));
    agent.until("t1", TaskState::Shutdown);
    assert!(!files.join("task-t1").exists(), "the files stayed behind");
    agent.assign(set(referring("t2", TaskState::Running)));
    let late = agent.until_err("t2", "waits for a manager to send config app, secret db");
    assert_eq!(late.state, TaskState::Preparing);
    agent.assign(delivery("s", ObjectData::Refused("secret db was removed".to_owned())));
    agent.assign(AssignmentChange::Dependency(Delivered {
        kind: DependencyKind::Config,
        id: "s".into(),
        found: data("listen 80"),
    }));
    assert_eq!(agent.until("t2", TaskState::Rejected).err, "secret db was removed");
    agent.stop();
}

//! Tests of tasks over HTTP.

use mesh_state::task::TaskState;
use serde_json::{Value, json};

use crate::cluster::{Cluster, node_id, published, spec};
use crate::http::encoded;

async fn tasks(cluster: &Cluster, filters: &str) -> Vec<Value> {
    let answer = cluster.get(&format!("/tasks?filters={}", encoded(filters))).await;
    assert_eq!(answer.status, 200, "filtering by {filters}: {}", answer.body);
    answer.body.as_array().unwrap().clone()
}

async fn running(cluster: &Cluster, count: usize) {
    cluster
        .until(&format!("{count} tasks run"), |snapshot| {
            snapshot
                .tasks
                .values()
                .filter(|task| {
                    task.desired_state == TaskState::Running && snapshot.state_of(task) == TaskState::Running
                })
                .count()
                == count
        })
        .await;
}

#[tokio::test]
async fn a_task_has_dockers_shape() {
    let cluster = Cluster::start().await;
    let service = cluster.create(&published("web", 80)).await;
    running(&cluster, 1).await;
    let task = tasks(&cluster, "{}").await.remove(0);
    assert_eq!(task["ServiceID"], service.as_str());
    assert_eq!((&task["Slot"], &task["NodeID"]), (&json!(1), &json!(node_id(1))));
    assert_eq!((&task["DesiredState"], &task["Status"]["State"]), (&json!("running"), &json!("running")));
    assert_eq!(task["Status"]["Message"], "started");
    assert_eq!(task["Status"]["ContainerStatus"], json!({"ContainerID": "c0ffee", "PID": 7, "ExitCode": 0}));
    assert_eq!(task["Spec"]["ContainerSpec"]["Image"], "nginx:latest");
    let attachment = &task["NetworksAttachments"][0];
    assert_eq!(attachment["Network"]["Spec"]["Name"], "ingress");
    assert_eq!(attachment["Addresses"], json!(["10.128.1.2/24"]));
    let id = task["ID"].as_str().unwrap();
    assert_eq!(cluster.get(&format!("/tasks/{id}")).await.body["ID"], id);
    assert_eq!(cluster.get("/tasks/nope").await.refusal(), (404, "task nope not found"));
}

#[tokio::test]
async fn tasks_are_filtered_as_docker_filters_them() {
    let cluster = Cluster::start().await;
    let mut stacked = spec("web", 3);
    stacked["Labels"] = json!({"com.docker.stack.namespace": "shop"});
    cluster.create(&stacked).await;
    cluster.create(&spec("db", 1)).await;
    running(&cluster, 4).await;
    for (filters, expected) in [
        (r#"{"service":{"web":true}}"#, 3),
        (r#"{"service":["web","db"]}"#, 4),
        (r#"{"node":["node-1"]}"#, 2),
        (r#"{"node":["self"],"service":["db"]}"#, 1),
        (r#"{"name":["web.2"]}"#, 1),
        (r#"{"label":["com.docker.stack.namespace=shop"]}"#, 3),
        (r#"{"desired-state":["running"]}"#, 4),
        (r#"{"desired-state":["shutdown"]}"#, 0),
    ] {
        assert_eq!(tasks(&cluster, filters).await.len(), expected, "filtering by {filters}");
    }
    for (filters, refusal) in [
        (r#"{"service":["nope"]}"#, (404, "service nope not found")),
        (r#"{"desired-state":["asleep"]}"#, (400, "Invalid desired-state filter: 'asleep'")),
        (r#"{"foo":["x"]}"#, (400, "Invalid filter 'foo'")),
    ] {
        let answer = cluster.get(&format!("/tasks?filters={}", encoded(filters))).await;
        assert_eq!(answer.refusal(), refusal, "filtering by {filters}");
    }
}

#[tokio::test]
async fn a_label_leaves_tasks_up_to_date_and_an_image_does_not() {
    let cluster = Cluster::start().await;
    let id = cluster.create(&spec("web", 2)).await;
    running(&cluster, 2).await;
    let filters = format!(r#"{{"_up-to-date":{{"true":true}},"service":{{"{id}":true}}}}"#);
    let current = async || {
        let mut ids: Vec<_> = tasks(&cluster, &filters).await.iter().map(|task| task["ID"].clone()).collect();
        ids.sort_by_key(ToString::to_string);
        ids
    };
    let before = current().await;
    assert_eq!(before.len(), 2);
    let labelled = cluster.update(&id, |spec| spec["Labels"]["mesh.lb.policy"] = json!("least-connections"));
    assert_eq!(labelled.await.status, 200);
    assert_eq!(current().await, before, "a label made tasks outdated");
    let scaled = cluster.update(&id, |spec| spec["Mode"]["Replicated"]["Replicas"] = json!(3));
    assert_eq!(scaled.await.status, 200);
    running(&cluster, 3).await;
    assert_eq!(current().await.len(), 3);
    let renewed =
        cluster.update(&id, |spec| spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!("nginx:2"));
    assert_eq!(renewed.await.status, 200);
    cluster
        .until("three tasks run the new image", |snapshot| {
            let new = |task: &mesh_state::task::Task| {
                let spec = snapshot.spec_of(task).and_then(|spec| spec.task_template.container_spec.as_ref());
                spec.is_some_and(|container| container.image == "nginx:2")
            };
            snapshot.tasks.values().filter(|task| new(task)).count() == 3
        })
        .await;
    let after = current().await;
    assert!(before.iter().all(|id| !after.contains(id)), "tasks of the old image count as up to date");
}

#[tokio::test]
async fn counts_come_with_the_list_when_they_are_asked_for() {
    let cluster = Cluster::start().await;
    cluster.create(&spec("web", 3)).await;
    running(&cluster, 3).await;
    let with = cluster.get("/services?status=true").await.body;
    assert_eq!(with[0]["ServiceStatus"], json!({"RunningTasks": 3, "DesiredTasks": 3, "CompletedTasks": 0}));
    cluster.believe(2, mesh_state::node::NodeState::Down).await;
    let with = cluster.get("/services?status=true").await.body;
    assert_eq!(
        with[0]["ServiceStatus"]["RunningTasks"], 2,
        "a task on a node that is down is not known to run"
    );
    assert_eq!(cluster.get("/services").await.body[0].get("ServiceStatus"), None);
}

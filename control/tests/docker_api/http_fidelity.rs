//! Tests of what clients of Swarm rely on: fields that always exist, specs that come back as they
//! were sent, refusals instead of silence.

use serde_json::{Value, json};

use crate::cluster::{Cluster, TUNNEL_PORT, published, spec};
use crate::http::encoded;

/// Swarm's settings that clients read without checking that they exist.
fn check_cluster(cluster: &Value) {
    let spec = &cluster["Spec"];
    assert_eq!(spec["TaskDefaults"], json!({}), "of {cluster}");
    let raft = json!({"SnapshotInterval": 10_000, "KeepOldSnapshots": 0, "LogEntriesForSlowFollowers": 500,
                      "ElectionTick": 10, "HeartbeatTick": 1});
    assert_eq!(spec["Raft"], raft);
    assert_eq!(cluster["DataPathPort"], TUNNEL_PORT, "the one that the nodes are set to");
    let fields = [
        "ID",
        "Version",
        "CreatedAt",
        "UpdatedAt",
        "TLSInfo",
        "RootRotationInProgress",
        "DefaultAddrPool",
        "SubnetSize",
    ];
    for field in fields {
        assert!(cluster.get(field).is_some(), "{field} is missing from {cluster}");
    }
    for field in ["Name", "Labels", "Orchestration", "Dispatcher", "CAConfig", "EncryptionConfig"] {
        assert!(spec.get(field).is_some(), "Spec.{field} is missing from {cluster}");
    }
}

#[tokio::test]
async fn the_swarm_has_every_field_that_swarm_always_gives() {
    let cluster = Cluster::start().await;
    let swarm = cluster.get("/swarm").await.body;
    check_cluster(&swarm);
    assert!(swarm["JoinTokens"]["Worker"].is_string());
    check_cluster(&cluster.get("/info").await.body["Swarm"]["Cluster"]);
    // A client sends all of it back.
    let path = format!("/swarm/update?version={}", swarm["Version"]["Index"]);
    let posted = cluster.post(&path, &swarm["Spec"]).await;
    assert_eq!(posted.status, 200, "{}", posted.body);
}

#[tokio::test]
async fn networks_and_tasks_have_every_field_that_swarm_always_gives() {
    let cluster = Cluster::start().await;
    let network = cluster.get("/networks").await.body[0].clone();
    for field in
        ["EnableIPv4", "EnableIPv6", "IPAM", "Internal", "Attachable", "Ingress", "ConfigFrom", "ConfigOnly"]
    {
        assert!(network.get(field).is_some(), "{field} is missing from {network}");
    }
    cluster.create(&published("web", 80)).await;
    cluster.until("the task is there", |snapshot| !snapshot.tasks.is_empty()).await;
    let task = cluster.get("/tasks").await.body[0].clone();
    for field in
        ["ID", "Version", "CreatedAt", "UpdatedAt", "Labels", "Spec", "Status", "DesiredState", "Volumes"]
    {
        assert!(task.get(field).is_some(), "{field} is missing from {task}");
    }
}

#[tokio::test]
async fn a_spec_gets_nothing_that_was_not_sent_but_what_swarm_always_shows() {
    let cluster = Cluster::start().await;
    let given =
        json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "nginx", "Command": ["x"]}}});
    cluster.create(&given).await;
    let shown = json!({"Name": "web", "Labels": {}, "Mode": {"Replicated": {"Replicas": 1}}, "TaskTemplate": {
        "ContainerSpec": {"Image": "nginx", "Command": ["x"], "Isolation": "default"}, "ForceUpdate": 0,
        "Runtime": "container"}});
    assert_eq!(cluster.service("web").await["Spec"], shown);
    let snapshot = cluster.context.snapshot();
    let stored = serde_json::to_value(&snapshot.services.values().next().unwrap().spec).unwrap();
    let container = &stored["TaskTemplate"]["ContainerSpec"];
    assert_eq!(container, &given["TaskTemplate"]["ContainerSpec"], "what is stored is what was sent");
}

/// The ids of the tasks that are to run.
async fn wanted(cluster: &Cluster) -> Vec<String> {
    let filters = encoded(r#"{"desired-state":["running"]}"#);
    let tasks = cluster.get(&format!("/tasks?filters={filters}")).await.body;
    let mut ids: Vec<_> =
        tasks.as_array().unwrap().iter().map(|task| task["ID"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn another_spelling_of_the_same_spec_restarts_no_task() {
    let cluster = Cluster::start().await;
    let bare = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "nginx"}},
                      "Mode": {"Replicated": {"Replicas": 2}}});
    cluster.create(&bare).await;
    cluster.until("the tasks are there", |snapshot| snapshot.tasks.len() == 2).await;
    let before = wanted(&cluster).await;
    let merge = |place: &str, fields: Value| {
        let place = place.to_owned();
        move |spec: &mut Value| {
            let object = spec.pointer_mut(&place).unwrap().as_object_mut().unwrap();
            object.extend(fields.as_object().unwrap().clone());
        }
    };
    let container = "/TaskTemplate/ContainerSpec";
    for (place, fields) in [
        ("", json!({})),
        (container, json!({"TTY": false, "ReadOnly": false, "OpenStdin": false})),
        ("/TaskTemplate", json!({"Networks": []})),
        ("", json!({"Networks": []})),
        (container, json!({"Mounts": null, "Secrets": [], "Groups": [], "DNSConfig": {}})),
        (container, json!({"Extra": 1})),
        ("", json!({"EndpointSpec": {"Mode": "vip"}})),
    ] {
        let updated = cluster.update("web", merge(place, fields.clone())).await;
        assert_eq!(updated.status, 200, "with {fields} at {place:?}: {}", updated.body);
        cluster.update("web", |spec| spec["Labels"]["seen"] = json!(fields.to_string())).await;
        assert_eq!(wanted(&cluster).await, before, "with {fields} at {place:?}");
    }
    cluster.update("web", merge(container, json!({"TTY": true}))).await;
    cluster.until("the tasks are replaced", |snapshot| snapshot.tasks.len() == 4).await;
    assert_ne!(wanted(&cluster).await, before);
}

#[tokio::test]
async fn fields_that_docker_does_not_have_are_accepted_with_a_warning() {
    let cluster = Cluster::start().await;
    let mut misspelled = spec("web", 1);
    misspelled["TaskTemplate"]["ContainerSpec"]["Imgae"] = json!("x");
    let answer = cluster.post("/services/create", &misspelled).await;
    let warning = "unknown fields change nothing, look for a slip: TaskTemplate.ContainerSpec.Imgae";
    assert_eq!((answer.status.as_u16(), &answer.body["Warnings"]), (201, &json!([warning])));
    let network =
        cluster.post("/networks/create", &json!({"Name": "n", "Driver": "overlay", "Novel": 1})).await;
    assert_eq!(network.status, 201, "{}", network.body);
    assert!(network.body["Warning"].as_str().unwrap().ends_with("Novel"), "{}", network.body);
}

#[tokio::test]
async fn a_node_update_says_role_and_availability() {
    let cluster = Cluster::start().await;
    let node = cluster.get("/nodes/node-1").await.body;
    let path = format!("/nodes/node-1/update?version={}", node["Version"]["Index"]);
    for (body, message) in [
        (json!({"Role": "manager"}), "invalid Availability: \"\""),
        (json!({"Availability": "active"}), "invalid Role: \"\""),
        (json!({"Role": "", "Availability": "active"}), "invalid Role: \"\""),
    ] {
        assert_eq!(cluster.post(&path, &body).await.refusal(), (400, message), "for {body}");
    }
    let whole = cluster.post(&path, &json!({"Role": "Manager", "Availability": "Active"})).await;
    assert_eq!(whole.status, 200, "{}", whole.body);
}

#[tokio::test]
async fn a_task_is_on_the_ingress_network_only_by_a_port_of_the_mesh() {
    let cluster = Cluster::start().await;
    cluster.create(&published("meshed", 80)).await;
    let mut host = published("hosted", 81);
    host["EndpointSpec"]["Ports"][0]["PublishMode"] = json!("host");
    cluster.create(&host).await;
    let made = cluster.post("/networks/create", &json!({"Name": "own", "Driver": "overlay"})).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let mut both = published("both", 82);
    both["TaskTemplate"]["Networks"] = json!([{"Target": "own"}]);
    cluster.create(&both).await;
    cluster.create(&spec("plain", 1)).await;
    cluster.until("the tasks run", |snapshot| snapshot.statuses.len() == 4).await;
    let networks = async |service: &str| {
        let filters = encoded(&format!(r#"{{"service":["{service}"]}}"#));
        let task = cluster.get(&format!("/tasks?filters={filters}")).await.body[0].clone();
        let attachments = task["NetworksAttachments"].as_array().cloned().unwrap_or_default();
        attachments.iter().map(|one| one["Network"]["Spec"]["Name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(networks("meshed").await, ["ingress"]);
    assert_eq!(networks("both").await, ["ingress", "own"]);
    assert!(networks("hosted").await.is_empty(), "it answers at its node's address");
    assert!(networks("plain").await.is_empty());
}

#[tokio::test]
async fn a_resource_may_be_asked_for_by_its_name() {
    let cluster = Cluster::start().await;
    let mut named = spec("named", 1);
    let resource = json!([{"NamedResourceSpec": {"Kind": "gpu", "Value": "a"}}]);
    named["TaskTemplate"]["Resources"]["Reservations"] = json!({ "GenericResources": resource });
    cluster.create(&named).await;
    let seen = cluster.service("named").await;
    assert_eq!(seen["Spec"]["TaskTemplate"]["Resources"]["Reservations"]["GenericResources"], resource);
}

//! Every field of a spec reaches the container, or is refused by name.

use mesh_state::spec::{PortConfig, TaskSpec};
use mesh_state::task::{Slot, Task, TaskState, TaskStatus};
use serde_json::{Value, json};

use super::*;

fn node() -> NodeIdentity {
    NodeIdentity {
        id: "node1".into(),
        hostname: "alpha".to_owned(),
        architecture: "x86_64".to_owned(),
        os: "linux".to_owned(),
    }
}

fn assignment(template: Value) -> Assignment {
    let spec: TaskSpec = serde_json::from_value(template).expect("a task template");
    Assignment {
        task: Task {
            id: "task1".into(),
            service_id: "service1".into(),
            slot: Slot::Number(3),
            spec_version: 1,
            node_id: Some("node1".into()),
            desired_state: TaskState::Running,
            endpoints: Vec::new(),
            attachments: Vec::new(),
            created_at: mesh_state::Timestamp::default(),
            job_iteration: None,
            generic_resources: Vec::new(),
            start_after: None,
            shutdown_at: None,
            leader_status: TaskStatus::default(),
        },
        name: "web.3".to_owned(),
        service_name: "web".to_owned(),
        service_labels: [("tier".to_owned(), "front".to_owned())].into(),
        spec,
        host_ports: Vec::new(),
        drain: mesh_state::task::Drain::default(),
        registry_auth: None,
        networks: Vec::new(),
    }
}

/// The engine's request for a `ContainerSpec` of these fields.
fn made(mut fields: Value) -> Value {
    fields["Image"] = json!("nginx");
    let plan = plan(
        &assignment(json!({ "ContainerSpec": fields })),
        &node(),
        &NodeNames::default(),
        Path::new("/files"),
    )
    .expect("a plan");
    serde_json::to_value(plan.body).unwrap()
}

/// `ContainerSpec` with `key: value` becomes a request that holds `expected` at the pointer.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "the callers' tables read better")]
fn check(key: &str, value: Value, pointer: &str, expected: Value) {
    let body = made(json!({ key: value }));
    assert_eq!(body.pointer(pointer), Some(&expected), "{key} at {pointer} of {body}");
}

#[track_caller]
fn refused(template: impl Into<Value>, expected: &str) {
    let error = plan(&assignment(template.into()), &node(), &NodeNames::default(), Path::new("/files"))
        .expect_err("a refusal");
    assert!(error.to_string().contains(expected), "expected {expected:?} in {error}");
}

#[test]
fn fields_of_the_process_reach_the_container() {
    check("Image", json!("x"), "/Image", json!("nginx"));
    check("Command", json!(["/bin/sh", "-c"]), "/Entrypoint", json!(["/bin/sh", "-c"]));
    check("Args", json!(["echo", "a"]), "/Cmd", json!(["echo", "a"]));
    check("Env", json!(["A=1", "B"]), "/Env", json!(["A=1", "B"]));
    check("Dir", json!("/srv"), "/WorkingDir", json!("/srv"));
    check("User", json!("1000:1000"), "/User", json!("1000:1000"));
    check("Groups", json!(["audio"]), "/HostConfig/GroupAdd", json!(["audio"]));
    check("TTY", json!(true), "/Tty", json!(true));
    check("OpenStdin", json!(true), "/OpenStdin", json!(true));
    check("StopSignal", json!("SIGINT"), "/StopSignal", json!("SIGINT"));
    check("StopGracePeriod", json!(1_500_000_000), "/StopTimeout", json!(2));
    check("Init", json!(false), "/HostConfig/Init", json!(false));
    check("Init", json!(true), "/HostConfig/Init", json!(true));
    check("OomScoreAdj", json!(-5), "/HostConfig/OomScoreAdj", json!(-5));
    check("Hostname", json!("h"), "/Hostname", json!("h"));
}

#[test]
fn fields_of_the_host_reach_the_container() {
    check("ReadOnly", json!(true), "/HostConfig/ReadonlyRootfs", json!(true));
    check("Hosts", json!(["10.0.0.1 a b"]), "/HostConfig/ExtraHosts", json!(["a:10.0.0.1", "b:10.0.0.1"]));
    check("Sysctls", json!({"net.x": "1"}), "/HostConfig/Sysctls", json!({"net.x": "1"}));
    check("CapabilityAdd", json!(["CAP_NET_RAW"]), "/HostConfig/CapAdd", json!(["CAP_NET_RAW"]));
    check("CapabilityDrop", json!(["ALL"]), "/HostConfig/CapDrop", json!(["ALL"]));
    let limit = json!([{"Name": "nofile", "Soft": 1, "Hard": 2}]);
    check("Ulimits", limit.clone(), "/HostConfig/Ulimits", limit);
    let dns = json!({"Nameservers": ["1.1.1.1"], "Search": ["x.org"], "Options": ["ndots:1"]});
    check("DNSConfig", dns.clone(), "/HostConfig/Dns", json!(["1.1.1.1"]));
    check("DNSConfig", dns.clone(), "/HostConfig/DnsSearch", json!(["x.org"]));
    check("DNSConfig", dns, "/HostConfig/DnsOptions", json!(["ndots:1"]));
    let check_health =
        json!({"Test": ["CMD", "true"], "Interval": 1, "Timeout": 2, "Retries": 3, "StartPeriod": 4});
    check("Healthcheck", check_health.clone(), "/Healthcheck", check_health);
    let privileges = json!({
        "NoNewPrivileges": true,
        "Seccomp": {"Mode": "unconfined"},
        "AppArmor": {"Mode": "disabled"},
        "SELinuxContext": {"Type": "t"},
        "CredentialSpec": null,
    });
    let expected =
        json!(["no-new-privileges:true", "label=type:t", "seccomp=unconfined", "apparmor=unconfined"]);
    check("Privileges", privileges, "/HostConfig/SecurityOpt", expected);
    let custom = json!({"Seccomp": {"Mode": "custom", "Profile": "e30="}});
    check("Privileges", custom, "/HostConfig/SecurityOpt", json!(["seccomp={}"]));
}

#[test]
fn mounts_reach_the_container_whole() {
    let mounts = json!([
        {"Type": "bind", "Source": "/data/{{.Task.Slot}}", "Target": "/d", "ReadOnly": true,
         "BindOptions": {"Propagation": "rprivate"}},
        {"Type": "volume", "Source": "v-{{.Service.Name}}", "Target": "/v",
         "VolumeOptions": {"NoCopy": true, "Labels": {"a": "{{.Node.Hostname}}"}, "DriverConfig": {"Name": "local", "Options": {"o": "x"}}}},
        {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 448}},
    ]);
    let text = mounts.to_string();
    let expected: Value = serde_json::from_str(
        &text
            .replace("{{.Task.Slot}}", "3")
            .replace("{{.Service.Name}}", "web")
            .replace("{{.Node.Hostname}}", "alpha"),
    )
    .unwrap();
    check("Mounts", mounts, "/HostConfig/Mounts", expected);
    refused(
        json!({"ContainerSpec": {"Image": "x", "Mounts": [{"Type": "bind", "BindOptions": {"Novel": 1}}]}}),
        "ContainerSpec.Mounts.BindOptions.Novel",
    );
}

#[test]
fn what_is_beside_the_container_spec_reaches_it_too() {
    let template = json!({
        "ContainerSpec": {"Image": "nginx"},
        "Resources": {
            "Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 1_048_576, "Pids": 7},
            "Reservations": {"MemoryBytes": 4096},
        },
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}},
        "Networks": null, "Runtime": "container",
    });
    let mut assignment = assignment(template);
    assignment.host_ports = vec![
        PortConfig { target_port: 80, published_port: 8080, ..PortConfig::default() },
        PortConfig { target_port: 53, protocol: mesh_state::spec::Protocol::Udp, ..PortConfig::default() },
    ];
    let plan = plan(&assignment, &node(), &NodeNames::default(), Path::new("/files")).unwrap();
    assert_eq!(plan.name, "web.3.task1");
    let body = serde_json::to_value(plan.body).unwrap();
    let host = &body["HostConfig"];
    assert_eq!(host["NanoCpus"], 500_000_000);
    assert_eq!(host["Memory"], 1_048_576);
    assert_eq!(host["PidsLimit"], 7);
    assert_eq!(host["MemoryReservation"], 4096);
    assert_eq!(host["LogConfig"], json!({"Type": "json-file", "Config": {"max-size": "1m"}}));
    assert_eq!(host["NetworkMode"], "mesh");
    assert_eq!(host["RestartPolicy"]["Name"], "no");
    assert_eq!(host["PortBindings"], json!({"80/tcp": [{"HostPort": "8080"}], "53/udp": [{}]}));
    assert_eq!(body["ExposedPorts"], json!({"80/tcp": {}, "53/udp": {}}));
    assert_eq!(body["NetworkingConfig"], json!({"EndpointsConfig": {"mesh": {}}}));
}

#[test]
fn labels_are_the_users_and_swarms() {
    let labels =
        made(json!({"Labels": {"mine": "1", "com.docker.swarm.task.id": "forged"}}))["Labels"].clone();
    let expected = json!({
        "mine": "1",
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": "task1",
        "com.docker.swarm.task.name": "web.3.task1",
        "com.docker.swarm.node.id": "node1",
        "com.docker.swarm.service.id": "service1",
        "com.docker.swarm.service.name": "web",
        "mesh.node.id": "node1",
    });
    assert_eq!(labels, expected);
}

#[test]
fn templates_are_filled_in_as_swarm_does() {
    let env = "E={{.Service.ID}} {{.Service.Name}} {{ .Node.ID }} {{.Node.Hostname}} {{.Node.Platform.OS}} {{.Task.ID}} {{.Task.Name}}";
    check("Env", json!([env]), "/Env", json!(["E=service1 web node1 alpha linux task1 web.3.task1"]));
    check("Hostname", json!("{{.Service.Name}}-{{.Task.Slot}}"), "/Hostname", json!("web-3"));
    check(
        "Env",
        json!([r#"T={{index .Service.Labels "tier"}}{{index .Service.Labels "none"}}"#]),
        "/Env",
        json!(["T=front"]),
    );
    check("Env", json!(["P={{.Node.Platform}}"]), "/Env", json!(["P={x86_64 linux}"]));
    let template = |env: &str| json!({"ContainerSpec": {"Image": "x", "Env": [env]}});
    refused(
        template("A={{.Novel}}"),
        "expanding env failed: can't evaluate field Novel: known are .Service.ID",
    );
    refused(template("A={{.Task.ID"), "expanding env failed");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let with = |key: &str, value: Value| json!({"ContainerSpec": {"Image": "x", key: value}});
    refused(with("Secrets", json!([{"SecretID": "s"}])), "ContainerSpec.Secrets: secret  has no target file");
    refused(
        with("Configs", json!([{"ConfigID": "c", "Runtime": {"a": 1}}])),
        "ContainerSpec.Configs.Runtime",
    );
    refused(with("Novel", json!({"a": 1})), "ContainerSpec.Novel");
    refused(with("Isolation", json!("hyperv")), "Isolation");
    refused(
        with("Privileges", json!({"CredentialSpec": {"File": "f"}})),
        "ContainerSpec.Privileges.CredentialSpec",
    );
    refused(with("Hosts", json!(["10.0.0.1"])), "names no host");
    refused(with("TTY", json!("yes")), "ContainerSpec: ");
    let beside = |key: &str, value: Value| json!({"ContainerSpec": {"Image": "x"}, key: value});
    refused(beside("Runtime", json!("plugin")), "Runtime");
    refused(json!({}), "without ContainerSpec");
}

#[test]
fn a_plain_creates_empty_blocks_are_no_demands() {
    let body =
        made(json!({"Init": false, "DNSConfig": {}, "Isolation": "default", "Secrets": null, "Configs": []}));
    assert_eq!(body["HostConfig"]["Init"], json!(false));
    assert_eq!(body.get("Env"), None, "absent stays absent");
    made(json!({"Privileges": {"CredentialSpec": {"Config": "", "File": "", "Registry": null}}}));
}

#[test]
fn secrets_and_configs_are_bound_read_only_where_they_are_wanted() {
    let template = json!({"ContainerSpec": {
        "Image": "x",
        "Mounts": [{"Type": "tmpfs", "Target": "/tmp"}],
        "Secrets": [
            {"File": {"Name": "a", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": "s", "SecretName": "a"},
            {"File": {"Name": "/etc/b", "UID": "33", "GID": "7", "Mode": 256}, "SecretID": "s", "SecretName": "a"},
        ],
        "Configs": [{"File": {"Name": "c.yml"}, "ConfigID": "c", "ConfigName": "c"}],
    }});
    let plan =
        plan(&assignment(template), &node(), &NodeNames::default(), Path::new("/files")).expect("a plan");
    let seen: Vec<_> = plan
        .files
        .iter()
        .map(|file| (file.id.as_str(), file.target.as_str(), file.owner, file.permissions))
        .collect();
    let expected = [
        ("s", "/run/secrets/a", (0, 0), 0o444),
        ("s", "/etc/b", (33, 7), 0o400),
        ("c", "/c.yml", (0, 0), 0o444),
    ];
    assert_eq!(seen, expected);
    let sources: Vec<_> = plan.files.iter().map(|file| file.source.display().to_string()).collect();
    assert_eq!(sources, ["/files/task-task1/0", "/files/task-task1/1", "/files/task-task1/2"]);
    let body = serde_json::to_value(plan.body).unwrap();
    let mounts = body["HostConfig"]["Mounts"].as_array().unwrap();
    assert_eq!(mounts.len(), 4, "the user's mount stays: {mounts:?}");
    let bound =
        json!({"Type": "bind", "Source": "/files/task-task1/1", "Target": "/etc/b", "ReadOnly": true});
    assert_eq!(mounts[2], bound);
}

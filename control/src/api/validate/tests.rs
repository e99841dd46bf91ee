//! Tests of specs that are one field away from a valid one.

use serde_json::{Value, json};

use super::*;

/// A valid spec, with the field at `pointer` set to `value`.
fn spec_with(pointer: &str, value: Value) -> ServiceSpec {
    let mut spec = json!({
        "Name": "web",
        "TaskTemplate": {"ContainerSpec": {"Image": "nginx:latest"}},
        "Mode": {"Replicated": {"Replicas": 1}}
    });
    let mut place = &mut spec;
    for part in pointer.split('.') {
        place = &mut place[part];
    }
    *place = value;
    serde_json::from_value(spec).unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "tables read better with values")]
fn check(pointer: &str, value: Value, expected: Option<&str>) {
    let seen = service_spec(&spec_with(pointer, value.clone())).err().map(|error| error.to_string());
    assert_eq!(seen.as_deref(), expected, "for {pointer} = {value}");
}

#[test]
fn names_are_dns_labels() {
    let long = "a".repeat(64);
    for (name, expected) in [
        ("web", None),
        ("Web-2_b", None),
        ("", Some("meta: name must be provided")),
        ("web.b", Some("name must be valid as a DNS name component")),
        ("-web", Some("name must be valid as a DNS name component")),
        ("web_", Some("name must be valid as a DNS name component")),
        ("wéb", Some("name must be valid as a DNS name component")),
        (&long[..63], None),
        (&long, Some("name must be 63 characters or fewer")),
    ] {
        check("Name", json!(name), expected);
    }
}

#[test]
fn an_image_is_required_and_has_a_valid_reference() {
    check("TaskTemplate.ContainerSpec", Value::Null, Some("mismatched Runtime and *Spec fields"));
    let digest = format!("nginx:1@sha256:{}", "ab".repeat(32));
    for (image, expected) in [
        ("nginx", None),
        ("registry.local:5000/team/web:1.2", None),
        ("[::1]:5000/web", None),
        (digest.as_str(), None),
        ("", Some("ContainerSpec: image reference must be provided")),
        ("Nginx", Some("ContainerSpec: \"Nginx\" is not a valid repository/tag")),
        ("a b", Some("ContainerSpec: \"a b\" is not a valid repository/tag")),
        ("nginx:", Some("ContainerSpec: \"nginx:\" is not a valid repository/tag")),
        ("nginx@sha256:12", Some("ContainerSpec: \"nginx@sha256:12\" is not a valid repository/tag")),
        ("a//b", Some("ContainerSpec: \"a//b\" is not a valid repository/tag")),
    ] {
        check("TaskTemplate.ContainerSpec.Image", json!(image), expected);
    }
}

#[test]
fn mesh_labels_are_known_and_have_valid_values() {
    check("Labels", json!({"mesh.lb.policy": "least-connections", "other": "x"}), None);
    check(
        "Labels",
        json!({"mesh.lb.policy": "fastest"}),
        Some(
            "invalid label mesh.lb.policy=fastest: must be one of round-robin, random, least-connections, least-load, source-hash",
        ),
    );
    let unknown = service_spec(&spec_with("Labels", json!({"mesh.lb.polcy": "random"}))).unwrap_err();
    assert!(matches!(unknown, SpecError::Label(LabelError::Unknown { .. })), "saw {unknown:?}");
    let on_node = |key: &str| {
        let spec = NodeSpec { labels: [(key.to_owned(), "2".to_owned())].into(), ..NodeSpec::default() };
        node_spec(&spec)
    };
    assert_eq!((on_node("zone"), on_node("mesh.lb.weight")), (Ok(()), Ok(())));
    let unknown = on_node("mesh.lb.mode").unwrap_err();
    assert!(matches!(unknown, SpecError::Label(LabelError::UnknownOnNode { .. })), "saw {unknown:?}");
}

#[test]
fn mesh_labels_fit_the_service() {
    let spec = |labels: Value, ports: Value, mode: Value| {
        let mut spec = spec_with("Labels", labels);
        spec.endpoint_spec = serde_json::from_value(json!({"Ports": ports})).unwrap();
        spec.mode = serde_json::from_value(mode).unwrap();
        service_spec(&spec).map_err(|error| error.to_string())
    };
    let udp = |mode| json!([{"Protocol": "udp", "TargetPort": 53, "PublishedPort": 53, "PublishMode": mode}]);
    let replicated = json!({"Replicated": {"Replicas": 1}});
    let proxy = json!({"mesh.lb.mode": "proxy"});
    let refused = spec(proxy.clone(), udp("ingress"), replicated.clone()).unwrap_err();
    assert!(refused.starts_with("invalid label mesh.lb.mode=proxy: port 53/udp"), "saw {refused}");
    assert_eq!(spec(proxy, udp("host"), replicated.clone()), Ok(()), "the mesh doesn't carry a host port");
    let slot = json!({"mesh.lb.weight.2": "5"});
    assert_eq!(spec(slot.clone(), json!([]), replicated), Ok(()));
    let refused = spec(slot, json!([]), json!({"Global": {}})).unwrap_err();
    assert!(
        refused.starts_with("invalid label mesh.lb.weight.2: a global service has no slots"),
        "{refused}"
    );
}

#[test]
fn a_service_has_one_mode() {
    check("Mode", json!({"Global": {}}), None);
    check("Mode", json!({"Replicated": {"Replicas": 65_535}}), None);
    let many = "65536 replicas are too many: at most 65535 a service";
    check("Mode", json!({"Replicated": {"Replicas": 65_536}}), Some(many));
    let message = "service mode must be one of Replicated, Global, ReplicatedJob and GlobalJob";
    check("Mode", json!({"Sometimes": {}}), Some(message));
    let several = "must specify only one service mode";
    check("Mode", json!({"Global": {}, "Replicated": {}}), Some(several));
    check("Mode", json!({"GlobalJob": {}, "ReplicatedJob": {}}), Some(several));
    let many = "65536 replicas are too many: at most 65535 a service";
    check("Mode", json!({"ReplicatedJob": {"TotalCompletions": 65_536}}), Some(many));
    check("Mode", json!({"ReplicatedJob": {}}), None);
    check("Mode", json!({"GlobalJob": {}}), None);
    check("Mode", json!({"GlobalJob": {}, "Global": {}}), Some(several));
}

#[test]
fn ports_can_be_published_or_are_refused() {
    let port = |published: u16| json!({"Protocol": "tcp", "TargetPort": 80, "PublishedPort": published, "PublishMode": "ingress"});
    let check_ports = |ports: Value, expected| check("EndpointSpec", json!({"Ports": ports}), expected);
    check_ports(json!([port(80), port(81)]), None);
    check_ports(json!([port(0), port(0)]), None);
    check_ports(json!([port(80), port(80)]), Some("EndpointSpec: duplicate published ports provided"));
    check_ports(json!([{"PublishedPort": 80}]), Some("EndpointSpec: target port must be provided"));
    check_ports(
        json!([{"Protocol": "sctp", "TargetPort": 9}]),
        Some("EndpointSpec: port 9/sctp can't be published: mesh carries tcp and udp"),
    );
    let udp = |mode| json!([{"Protocol": "udp", "TargetPort": 53, "PublishedPort": 53, "PublishMode": mode}]);
    check_ports(udp("ingress"), None);
    check_ports(
        json!([port(53), {"Protocol": "udp", "TargetPort": 80, "PublishedPort": 53, "PublishMode": "ingress"}]),
        None,
    );
    check_ports(udp("host"), None);
    check_ports(
        (1..=111).map(port).collect(),
        Some("EndpointSpec: 111 ingress ports are too many: at most 110 a service"),
    );
    check(
        "EndpointSpec",
        json!({"Mode": "dnsrr", "Ports": [port(80)]}),
        Some("EndpointSpec: port published with ingress mode can't be used with dnsrr mode"),
    );
    check(
        "EndpointSpec",
        json!({"Mode": "dnsrr", "Ports": [{"TargetPort": 80, "PublishedPort": 80, "PublishMode": "host"}]}),
        None,
    );
    check("EndpointSpec", json!({"Mode": "x"}), Some("invalid endpoint mode 'x': must be vip or dnsrr"));
}

#[test]
fn resources_are_what_the_engine_can_enforce() {
    let resources = |value, expected| check("TaskTemplate.Resources", value, expected);
    resources(json!({"Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 0}, "Reservations": {}}), None);
    resources(
        json!({"Limits": {"NanoCPUs": 100_000}}),
        Some("invalid cpu value 0.0001: Must be at least 0.001"),
    );
    resources(
        json!({"Reservations": {"MemoryBytes": 1024}}),
        Some("invalid memory value 1024: Must be at least 4MiB"),
    );
    resources(json!({"Limits": {"Pids": -2}}), Some("invalid pids limit -2: must not be negative"));
    resources(
        json!({"Limits": {"MemoryBytes": 8_388_608}, "Reservations": {"MemoryBytes": 16_777_216}}),
        Some("memory reservation is larger than the limit: no task could use what it reserves"),
    );
}

#[test]
fn update_policies_have_sensible_figures() {
    check("UpdateConfig", json!({"Parallelism": 2, "MaxFailureRatio": 0.5}), None);
    check("UpdateConfig", json!({"Delay": -1}), Some("TaskSpec: update-delay cannot be negative"));
    check("RollbackConfig", json!({"Monitor": -1}), Some("TaskSpec: rollback-monitor cannot be negative"));
    check(
        "UpdateConfig",
        json!({"MaxFailureRatio": 1.5}),
        Some("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"),
    );
}

#[test]
fn constraints_have_one_operator() {
    let constraints = |text: &str, expected| {
        check("TaskTemplate.Placement", json!({"Constraints": [text]}), expected);
    };
    constraints("node.role==worker", None);
    constraints("node.labels.zone != a", None);
    constraints("node.role==", Some("value '' is invalid"));
    constraints("node.role=worker", Some("constraint expected one operator from ==, !="));
}

#[test]
fn unsupported_features_are_named() {
    for (pointer, value, named) in [
        (
            "TaskTemplate.ContainerSpec.Configs",
            json!([{"ConfigID": "c", "ConfigName": "c", "Runtime": {"a": 1}}]),
            "credential specs are",
        ),
        ("TaskTemplate.ContainerSpec.Mounts", json!([{"Type": "cluster", "Target": "/a"}]), "mount types"),
        ("TaskTemplate.Runtime", json!("plugin"), "runtimes other than container are"),
        ("TaskTemplate.Resources", json!({"SwapBytes": 0}), "swap limits are"),
        ("TaskTemplate.Resources", json!({"MemorySwappiness": 60}), "swap limits are"),
        (
            "TaskTemplate.Networks",
            json!([{"Target": "n", "DriverOpts": {"com.docker.network.endpoint.ifname": "x"}}]),
            "driver options",
        ),
        (
            "TaskTemplate.Networks",
            json!([{"Target": "n", "DriverOpts": {"com.docker.network.endpoint.ifname": ""}}]),
            "driver options",
        ),
    ] {
        let error = service_spec(&spec_with(pointer, value)).unwrap_err();
        assert!(matches!(error, SpecError::NotServed { .. }), "expected a 501 for {pointer}, saw {error:?}");
        assert!(error.to_string().starts_with(named), "expected {named:?} for {pointer}, saw {error}");
    }
    check("TaskTemplate.ContainerSpec.Secrets", json!([]), None);
    check(
        "TaskTemplate.ContainerSpec.Privileges",
        json!({"CredentialSpec": {"Config": "", "File": "", "Registry": ""}}),
        None,
    );
    check("TaskTemplate.PluginSpec", json!({"Name": "", "Disabled": false, "PluginPrivilege": null}), None);
    check("TaskTemplate.NetworkAttachmentSpec", json!({"ContainerID": ""}), None);
    check("TaskTemplate.Runtime", json!("container"), None);
    check(
        "TaskTemplate.ContainerSpec.Mounts",
        json!([{"Type": "bind", "Source": "/a", "Target": "/b"}]),
        None,
    );
}

#[test]
fn two_mounts_cannot_share_a_path() {
    let mount = json!({"Type": "tmpfs", "Target": "/a"});
    check(
        "TaskTemplate.ContainerSpec.Mounts",
        json!([mount, mount]),
        Some("ContainerSpec: duplicate mount point: /a"),
    );
}

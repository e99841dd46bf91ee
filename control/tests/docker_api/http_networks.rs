//! Networks over HTTP: what they are given, what they may ask for, and how they are shown.

use std::collections::BTreeSet;

use mesh_state::Timestamp;
use mesh_state::attachment::AttachedContainer;
use mesh_state::network::VirtualIp;
use mesh_state::store::Op;
use mesh_state::{codec, keys};
use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster, node_id, published};
use crate::http::encoded;

/// Creates a network with these fields beside its name and driver.
async fn create(cluster: &Cluster, name: &str, fields: &Value) -> Answer {
    let mut body = json!({"Name": name, "Driver": "overlay"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    cluster.post("/networks/create", &body).await
}

async fn created(cluster: &Cluster, name: &str, fields: &Value) -> Value {
    let answer = create(cluster, name, fields).await;
    assert_eq!(answer.status, 201, "creating {name} with {fields}: {}", answer.body);
    cluster.get(&format!("/networks/{name}")).await.body
}

#[tokio::test]
async fn networks_get_subnets_of_the_pool_in_turn() {
    let cluster = Cluster::start().await;
    let shown = cluster.get("/info").await.body["Swarm"]["Cluster"].clone();
    assert_eq!((&shown["DefaultAddrPool"], &shown["SubnetSize"]), (&json!(["10.0.0.0/8"]), &json!(24)));
    let first = created(&cluster, "first", &json!({})).await;
    let config = json!([{"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1"}]);
    assert_eq!(first["IPAM"], json!({"Driver": "default", "Options": null, "Config": config}));
    assert_eq!(cluster.delete("/networks/first").await.status, 204);
    let second = created(&cluster, "second", &json!({})).await;
    assert_eq!(second["IPAM"]["Config"][0]["Subnet"], "10.0.1.0/24", "first's subnet rests");
}

#[tokio::test]
async fn networks_made_at_once_get_no_subnet_and_no_number_twice() {
    let cluster = Cluster::start().await;
    let none = json!({});
    let made = tokio::join!(
        create(&cluster, "a", &none),
        create(&cluster, "b", &none),
        create(&cluster, "c", &none),
        create(&cluster, "d", &none),
    );
    for answer in [made.0, made.1, made.2, made.3] {
        assert_eq!(answer.status, 201, "{}", answer.body);
    }
    let snapshot = cluster.context.snapshot();
    let own = || snapshot.networks.values().filter(|network| !network.ingress);
    assert_eq!(own().map(|network| network.subnet).collect::<BTreeSet<_>>().len(), 4);
    assert_eq!(own().map(|network| network.number).collect::<BTreeSet<_>>(), BTreeSet::from([1, 2, 3, 4]));
}

#[tokio::test]
async fn a_network_is_made_and_shown_as_it_was_asked_for() {
    let cluster = Cluster::start().await;
    let config = json!({"Subnet": "172.30.0.0/24", "IPRange": "172.30.0.128/25", "Gateway": "172.30.0.254"});
    let asked = json!({
        "IPAM": {"Driver": "default", "Options": {}, "Config": [config]}, "Internal": true, "Attachable": true,
        "Options": {"com.docker.network.driver.mtu": "1400"}, "Labels": {"a": "1"},
    });
    let shown = created(&cluster, "app", &asked).await;
    assert_eq!(shown["IPAM"]["Config"], json!([config]));
    for field in ["Internal", "Attachable", "Options", "Labels"] {
        assert_eq!(shown[field], asked[field], "{field}");
    }
    let overlapping = json!({"IPAM": {"Config": [{"Subnet": "172.30.0.0/16"}]}});
    let refused = create(&cluster, "other", &overlapping).await;
    let message = "Pool overlaps with other one on this address space: 172.30.0.0/16 overlaps 172.30.0.0/24 of the network app; \
                   choose another --subnet";
    assert_eq!(refused.refusal(), (403, message));
}

#[tokio::test]
async fn network_options_that_are_not_served_are_refused() {
    let cluster = Cluster::start().await;
    for (options, named) in [
        (json!({"Options": {"encrypted": "true"}}), "--opt encrypted"),
        (
            json!({"IPAM": {"Config": [{"Subnet": "10.5.0.0/24"}, {"Subnet": "10.6.0.0/24"}]}}),
            "--subnet given twice",
        ),
    ] {
        let answer = create(&cluster, "n", &options).await;
        let (status, message) = answer.refusal();
        assert!(status == 501 && message.contains(named), "for {options}: {status} {message}");
    }
    assert_eq!(cluster.get("/networks").await.body.as_array().map(Vec::len), Some(1), "nothing was made");
}

#[tokio::test]
async fn the_clusters_networks_are_found_in_their_own_scope_only() {
    let cluster = Cluster::start().await;
    for scope in ["local", "global", "nonsense"] {
        let answer = cluster.get(&format!("/networks/ingress?scope={scope}")).await;
        assert_eq!(answer.refusal(), (404, "network ingress not found"), "in scope {scope}");
    }
    assert_eq!(cluster.get("/networks/ingress?scope=swarm").await.status, 200);
}

/// A cluster with the network `app` and the service `web` on it: a task on node-1, a virtual IP,
/// and an address of node-1.
async fn with_service_on_network() -> Cluster {
    let cluster = Cluster::start().await;
    let config = json!({"IPAM": {"Config": [{"Subnet": "172.30.0.0/20"}]}});
    created(&cluster, "app", &config).await;
    let mut web = published("web", 80);
    web["TaskTemplate"]["Networks"] = json!([{"Target": "app", "Aliases": ["www"]}]);
    let made = cluster.post("/services/create", &web).await;
    assert_eq!((made.status.as_u16(), &made.body["Warnings"]), (201, &Value::Null), "{}", made.body);
    cluster.until("the task runs", |snapshot| snapshot.statuses.len() == 1).await;
    let snapshot = cluster.context.snapshot();
    let mut network = snapshot.networks.values().find(|network| network.name == "app").unwrap().value.clone();
    network.node_addresses.insert(node_id(1).as_str().into(), [172, 30, 0, 3].into());
    let mut service = snapshot.services.values().next().unwrap().value.clone();
    let virtual_ip = VirtualIp { network_id: network.id.clone(), address: [172, 30, 0, 2].into() };
    service.virtual_ips = vec![virtual_ip];
    let ops = vec![
        Op::put(keys::network(&network.id), codec::encode(&network).unwrap()),
        Op::put(keys::service(&service.id), codec::encode(&service).unwrap()),
    ];
    cluster.write(ops).await;
    cluster
}

#[tokio::test]
async fn addresses_of_services_and_tasks_bear_the_subnets_prefix() {
    let cluster = with_service_on_network().await;
    let app = cluster.get("/networks/app").await.body["Id"].clone();
    let service = cluster.service("web").await;
    assert_eq!(service["Endpoint"]["VirtualIPs"], json!([{"NetworkID": app, "Addr": "172.30.0.2/20"}]));
    assert_eq!(service["Endpoint"]["Spec"]["Mode"], "vip");
    let networks = &service["Spec"]["TaskTemplate"]["Networks"];
    assert_eq!(*networks, json!([{"Target": app, "Aliases": ["www"]}]), "the aliases stay");
    let task = cluster.get("/tasks").await.body[0].clone();
    let attachments = task["NetworksAttachments"].as_array().cloned().unwrap_or_default();
    let shown: Vec<_> = attachments
        .iter()
        .map(|one| (one["Network"]["Spec"]["Name"].clone(), one["Addresses"].clone()))
        .collect();
    let expected = [("ingress", "10.128.1.2/24"), ("app", "172.30.0.10/20")];
    assert_eq!(shown, expected.map(|(name, address)| (json!(name), json!([address]))));
}

#[tokio::test]
async fn a_network_with_ipv6_shows_both_subnets_and_its_tasks_both_addresses() {
    let cluster = Cluster::start().await;
    let four = json!({"Subnet": "172.30.0.0/20"});
    let asked = json!({"EnableIPv6": true, "IPAM": {"Config": [{"Subnet": "fd00:55::/64"}, four]}});
    let shown = created(&cluster, "six", &asked).await;
    assert_eq!(shown["EnableIPv6"], true);
    let subnets = json!([{"Subnet": "172.30.0.0/20", "Gateway": "172.30.0.1"},
                         {"Subnet": "fd00:55::/64", "Gateway": "fd00:55::1"}]);
    assert_eq!(shown["IPAM"]["Config"], subnets);
    let chosen = created(&cluster, "chosen", &json!({"EnableIPv6": true})).await;
    let subnet = chosen["IPAM"]["Config"][1]["Subnet"].as_str().unwrap_or_default().to_owned();
    assert!(subnet.starts_with("fd") && subnet.ends_with(":2::/64"), "of the cluster's own: {chosen}");
    let mut web = published("web", 80);
    web["TaskTemplate"]["Networks"] = json!([{"Target": "six"}]);
    assert_eq!(cluster.post("/services/create", &web).await.status, 201);
    cluster.until("the task runs", |snapshot| snapshot.statuses.len() == 1).await;
    let task = cluster.get("/tasks").await.body[0].clone();
    let addresses = &task["NetworksAttachments"][1]["Addresses"];
    assert_eq!(*addresses, json!(["172.30.0.10/20", "fd00:55::ac1e:a/64"]), "{task}");
    let overlapping = json!({"EnableIPv6": true, "IPAM": {"Config": [{"Subnet": "fd00:55::/80"}]}});
    let refused = create(&cluster, "other", &overlapping).await;
    let message = "Pool overlaps with other one on this address space: fd00:55::/80 overlaps fd00:55::/64 of the network six; \
                   choose another --subnet";
    assert_eq!(refused.refusal(), (403, message));
}

#[tokio::test]
async fn a_network_shows_who_is_on_it() {
    let cluster = with_service_on_network().await;
    let task = cluster.get("/tasks").await.body[0]["ID"].as_str().unwrap().to_owned();
    let shown = cluster.get("/networks/app").await.body;
    let endpoint = |name: &str, address: &str| json!({"Name": name, "EndpointID": "", "MacAddress": "", "IPv4Address": address, "IPv6Address": ""});
    let containers = json!({
        "c0ffee": endpoint(&format!("web.1.{task}"), "172.30.0.10/20"),
        "lb-app": endpoint("app-endpoint", "172.30.0.3/20"),
    });
    assert_eq!(shown["Containers"], containers);
    assert_eq!(shown["Peers"], json!([{"Name": "node-1-1nodenodenod", "IP": "10.77.0.11"}]));
    assert_eq!(shown.get("Services"), None, "they are shown on demand");
    let services = json!({"web": {"VIP": "172.30.0.2", "Ports": [], "LocalLBIndex": 0, "Tasks": [
        {"Name": format!("web.1.{task}"), "EndpointID": "", "EndpointIP": "172.30.0.10", "Info": {"Host IP": "10.77.0.11"}}
    ]}});
    assert_eq!(cluster.get("/networks/app?verbose=true").await.body["Services"], services);
    let listed = cluster.get("/networks?filters=%7B%22name%22%3A%5B%22app%22%5D%7D").await.body;
    assert_eq!(listed[0]["Containers"], Value::Null, "a list has no members");
}

#[tokio::test]
async fn a_network_in_use_stays() {
    let cluster = with_service_on_network().await;
    let id = |of: &Value| of["Id"].as_str().or(of["ID"].as_str()).unwrap().to_owned();
    let app = id(&cluster.get("/networks/app").await.body);
    let service = id(&cluster.service("web").await);
    let message =
        format!("rpc error: code = FailedPrecondition desc = network {app} is in use by service {service}");
    assert_eq!(cluster.delete("/networks/app").await.refusal(), (400, message.as_str()));
    assert_eq!(cluster.post("/networks/prune", &json!({})).await.body, json!({"NetworksDeleted": []}));
    assert_eq!(cluster.delete("/services/web").await.status, 200);
    assert_eq!(cluster.delete("/networks/app").await.status, 204);
}

#[tokio::test]
async fn an_attached_container_is_shown_and_keeps_its_network() {
    let cluster = Cluster::start().await;
    created(&cluster, "app", &json!({"Attachable": true})).await;
    let app = cluster.context.snapshot().networks.values().find(|one| one.name == "app").unwrap().id.clone();
    let container = AttachedContainer {
        id: "x1".into(),
        network_id: app.clone(),
        node_id: node_id(1).as_str().into(),
        container_id: "5e11".to_owned(),
        name: "shell".to_owned(),
        hostname: String::new(),
        aliases: Vec::new(),
        wanted: None,
        address: Some([10, 0, 0, 9].into()),
        created_at: Timestamp::default(),
    };
    let key = keys::attachment(&container.id);
    cluster.write(vec![Op::put(key.clone(), codec::encode(&container).unwrap())]).await;
    let shown = cluster.get("/networks/app?verbose=true").await.body;
    let address = (&shown["Containers"]["5e11"]["Name"], &shown["Containers"]["5e11"]["IPv4Address"]);
    assert_eq!(address, (&json!("shell"), &json!("10.0.0.9/24")), "{shown}");
    assert_eq!(shown["Services"][""]["Tasks"][0]["EndpointIP"], "10.0.0.9");
    let message = format!(
        "rpc error: code = FailedPrecondition desc = network {app} is in use by container shell on node {}",
        node_id(1)
    );
    assert_eq!(cluster.delete("/networks/app").await.refusal(), (400, message.as_str()));
    assert_eq!(cluster.post("/networks/prune", &json!({})).await.body, json!({"NetworksDeleted": []}));
    cluster.write(vec![Op::delete(key)]).await;
    assert_eq!(cluster.delete("/networks/app").await.status, 204);
}

/// The values of a list; none if it is absent.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Traefik's swarm provider and Prometheus' discovery parse every address of every service and task
/// as CIDR, and give the whole refresh up at one that isn't: those of tasks without a node and of
/// services without a virtual IP too. They look each network up in the list of networks, and each
/// node by its id.
#[tokio::test]
async fn what_traefik_and_prometheus_read_is_there_and_can_be_parsed() {
    let cluster = with_service_on_network().await;
    let mut late = published("late", 81);
    late["TaskTemplate"]["Networks"] = json!([{"Target": "app"}]);
    cluster.create(&late).await;
    let snapshot = cluster.context.snapshot();
    let mut waiting = snapshot.tasks.values().next().unwrap().value.clone();
    (waiting.id, waiting.node_id) = ("waiting".into(), None);
    waiting.attachments.iter_mut().for_each(|attachment| attachment.address = None);
    cluster.write(vec![Op::put(keys::task(&waiting.id), codec::encode(&waiting).unwrap())]).await;

    assert!(cluster.get("/version").await.body["Version"].is_string());
    let networks = cluster.get("/networks?filters=%7B%22scope%22%3A%7B%22swarm%22%3Atrue%7D%7D").await.body;
    let is_listed =
        |id: &Value| list(&networks).any(|network| network["Id"] == *id && network["Scope"] == "swarm");
    let parse = |written: &Value| {
        written
            .as_str()
            .and_then(|text| text.parse::<ipnet::Ipv4Net>().ok())
            .unwrap_or_else(|| panic!("{written}"))
    };
    let services = cluster.get("/services").await.body;
    for service in list(&services) {
        assert!(
            service["Spec"]["EndpointSpec"].is_object() && service["Spec"]["Labels"].is_object(),
            "{service}"
        );
        for port in list(&service["Endpoint"]["Ports"]) {
            assert!(port["PublishedPort"].is_u64() && port["Protocol"] == "tcp", "{port}");
        }
        for held in list(&service["Endpoint"]["VirtualIPs"]) {
            parse(&held["Addr"]);
            assert!(is_listed(&held["NetworkID"]), "{held} is on a network that isn't listed");
        }
    }
    let tasks = cluster.get("/tasks").await.body;
    assert!(list(&tasks).any(|task| task["ID"] == "waiting"), "a task without a node is listed");
    let mut parsed = 0;
    for task in list(&tasks) {
        assert!(task["Status"]["PortStatus"].is_object(), "{task}");
        for attachment in list(&task["NetworksAttachments"]) {
            assert!(is_listed(&attachment["Network"]["ID"]), "{attachment}");
            parsed += list(&attachment["Addresses"]).map(parse).collect::<Vec<_>>().len();
        }
        if let Some(node) = task["NodeID"].as_str().filter(|node| !node.is_empty()) {
            let node = cluster.get(&format!("/nodes/{node}")).await.body;
            let address = node["Status"]["Addr"].as_str().unwrap();
            assert!(address.parse::<std::net::Ipv4Addr>().is_ok(), "{node}");
        }
    }
    assert!(parsed >= 2, "the task that runs is on two networks: {tasks}");
    // Traefik asks for the tasks of one service.
    let id = list(&services).find(|service| service["Spec"]["Name"] == "web").unwrap()["ID"].clone();
    let filters = json!({"service": {id.as_str().unwrap(): true}, "desired-state": {"running": true}});
    let of_web = cluster.get(&format!("/tasks?filters={}", encoded(&filters.to_string()))).await.body;
    assert!(list(&of_web).count() > 0 && list(&of_web).all(|task| task["ServiceID"] == id), "{of_web}");
}

#[tokio::test]
async fn a_field_that_comes_twice_is_refused() {
    let cluster = Cluster::start().await;
    for (hidden, named) in [
        (json!({"Internal": true, "internal": false}), "Internal"),
        (json!({"Options": {"encrypted": ""}, "options": {}}), "Options"),
        (json!({"IPAM": {"Config": [{"Subnet": "10.9.0.0/24", "subnet": "10.8.0.0/24"}]}}), "Subnet"),
    ] {
        let answer = create(&cluster, "n", &hidden).await;
        let (status, message) = answer.refusal();
        let expected = format!("invalid JSON: the field {named} comes twice, in different spellings");
        assert_eq!((status, message), (400, expected.as_str()), "for {hidden}");
    }
}

#[tokio::test]
async fn a_subnet_with_addresses_of_a_host_is_refused_and_one_that_a_route_covers_is_said() {
    let cluster = Cluster::start().await;
    let host = ["10.66.0.0/16", "192.168.4.7/32"].map(|network| network.parse::<ipnet::Ipv4Net>().unwrap());
    let key = keys::host_networks(&node_id(1).as_str().into());
    cluster.write(vec![Op::put(key, codec::encode(&host).unwrap())]).await;
    let with_subnet = |subnet: &str| json!({"IPAM": {"Config": [{"Subnet": subnet}]}});
    let refused = create(&cluster, "n", &with_subnet("192.168.4.0/24")).await;
    let message = "Pool overlaps with other one on this address space: 192.168.4.0/24 overlaps 192.168.4.7/32 of the host of \
                   node node-1; choose another --subnet";
    assert_eq!(refused.refusal(), (403, message));
    let covered = create(&cluster, "covered", &with_subnet("10.66.5.0/24")).await;
    let warning = "10.66.5.0/24 lies in 10.66.0.0/16 of the host of node node-1: tasks on the network do not reach hosts at its \
                   addresses";
    assert_eq!((covered.status.as_u16(), &covered.body["Warning"]), (201, &json!(warning)));
}

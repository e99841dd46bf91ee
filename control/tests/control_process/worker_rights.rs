//! What a worker's certificate opens: its own node's business, and nothing else. Each forbidden act
//! is tried as a worker could, past its own agent.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::Utc;
use hyper::Method;
use mesh_control::ca::node_of;
use mesh_state::attachment::AttachedContainer;
use mesh_state::fixtures::EtcdProcess;
use mesh_state::proto::membership_client::MembershipClient;
use mesh_state::proto::node_service_client::NodeServiceClient;
use mesh_state::proto::{
    AttachRequest, BecomeManagerRequest, DetachRequest, LogBatch, RenewExpiredRequest, RenewRequest,
};
use mesh_state::store::{EtcdAccess, EtcdIdentity, EtcdStore, Op, Store as _};
use mesh_state::task::TaskState;
use mesh_state::{codec, keys};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Status};

use crate::support::control_process::{Manager, ca_pem};
use crate::support::eventually;
use crate::support::node::{Member, Session, connect, join, publish_logs, report_end};
use crate::{create, run_task, service};

/// What only the other node may see: of its task's spec, and of its secret.
const OF_SPEC: &str = "only-for-the-other-node";
const OF_SECRET: &str = "correct horse battery staple";

/// A cluster of one manager and two nodes, each with a task; the other node's has a secret.
struct Stage {
    etcd: EtcdProcess,
    manager: Manager,
    worker: Member,
    other: Member,
    /// The worker's session and task.
    session: Session,
    task: String,
    /// The other node's.
    others_session: Session,
    others_task: String,
}

async fn post(manager: &Manager, path: &str, body: &Value) -> String {
    let (status, answer) = manager.docker().call(Method::POST, path, Some(body)).await.unwrap();
    assert_eq!(status, 201, "answer to {path}: {answer}");
    answer["ID"].as_str().or(answer["Id"].as_str()).unwrap().to_owned()
}

/// Creates a service whose task runs on `node`, whose session is `session`.
async fn task_on(manager: &Manager, node: &Member, session: &mut Session, mut spec: Value) -> String {
    spec["TaskTemplate"]["Placement"] = json!({"Constraints": [format!("node.id=={}", node.id)]});
    create(manager, &spec).await;
    let first = |seen: &Session| seen.assignments.last().map(|one| one.task.id.to_string());
    let task = session.until("the task", first).await.unwrap();
    let subnet: ipnet::Ipv4Net = session.welcome.subnet.parse().unwrap();
    run_task(session, &task, &subnet.hosts().nth(1).unwrap().to_string()).await;
    let told = |seen: &Session| seen.acknowledged.contains(&task).then_some(());
    session.until("the acknowledgement", told).await.unwrap();
    task
}

impl Stage {
    async fn set() -> Self {
        let etcd = EtcdProcess::start().await.unwrap();
        let manager = Manager::start("m1", &etcd, None).await;
        let (token, ca) = (manager.join_token(), ca_pem(&etcd).await);
        let worker = join(manager.nodes, &token, &ca, "node-1").await.unwrap();
        let other = join(manager.nodes, &token, &ca, "node-2").await.unwrap();
        let mut session = Session::open(manager.nodes, &worker, 0).await.unwrap();
        let mut others_session = Session::open(manager.nodes, &other, 0).await.unwrap();
        let secret = json!({"Name": "x", "Data": BASE64.encode(OF_SECRET)});
        let secret = post(&manager, "/secrets/create", &secret).await;
        let mut spec = service("guarded", 8081);
        spec["Labels"] = json!({"of-spec": OF_SPEC});
        let container = &mut spec["TaskTemplate"]["ContainerSpec"];
        container["Env"] = json!([format!("TOKEN={OF_SPEC}")]);
        container["Args"] = json!([OF_SPEC]);
        container["Secrets"] = json!([{"File": {"Name": "x"}, "SecretID": secret, "SecretName": "x"}]);
        let others_task = task_on(&manager, &other, &mut others_session, spec).await;
        let task = task_on(&manager, &worker, &mut session, service("own", 8082)).await;
        Self { etcd, manager, worker, other, session, task, others_session, others_task }
    }

    fn tls(&self) -> ClientTlsConfig {
        let identity = Identity::from_pem(&self.worker.certificate_pem, &self.worker.key_pem);
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.worker.ca_pem)).identity(identity)
    }

    /// The node service, as the worker.
    async fn client(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(connect(self.manager.nodes, self.tls()).await.unwrap())
    }
}

/// A certificate request for `name`, in the role of a manager.
fn request_as(name: &str, key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationalUnitName, "mesh-manager");
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// One row: what a worker tried, what came of it, and the code of the refusal.
#[track_caller]
fn refused<T>(act: &str, tried: Result<T, Status>, expected: Code) {
    let status = tried.err().unwrap_or_else(|| panic!("a worker could {act}"));
    assert_eq!(status.code(), expected, "{act}: {status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workers_certificate_changes_nothing_of_others() {
    let mut stage = Stage::set().await;
    let store = stage.etcd.store().await.unwrap();
    let network = json!({"Name": "back", "Driver": "overlay", "Attachable": true});
    let network = post(&stage.manager, "/networks/create", &network).await;
    eventually("the network's subnet", async || {
        let (_, network) = stage.manager.docker().get("/networks/back").await.ok()?;
        network["IPAM"]["Config"].as_array().filter(|config| !config.is_empty()).map(|_| ())
    })
    .await;
    let attached = AttachedContainer {
        id: "attachment1".into(),
        network_id: network.as_str().into(),
        node_id: stage.other.id.as_str().into(),
        container_id: String::new(),
        name: "db".to_owned(),
        hostname: String::new(),
        aliases: vec![],
        wanted: None,
        address: None,
        created_at: Utc::now(),
    };
    let key = keys::attachment(&attached.id);
    store.txn(vec![], vec![Op::put(key.clone(), codec::encode(&attached).unwrap())]).await.unwrap();
    let read = stage.manager.docker();
    let log = tokio::spawn(async move { read.get("/services/guarded/logs?stdout=1").await });
    let wanted = |seen: &Session| seen.logs_wanted.last().cloned();
    let ask = stage.others_session.until("a request for logs", wanted).await.unwrap();

    let mut client = stage.client().await;
    let become_manager = BecomeManagerRequest {
        public_key: vec![9; 32],
        advertise: "10.0.0.2:2377".to_owned(),
        name: "m2".to_owned(),
    };
    let become_manager = client.become_manager(become_manager).await;
    refused("become a manager", become_manager, Code::PermissionDenied);
    let detach = client.detach(DetachRequest { attachment_id: "attachment1".to_owned() }).await;
    refused("detach another node's container", detach, Code::PermissionDenied);
    let attach = AttachRequest {
        attachment_id: "attachment1".to_owned(),
        network: "back".to_owned(),
        container_name: "mine".to_owned(),
        ..AttachRequest::default()
    };
    refused("take over another's attachment", client.attach(attach).await, Code::AlreadyExists);
    let batch = LogBatch { ask_id: ask.ask_id.clone(), ..LogBatch::default() };
    let forged = publish_logs(stage.manager.nodes, &stage.worker, vec![batch]).await;
    refused("write another node's log", forged, Code::NotFound);
    let key_of_worker = KeyPair::generate().unwrap();
    let stolen = RenewExpiredRequest {
        certificate_pem: stage.other.certificate_pem.clone(),
        csr_pem: request_as(&stage.other.id, &key_of_worker),
    };
    let mut anybody = MembershipClient::new(connect(stage.manager.nodes, stage.tls()).await.unwrap());
    let renewed = anybody.renew_expired(stolen).await;
    refused("renew another node's certificate", renewed, Code::PermissionDenied);

    log.abort();
    let kept: AttachedContainer = codec::decode(&store.get(&key).await.unwrap().unwrap().value).unwrap();
    assert_eq!((kept.node_id, kept.name), (attached.node_id, attached.name), "the attachment changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_speaks_for_its_own_node_only() {
    let mut stage = Stage::set().await;
    let (mut client, key) = (stage.client().await, KeyPair::generate().unwrap());
    let csr_pem = request_as(&stage.other.id, &key);
    let renewed = client.renew(RenewRequest { csr_pem }).await.unwrap().into_inner().certificate_pem;
    let renewed = CertificateDer::from_pem_slice(renewed.as_bytes()).unwrap();
    assert_eq!(node_of(&renewed), Some(stage.worker.id.as_str().into()), "a certificate in another's name");
    let has = |part: &[u8]| renewed.windows(part.len()).any(|window| window == part);
    assert!(has(b"mesh-worker") && !has(b"mesh-manager"), "a worker made itself a manager");
    report_end(stage.manager.nodes, &stage.worker, &stage.others_task).await.unwrap();
    stage.session.report(&stage.others_task, TaskState::Failed, None).await;
    // The manager writes reports in order: with the worker's own one, it has judged the forged one.
    stage.session.acknowledged.clear();
    stage.session.report(&stage.task, TaskState::Failed, None).await;
    let own = stage.task.clone();
    let told = |seen: &Session| seen.acknowledged.contains(&own).then_some(());
    stage.session.until("the acknowledgement", told).await.unwrap();
    let (_, task) = stage.manager.docker().get(&format!("/tasks/{}", stage.others_task)).await.unwrap();
    assert_eq!(task["Status"]["State"], "running", "a worker ended another node's task: {task}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_told_nothing_of_others_specs_secrets_and_logs() {
    let mut stage = Stage::set().await;
    let read = stage.manager.docker();
    let log = tokio::spawn(async move { read.get("/services/guarded/logs?stdout=1").await });
    let wanted = |seen: &Session| (!seen.logs_wanted.is_empty()).then_some(());
    stage.others_session.until("a request for logs", wanted).await.unwrap();
    // The worker's table has the other task, so its session has caught up with all of the above.
    let others = stage.others_task.clone();
    stage.session.until("the other's backend", |seen| seen.backend_of(&others)).await.unwrap();
    // Once more from the start, as whoever reconnects is told everything that it may know.
    let mut again = Session::open(stage.manager.nodes, &stage.worker, 0).await.unwrap();
    again.until("the other's backend", |seen| seen.backend_of(&others)).await.unwrap();
    for seen in [&stage.session, &again] {
        let all =
            format!("{:?} {:?} {:?} {:?}", seen.tables, seen.assignments, seen.loads, seen.dependencies);
        assert!(!all.contains(OF_SPEC), "a worker is told of another node's spec: {all}");
        assert!(seen.dependencies.is_empty() && seen.logs_wanted.is_empty(), "secrets or logs of others");
        let backend = seen.backend_of(&others).unwrap();
        assert_eq!(backend.container_id, "", "the container of another node");
    }
    let told = format!("{:?} {:?}", stage.others_session.assignments, stage.others_session.dependencies);
    assert!(told.contains(OF_SPEC), "the test looks for what nobody is told");
    log.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workers_certificate_opens_neither_etcd_nor_a_managers_place() {
    let etcd = EtcdProcess::start().await.unwrap();
    let manager = Manager::start("m1", &etcd, None).await;
    let (token, ca) = (manager.join_token(), ca_pem(&etcd).await);
    let worker = join(manager.nodes, &token, &ca, "node-1").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    mesh_runtime::private_file::replace(&certificate, worker.certificate_pem.as_bytes()).unwrap();
    mesh_runtime::private_file::replace(&key, worker.key_pem.as_bytes()).unwrap();
    let access = EtcdAccess { identity: Some(EtcdIdentity { certificate, key }), ..etcd.access() };
    if let Ok(store) = EtcdStore::open(access).await {
        assert!(store.get(keys::CLUSTER).await.is_err(), "a worker read the cluster's record");
        let write = vec![Op::put("/mesh/v1/x".to_owned(), b"x".to_vec())];
        assert!(store.txn(vec![], write).await.is_err(), "a worker wrote to etcd");
    }

    // A worker's token makes workers: the managers' is another secret, of which it knows nothing.
    let joined = join(manager.nodes, &token, &ca, "node-2").await.unwrap();
    let role = eventually("the new node", async || {
        let (_, node) = manager.docker().get(&format!("/nodes/{}", joined.id)).await.ok()?;
        node["Spec"]["Role"].as_str().map(str::to_owned)
    })
    .await;
    assert_eq!(role, "worker");
    let (_, swarm) = manager.docker().get("/swarm").await.unwrap();
    let managers = swarm["JoinTokens"]["Manager"].as_str().unwrap();
    let secret = |token: &str| token.rsplit('-').next().unwrap().to_owned();
    assert_ne!(secret(managers), secret(&token));
}

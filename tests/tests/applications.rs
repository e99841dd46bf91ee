//! Tests of real applications from Debian's packages, as users run them: a database with its
//! passwords in secrets, a registry with its configuration in a config, a web server that is
//! updated under load.
#![cfg(feature = "cluster")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use std::{env, fs, process};

use anyhow::{Context, Result, ensure};
use mesh_lab::Application;
use mesh_lab::client::http;
use mesh_lab::cluster::{Cluster, Docker, eventually};
use mesh_tests::deposit::Deposit;
use mesh_tests::{PATIENCE, Service, cluster, lab};

/// The deadline for a database's initialisation on a busy machine.
const DATABASE_PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn mariadb_takes_its_passwords_from_secrets_and_is_reached_from_another_node() -> Result<()> {
    let cluster = cluster()?;
    lab::give(&cluster, Application::Mariadb, &["node-2", "node-3"])?;
    let password = Deposit::secret(&cluster, "db-password", b"s3cr3t!'")?;
    let server = [
        "--detach",
        "--constraint=node.hostname==node-2",
        "--secret=source=db-password,target=mariadb_root_password",
        "--secret=source=db-password,target=mariadb_password",
        "--env=MARIADB_ROOT_PASSWORD_FILE=/run/secrets/mariadb_root_password",
        "--env=MARIADB_PASSWORD_FILE=/run/secrets/mariadb_password",
        "--env=MARIADB_USER=wordpress",
        "--env=MARIADB_DATABASE=wordpress",
        "--publish=3306:3306",
        "--no-resolve-image",
        "mariadb:10.11",
    ];
    let database = Service::create(&cluster, "database", &server)?;
    let client = [
        "--detach",
        "--constraint=node.hostname==node-3",
        "--stop-grace-period=0s",
        "--secret=source=db-password,target=password,mode=0400",
        "--no-resolve-image",
        "--entrypoint=sleep",
        "mariadb:10.11",
        "10000",
    ];
    let client = Service::create(&cluster, "client", &client)?;
    cluster.wait_running(database.name(), 1, PATIENCE)?;
    cluster.wait_running(client.name(), 1, PATIENCE)?;
    let containers = cluster.containers(client.name())?;
    let (id, _) = containers["node-3"].first().context("the client doesn't run on node-3")?;
    let docker = Docker::towards(&cluster.node("node-3")?.mesh_host);
    // The password stays in files: the client reads it from one on a tmpfs, so that it is in no
    // argument and no variable.
    let query = |address: &str, sql: &str| {
        let script = format!(
            "printf '[client]\\nuser=wordpress\\npassword=\"%s\"\\n' \"$(cat /run/secrets/password)\" > /dev/shm/client.cnf && \
             mariadb --defaults-file=/dev/shm/client.cnf --host={address} --batch --skip-column-names wordpress --execute \"{sql}\""
        );
        docker.run(&["exec", id, "sh", "-c", &script])
    };
    let first = cluster.record.nodes[0].ip.to_string();
    let who = eventually("a login", DATABASE_PATIENCE, || query(&first, "select current_user()"))?;
    ensure!(who.trim() == "wordpress@%", "logged in as {who}");
    query(&first, "create table posts (title text); insert into posts values ('hello mesh')")?;
    for node in &cluster.record.nodes {
        let title = query(&node.ip.to_string(), "select title from posts")?;
        ensure!(title.trim() == "hello mesh", "through {} the table holds: {title}", node.name);
    }
    let wrong = docker.refused(&[
        "exec",
        id,
        "mariadb",
        &format!("--host={first}"),
        "--user=wordpress",
        "--password=wrong",
        "--execute=select 1",
    ])?;
    ensure!(wrong.message.contains("Access denied"), "a wrong password said: {}", wrong.message);
    drop((client, database, password));
    Ok(())
}

const REGISTRY_CONFIG: &str = "\
version: 0.1
log: {accesslog: {disabled: false}}
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: ':5000', secret: not-needed-by-one-replica}
auth: {htpasswd: {realm: team, path: /run/secrets/registry-users}}
";
const REGISTRY_PASSWORD: &str = "open sesame";
/// As `htpasswd -B` writes it.
const REGISTRY_USERS: &str = "team:$2b$05$HZU0ZfQtypxkLpZlAP7OhehfuTbfoAEzK2Apz1FqigES4fDJ5Jqjy\n";

#[test]
fn images_are_pushed_to_a_registry_and_pulled_by_any_nodes_address() -> Result<()> {
    let cluster = cluster()?;
    lab::give(&cluster, Application::Registry, &["node-3"])?;
    let config = Deposit::config(&cluster, "registry-config", REGISTRY_CONFIG.as_bytes())?;
    let users = Deposit::secret(&cluster, "registry-users", REGISTRY_USERS.as_bytes())?;
    let arguments = [
        "--detach",
        "--constraint=node.hostname==node-3",
        "--config=source=registry-config,target=/etc/docker/registry/config.yml",
        "--secret=registry-users",
        "--publish=5000:5000",
        "--no-resolve-image",
        "registry:2",
    ];
    let registry = Service::create(&cluster, "registry", &arguments)?;
    cluster.wait_running(registry.name(), 1, PATIENCE)?;
    let logged_in = log_in(&cluster)?;
    // Pushes through the node after the pushing one, pulls through the next.
    let nodes = &cluster.record.nodes;
    let docker = Docker::towards(&nodes[0].mesh_host);
    let pushed = format!("{}:5000/team/box:1", nodes[1 % nodes.len()].ip);
    docker.run(&["tag", "busybox:latest", &pushed])?;
    docker.refused(&["--config=/nonexistent", "push", &pushed])?;
    let said = docker.run(&["--config", &logged_in, "push", &pushed]);
    docker.run(&["rmi", &pushed])?;
    ensure!(said?.contains("digest: sha256:"), "the push named no digest");
    for (number, node) in nodes.iter().enumerate() {
        let docker = Docker::towards(&node.mesh_host);
        let through = format!("{}:5000/team/box:1", nodes[(number + 2) % nodes.len()].ip);
        docker.run(&["--config", &logged_in, "pull", "--quiet", &through])?;
        let said = docker.run(&["run", "--rm", &through, "echo", "pulled"]);
        docker.run(&["rmi", &through])?;
        ensure!(said?.trim() == "pulled", "{} can't run what it pulled through {through}", node.name);
    }
    let ran = runs_what_it_pulls(&cluster, &pushed, &logged_in);
    fs::remove_dir_all(&logged_in).context("remove the logins")?;
    drop((registry, users, config));
    ran
}

/// Logs in to the registry by each node's address; returns the CLI's configuration directory with
/// the logins.
fn log_in(cluster: &Cluster) -> Result<String> {
    let docker = cluster.docker()?;
    let directory = env::temp_dir().join(format!("mesh-registry-{}", process::id()));
    let directory = directory.to_str().context("a name in UTF-8")?;
    let password = format!("--password={REGISTRY_PASSWORD}");
    for server in cluster.everywhere(5000) {
        let server = server.to_string();
        let log_in = ["--config", directory, "login", "--username=team", &password, &server];
        eventually("the registry", PATIENCE, || docker.run(&log_in).map(drop))?;
    }
    Ok(directory.to_owned())
}

/// Creates a service with an image that no node has: each node pulls it through the mesh, if the
/// service has the registry's credentials.
fn runs_what_it_pulls(cluster: &Cluster, image: &str, logged_in: &str) -> Result<()> {
    let quickly = ["--stop-grace-period=0s", "--update-parallelism=0", "--restart-delay=1s"];
    let arguments = [&["--detach", "--mode=global"], quickly.as_slice(), &[image, "sleep", "10000"]].concat();
    let service = Service::create(cluster, "puller", &arguments)?;
    let docker = cluster.docker()?;
    eventually("tasks without credentials to be rejected", PATIENCE, || {
        let rows = docker.tasks(service.name())?;
        ensure!(rows.iter().any(|row| row.error.contains("No such image")), "tasks: {rows:#?}");
        Ok(())
    })?;
    let update = ["service", "update", "--detach", "--with-registry-auth", "--force", service.name()];
    docker.run(&[&["--config", logged_in], update.as_slice()].concat())?;
    cluster.wait_running(service.name(), cluster.record.nodes.len(), PATIENCE)?;
    drop(service);
    for node in &cluster.record.nodes {
        let docker = Docker::towards(&node.mesh_host);
        // Containers of ended tasks use the image for a moment.
        eventually("the image's removal", PATIENCE, || {
            let listed = docker.run(&[
                "images",
                "--digests",
                "--filter",
                "reference=*:5000/team/box",
                "--format",
                "{{.Repository}}@{{.Digest}}",
            ])?;
            listed.lines().try_for_each(|name| docker.run(&["rmi", name]).map(drop))
        })?;
    }
    Ok(())
}

#[test]
fn nginx_is_updated_while_it_is_read() -> Result<()> {
    let cluster = cluster()?;
    let arguments = ["--detach", "--replicas=3", "--publish=8104:80", "nginx:1.10"];
    let service = Service::create(&cluster, "site", &arguments)?;
    cluster.wait_running(service.name(), 3, PATIENCE)?;
    let servers = cluster.everywhere(8104);
    for server in &servers {
        eventually("the page", PATIENCE, || cluster.ask(*server, "/").map(drop))?;
    }
    let (asked, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let read = || {
        cluster.client().run(|| {
            for server in servers.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                let response = http::get(*server, "/", http::DEADLINE)?;
                ensure!(response.status == 200, "{server} answered {}", response.status);
                asked.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        })
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(read);
        let updated = update(&cluster, service.name());
        stop.store(true, Ordering::Relaxed);
        let read_well = reader.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the reader panicked")));
        updated.and(read_well)
    })?;
    ensure!(asked.into_inner() > 100, "too few requests to detect a loss");
    for server in &servers {
        let page = cluster.ask(*server, "/")?;
        ensure!(page.contains("nginx:1.11"), "{server} showed {page}");
    }
    Ok(())
}

fn update(cluster: &Cluster, service: &str) -> Result<()> {
    let docker = cluster.docker()?;
    let order = ["--update-order=start-first", "--update-monitor=200ms", "--image=nginx:1.11"];
    docker.run(&[&["service", "update", "--detach"], order.as_slice(), &[service]].concat())?;
    eventually("the update's end", PATIENCE, || {
        let state = docker.run(&["service", "inspect", "--format", "{{.UpdateStatus.State}}", service])?;
        ensure!(state.trim() == "completed", "update: {state}");
        Ok(())
    })
}

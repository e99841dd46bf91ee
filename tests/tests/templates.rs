//! Tests of Go templates in specs, secrets and configs, on real engines.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::{Cluster, Docker};
use mesh_tests::deposit::Deposit;
use mesh_tests::{PATIENCE, Service, cluster};

/// Runs a command in the only task of a service.
fn inside(cluster: &Cluster, service: &Service, words: &[&str]) -> Result<String> {
    cluster.wait_running(service.name(), 1, PATIENCE)?;
    let containers = cluster.containers(service.name())?;
    let (node, tasks) = containers.iter().find(|(_, tasks)| !tasks.is_empty()).context("no container")?;
    Docker::towards(&cluster.node(node)?.mesh_host).run(&[&["exec", tasks[0].0.as_str()], words].concat())
}

#[test]
fn secrets_and_configs_are_expanded_for_each_task() -> Result<()> {
    let cluster = cluster()?;
    let password = Deposit::secret(&cluster, "tmpl-password", b"hunter2")?;
    let plain = Deposit::config(&cluster, "tmpl-plain", b"{{not a template}}")?;
    let url = r#"db://{{.Service.Name}}:{{secret "pw"}}@{{env "DB_HOST"}}/{{.Task.Slot}}"#;
    let secret = Deposit::template(&cluster, "secret", "tmpl-url", url)?;
    let text = r#"{{if eq .Service.Name "templated"}}{{config "plain.txt"}}{{end}} {{.Node.Platform.OS}}"#;
    let config = Deposit::template(&cluster, "config", "tmpl-conf", text)?;
    let shown =
        cluster.docker()?.run(&["config", "inspect", "-f", "{{json .Spec.Templating}}", config.name()])?;
    ensure!(shown.contains(r#""Name":"golang""#), "inspect shows the template driver as {shown}");
    let arguments = [
        "--secret=source=tmpl-password,target=pw",
        "--secret=source=tmpl-url,target=url,mode=0400",
        "--config=source=tmpl-plain,target=plain.txt",
        "--config=source=tmpl-conf,target=/etc/app.conf",
        "--env=DB_HOST=db.example",
        "--stop-grace-period=0s",
        "busybox",
        "sleep",
        "10000",
    ];
    let service = Service::create(&cluster, "templated", &arguments)?;
    let files = inside(&cluster, &service, &["cat", "/run/secrets/url", "/etc/app.conf"])?;
    let expected = "db://templated:hunter2@db.example/1{{not a template}} linux";
    ensure!(files == expected, "expected {expected:?}, saw {files:?}");
    drop(service);
    drop((password, plain, secret, config));
    Ok(())
}

#[test]
fn a_spec_is_expanded_by_gos_rules_and_refused_when_it_can_not_be() -> Result<()> {
    let cluster = cluster()?;
    let arguments = [
        "--label=a=b",
        "--env",
        r#"FMT={{"{{"}}.Host{{"}}"}} {{.Service.Labels}} {{.Node.Platform.OS}}"#,
        "--stop-grace-period=0s",
        "busybox",
        "sleep",
        "10000",
    ];
    let service = Service::create(&cluster, "formatted", &arguments)?;
    let seen = inside(&cluster, &service, &["sh", "-c", "echo \"$FMT\""])?;
    ensure!(seen == "{{.Host}} map[a:b] linux\n", "the environment holds {seen:?}");
    for template in ["A={{.Nope}}", "A={{"] {
        let refused = cluster
            .docker()?
            .refused(&["service", "create", "-d", "--name", "never", "-e", template, "busybox"])?;
        ensure!(refused.message.contains("expanding env failed"), "{template}: {}", refused.message);
    }
    Ok(())
}

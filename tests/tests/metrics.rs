//! What Prometheus scrapes: well-formed, and true.
#![cfg(feature = "cluster")]

use std::io::Write;
use std::net::SocketAddrV4;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use mesh_tests::{PATIENCE, Service, cluster};
use xtask::client::http;
use xtask::client::load::ask;
use xtask::cluster::{eventually, samples};

#[test]
fn promtool_accepts_every_exposition() -> Result<()> {
    let cluster = cluster()?;
    let _service = Service::create(&cluster, "measured", &["--replicas", "2", "-p", "8099:80", "nginx"])?;
    for server in cluster.everywhere(8099) {
        cluster.ask(server, "/")?;
    }
    for node in &cluster.record.nodes {
        check(&node.name, &cluster.metrics(node)?)?;
        if node.manager {
            let control = SocketAddrV4::new(node.ip, 9465);
            let response = cluster.client().run(|| http::get(control, "/metrics", http::DEADLINE))?;
            check(&format!("control on {}", node.name), &response.text())?;
        }
    }
    Ok(())
}

fn check(whose: &str, exposition: &str) -> Result<()> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start promtool")?;
    promtool.stdin.take().context("no stdin")?.write_all(exposition.as_bytes())?;
    let output = promtool.wait_with_output()?;
    ensure!(
        output.status.success(),
        "promtool on {whose}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn counters_count_what_was_sent() -> Result<()> {
    const REQUESTS: u32 = 60;
    let cluster = cluster()?;
    let service = Service::create(&cluster, "counted", &["--replicas", "3", "-p", "8100:80", "nginx"])?;
    let node = cluster.record.nodes.first().context("no node")?;
    let server = SocketAddrV4::new(node.ip, 8100);
    cluster.client().run(|| (0..REQUESTS).try_for_each(|_| ask(server, "/").map(drop)))?;
    eventually("the requests in the counters", PATIENCE, || {
        let exposition = cluster.metrics(node)?;
        let labels = [("service", service.name())];
        let frontend: f64 = samples(&exposition, "mesh_frontend_connections_total", &labels).iter().sum();
        let backends = samples(&exposition, "mesh_backend_connections_total", &labels);
        let live: f64 = samples(&exposition, "mesh_backend_connections", &labels).iter().sum();
        let total = f64::from(REQUESTS);
        let exact = |seen: f64, wanted: f64| (seen - wanted).abs() < 0.5;
        ensure!(exact(frontend, total), "expected {total} connections, saw {frontend}");
        ensure!(
            backends.len() == 3 && backends.iter().all(|count| exact(*count, total / 3.0)),
            "expected {} on each of three backends, saw {backends:?}",
            total / 3.0
        );
        ensure!(exact(live, 0.0), "expected no live connection left, saw {live}");
        Ok(())
    })
}

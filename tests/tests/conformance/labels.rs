//! Changes of labels while traffic flows: policy, allow-list, mode.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::client::http;
use mesh_lab::cluster::{eventually, samples};
use mesh_tests::PATIENCE;

use crate::behaviour::{Case, Placed};
use crate::ends::{HTTP, PROXIED_HTTP, SERVICE};
use crate::table::Outcome;
use crate::transfer::{client_of, eventually_whoami, page, whoami};

/// Bytes of a download.
const DOWN: usize = 2_000_000;
const POLICIES: [&str; 5] = ["random", "least-connections", "least-load", "source-hash", "round-robin"];

/// A label on the service; dropping this removes it.
struct Label<'a> {
    case: &'a Case<'a>,
    key: &'static str,
}

impl<'a> Label<'a> {
    fn set(case: &'a Case<'a>, key: &'static str, value: &str) -> Result<Self> {
        let label = Self { case, key };
        label.update(&["--label-add", &format!("{key}={value}")])?;
        Ok(label)
    }

    fn update(&self, change: &[&str]) -> Result<()> {
        let arguments = ["service", "update", "--detach"].iter().chain(change).copied().chain([SERVICE]);
        self.case.cluster.docker()?.run(&arguments.collect::<Vec<_>>()).map(drop)
    }
}

impl Drop for Label<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.update(&["--label-rm", self.key]) {
            eprintln!("can't remove label {}: {error:#}", self.key);
        }
    }
}

pub(crate) fn policies(case: &Case<'_>) -> Result<Outcome> {
    let held = hold(case, 2000)?;
    for policy in POLICIES {
        let _label = Label::set(case, "mesh.lb.policy", policy)?;
        in_force(case, policy)?;
        for _ in 0..20 {
            whoami(case).with_context(|| format!("under {policy}"))?;
        }
    }
    finish(held)?;
    Ok(Outcome::Held)
}

pub(crate) fn allow_list(case: &Case<'_>) -> Result<Outcome> {
    let server = case.port(HTTP);
    {
        let _label = Label::set(case, "mesh.lb.allow", "192.0.2.0/24,2001:db8::/32")?;
        eventually("the stranger is kept out", PATIENCE, || {
            let begun = Instant::now();
            let tried = case.as_client(|| Ok(http::get(server, "/", Duration::from_millis(600))))?;
            ensure!(
                tried.is_err(),
                "a client that is not in the list was answered after {:?}",
                begun.elapsed()
            );
            Ok(())
        })?;
    }
    let _label = Label::set(case, "mesh.lb.allow", &format!("192.0.2.0/24,{}", case.client))?;
    eventually_whoami(case, "the client in the list is answered", |_| Ok(()))?;
    Ok(Outcome::Held)
}

pub(crate) fn dsr(case: &Case<'_>) -> Result<Outcome> {
    if case.is_userspace() {
        return Ok(Outcome::LeftOut("userspace: a proxy can't answer with another node's address"));
    }
    let _label = Label::set(case, "mesh.lb.mode", "dsr")?;
    eventually_whoami(case, "an answer past the ingress node", |page| {
        ensure!(client_of(page)? == case.client, "client: {page}");
        Ok(())
    })?;
    passed_by(case)?;
    Ok(Outcome::Held)
}

/// Waits until replies of a remote task bypass the ingress node; those of a local task can't.
fn passed_by(case: &Case<'_>) -> Result<()> {
    if case.placed == Placed::Local {
        return Ok(());
    }
    eventually("a download past the ingress node", PATIENCE, || {
        let before = replied(case)?;
        let path = format!("/bytes?n={DOWN}");
        let body = case.as_client(|| http::get(case.port(HTTP), &path, Duration::from_secs(20)))?.body;
        ensure!(body.len() == DOWN, "{} bytes came", body.len());
        let through = replied(case)? - before;
        ensure!(through < 100_000.0, "{through} bytes of {DOWN} came through {}", case.node.name);
        Ok(())
    })
}

/// The bytes of replies that the node has counted for the HTTP port.
fn replied(case: &Case<'_>) -> Result<f64> {
    let port = HTTP.to_string();
    let labels = [("service", SERVICE), ("port", port.as_str()), ("direction", "reply")];
    let text = case.cluster.metrics(case.node)?;
    Ok(samples(&text, "mesh_frontend_bytes_total", &labels).iter().sum())
}

/// Waits until the node reports the policy.
fn in_force(case: &Case<'_>, policy: &str) -> Result<()> {
    eventually("the policy in force", PATIENCE, || {
        let labels = [("service", SERVICE), ("policy", policy)];
        let seen = samples(&case.cluster.metrics(case.node)?, "mesh_lb_policy_info", &labels);
        ensure!(!seen.is_empty() && seen == vec![1.0; seen.len()], "{policy}: {seen:?}");
        Ok(())
    })
}

pub(crate) fn proxy(case: &Case<'_>) -> Result<Outcome> {
    let server = case.port(PROXIED_HTTP);
    eventually("the client out of a PROXY header", PATIENCE, || {
        let page = page(case, server)?;
        ensure!(page["proxied"] == true, "no header came: {page}");
        ensure!(client_of(&page)? == case.client, "expected the client {}, saw {page}", case.client);
        Ok(Outcome::Held)
    })
}

pub(crate) fn mode_switch(case: &Case<'_>) -> Result<Outcome> {
    if case.is_userspace() {
        return Ok(Outcome::LeftOut("userspace: a proxy can't answer with another node's address"));
    }
    let held = hold(case, 3000)?;
    let _label = Label::set(case, "mesh.lb.mode", "dsr")?;
    passed_by(case)?;
    finish(held)?;
    Ok(Outcome::Held)
}

/// Ten connections whose answers come after `ms`.
fn hold(case: &Case<'_>, ms: u32) -> Result<Vec<std::net::TcpStream>> {
    let server = case.port(HTTP);
    case.as_client(|| {
        (0..10).map(|_| http::open(server, &format!("/slow?ms={ms}"), http::DEADLINE)).collect()
    })
}

fn finish(held: Vec<std::net::TcpStream>) -> Result<()> {
    for (number, mut stream) in held.into_iter().enumerate() {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).with_context(|| format!("connection {number} was cut"))?;
        let answer = http::parse(&bytes).with_context(|| format!("connection {number} was cut"))?;
        ensure!(answer.status == 200, "connection {number} got {}", answer.status);
    }
    Ok(())
}

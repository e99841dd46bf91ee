//! The running shop: its stack, the secret that it needs, and its tasks and virtual IPs by the API.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::Application;
use mesh_lab::cluster::{Cluster, Docker, eventually};
use mesh_tests::deposit::Deposit;
pub(crate) use mesh_tests::network::{Network, virtual_ip};
use mesh_tests::resolver::Resolver;
use mesh_tests::{PATIENCE, lab};

use crate::task::{self, Task};

/// The time that creating a database may take on a busy machine.
pub(crate) const DATABASE_PATIENCE: Duration = Duration::from_mins(1);
/// Services of one task each.
const SINGLES: [&str; 5] = ["web", "php", "db", "cache", "who"];
/// Services with a task on each node.
const GLOBALS: [&str; 2] = ["echo", "stranger"];

/// The deployed stack `shop`; removed with all that belongs to it when the test ends.
pub(crate) struct Shop {
    pub(crate) cluster: Cluster,
    pub(crate) docker: Docker,
    /// Dropped after the stack, which uses it.
    _stack: Stack,
    _password: Deposit,
    /// The nodes' resolver for names outside of the cluster.
    _resolver: Resolver,
}

impl Shop {
    /// Gives the nodes the images, deploys the stack, and waits until all of its tasks run.
    pub(crate) fn open(cluster: &Cluster) -> Result<Self> {
        let nodes: Vec<&str> = cluster.record.nodes.iter().map(|node| node.name.as_str()).collect();
        for application in [Application::Php, Application::Redis, Application::Mariadb] {
            lab::give(cluster, application, &nodes)?;
        }
        let resolver = Resolver::start(&cluster.client(), cluster.record.client.ip)?;
        let password = Deposit::secret(cluster, "db-password", b"s3cr3t!'")?;
        let stack = Stack::deploy(cluster, "shop", &["shop.yml", "probes.yml"])?;
        let shop = Self {
            cluster: cluster.clone(),
            docker: cluster.docker()?,
            _stack: stack,
            _password: password,
            _resolver: resolver,
        };
        for name in SINGLES {
            cluster.wait_running(&format!("shop_{name}"), 1, DATABASE_PATIENCE)?;
        }
        for name in GLOBALS {
            cluster.wait_running(&format!("shop_{name}"), nodes.len(), PATIENCE)?;
        }
        Ok(shop)
    }

    /// The running tasks of a service of the stack, by node name.
    pub(crate) fn tasks(&self, service: &str) -> Result<BTreeMap<String, Task>> {
        task::of_service(&self.cluster, &format!("shop_{service}"))
    }

    /// The only task of a service of the stack.
    pub(crate) fn task(&self, service: &str) -> Result<Task> {
        let mut tasks = self.tasks(service)?;
        ensure!(tasks.len() == 1, "expected one task of {service}, saw {tasks:#?}");
        tasks.pop_first().map(|(_, task)| task).context("no task")
    }

    /// The task of `echo` on the node of the service's only task, and one on another node.
    pub(crate) fn near_and_far(&self, service: &str) -> Result<[Task; 2]> {
        let node = self.task(service)?.node;
        let mut echoes = self.tasks("echo")?;
        let near = echoes.remove(&node).with_context(|| format!("no echo on {node}"))?;
        let (_, far) = echoes.pop_first().context("no echo on another node")?;
        Ok([near, far])
    }

    /// A service's virtual IP on a network of the stack, from `docker service inspect`.
    pub(crate) fn virtual_ip(&self, service: &str, network: &str) -> Result<Ipv4Addr> {
        virtual_ip(&self.docker, &format!("shop_{service}"), &format!("shop_{network}"))
    }
}

/// A stack deployed from the compose files beside this test.
struct Stack {
    name: &'static str,
    cluster: Cluster,
}

impl Stack {
    fn deploy(cluster: &Cluster, name: &'static str, files: &[&str]) -> Result<Self> {
        let stack = Self { name, cluster: cluster.clone() };
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/networks/shop");
        let paths: Vec<String> =
            files.iter().map(|file| directory.join(file).to_string_lossy().into_owned()).collect();
        let mut words = vec!["stack", "deploy", "--detach", "--resolve-image", "never"];
        words.extend(paths.iter().flat_map(|path| ["-c", path.as_str()]));
        words.push(name);
        cluster.docker()?.run(&words)?;
        Ok(stack)
    }

    fn remove(&self) -> Result<()> {
        let docker = self.cluster.docker()?;
        docker.run(&["stack", "rm", "--detach", self.name])?;
        eventually("nothing left of the stack", PATIENCE, || {
            let filter = format!("label=com.docker.stack.namespace={}", self.name);
            for node in &self.cluster.record.nodes {
                let engine = Docker::towards(&node.docker_host);
                let left = engine.run(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}}"])?;
                ensure!(left.is_empty(), "containers on {}: {left}", node.name);
                let of_stack = format!("name={}_", self.name);
                let left = engine.run(&["network", "ls", "--filter", &of_stack, "--format", "{{.Name}}"])?;
                ensure!(left.is_empty(), "networks of {}'s engine: {left}", node.name);
            }
            Ok(())
        })
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("remove stack {}: {error:#}", self.name);
        }
    }
}

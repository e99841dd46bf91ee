//! Network namespaces for one test: a client, two nodes, a task on the second, and a bridge between
//! them in a namespace of its own.
//!
//! Everything has a name with this process's id in it and goes when the guard is dropped.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use aya::programs::{Xdp, XdpMode};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const NODES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 11), Ipv4Addr::new(10, 77, 0, 12)];
pub(crate) const TASK: Ipv4Addr = Ipv4Addr::new(10, 128, 2, 2);

/// The program that bridge-side peers of XDP uplinks must run.
pub(crate) static PASS: &[u8] = aya::include_bytes_aligned!(env!("MESH_PASS_OBJECT"));

/// Runs a command; the panic shows its output if it fails.
pub(crate) fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().expect("sh starts");
    assert!(
        output.status.success(),
        "`{command}` failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that lives in a network namespace; threads and processes that it starts live there too.
pub(crate) struct Inhabitant {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Inhabitant {
    /// Moves in.
    pub(crate) fn of(namespace: &str) -> Self {
        let file = File::open(format!("/run/netns/{namespace}")).expect("the namespace is there");
        let (jobs, received) = mpsc::channel::<Job>();
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
            for job in received {
                job();
            }
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Runs `work` there, and returns its result.
    pub(crate) fn call<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // Nobody waits any more if the test has failed elsewhere.
            drop(done.send(outcome));
        });
        self.jobs.as_ref().expect("the thread runs").send(job).expect("the thread runs");
        match result.recv().expect("the thread answers") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The namespaces, and the threads that live in them.
pub(crate) struct Netlab {
    pub(crate) client: Inhabitant,
    pub(crate) nodes: [Inhabitant; 2],
    pub(crate) task: Inhabitant,
    /// A process in the task's namespace.
    pub(crate) task_process: Child,
    bridge: Inhabitant,
    prefix: String,
    pass: Option<aya::Ebpf>,
}

impl Netlab {
    /// Builds it. With `for_xdp`, the peers of the nodes' uplinks are made ready for native XDP.
    pub(crate) fn new(name: &str, for_xdp: bool) -> Self {
        let prefix = format!("dp{}{name}", std::process::id());
        let p = &prefix;
        for namespace in ["b", "c", "n1", "n2", "t"] {
            run(&format!("ip netns add {p}{namespace}; ip -n {p}{namespace} link set lo up"));
        }
        run(&format!("ip -n {p}b link add br0 type bridge; ip -n {p}b link set br0 up"));
        for (namespace, address) in
            [("c", CLIENT.to_string()), ("n1", NODES[0].to_string()), ("n2", NODES[1].to_string())]
        {
            run(&format!(
                "ip -n {p}b link add {namespace} type veth peer name eth0 netns {p}{namespace}
                 ip -n {p}b link set {namespace} master br0 up
                 ip -n {p}{namespace} addr add {address}/24 dev eth0
                 ip -n {p}{namespace} link set eth0 up
                 ip -n {p}{namespace} route add default via {CLIENT} || true"
            ));
        }
        run(&format!(
            "ip -n {p}n2 link add mesh0 type bridge
             ip -n {p}n2 addr add 10.128.2.1/24 dev mesh0
             ip -n {p}n2 link set mesh0 up
             ip -n {p}n2 link add host1 type veth peer name eth0 netns {p}t
             ip -n {p}n2 link set host1 master mesh0 up
             ip -n {p}t addr add {TASK}/24 dev eth0
             ip -n {p}t link set eth0 mtu 1450 up
             ip -n {p}t route add default via 10.128.2.1"
        ));
        let [client, bridge, task, node_1, node_2] =
            ["c", "b", "t", "n1", "n2"].map(|namespace| Inhabitant::of(&format!("{p}{namespace}")));
        let task_process = task
            .call(|| Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("sleep starts"));
        let pass = for_xdp.then(|| prepare_peers(&bridge));
        Self { client, nodes: [node_1, node_2], task, task_process, bridge, prefix, pass }
    }

    /// Replaces a node's uplink by another of the same name, with another MAC and index.
    pub(crate) fn replace_uplink(&self, node: usize) {
        let (p, namespace) = (&self.prefix, self.node_namespace(node));
        let (peer, address) = (format!("n{}", node + 1), NODES[node]);
        run(&format!(
            "ip -n {namespace} link del eth0
             ip -n {p}b link add {peer} type veth peer name eth0 netns {namespace}
             ip -n {p}b link set {peer} master br0 up
             ip -n {namespace} addr add {address}/24 dev eth0
             ip -n {namespace} link set eth0 up
             ip -n {namespace} route add default via {CLIENT}"
        ));
    }

    /// The name of a node's namespace.
    pub(crate) fn node_namespace(&self, node: usize) -> String {
        format!("{}n{}", self.prefix, node + 1)
    }
}

fn prepare_peers(bridge: &Inhabitant) -> aya::Ebpf {
    bridge.call(|| {
        run("ethtool -K n1 tx off; ethtool -K n2 tx off");
        let mut ebpf = aya::Ebpf::load(PASS).expect("the pass program loads");
        let program: &mut Xdp =
            ebpf.program_mut("mesh_pass").expect("it is there").try_into().expect("it is XDP");
        program.load().expect("the verifier takes it");
        for peer in ["n1", "n2"] {
            program.attach(peer, XdpMode::Driver).expect("it attaches");
        }
        ebpf
    })
}

impl Drop for Netlab {
    fn drop(&mut self) {
        drop(self.task_process.kill());
        drop(self.task_process.wait());
        let pass = self.pass.take();
        self.bridge.call(move || drop(pass));
        for namespace in ["b", "c", "n1", "n2", "t"] {
            let deleted =
                Command::new("ip").args(["netns", "del", &format!("{}{namespace}", self.prefix)]).status();
            if !deleted.is_ok_and(|status| status.success()) {
                eprintln!("namespace {}{namespace} stays behind", self.prefix);
            }
        }
    }
}

//! A veth pair in a namespace of its own: one end sends frames, the measured program runs at the
//! other.
//!
//! The sending end runs a sink, without which the kernel would not accept the frames that come
//! back.

use std::thread;

use anyhow::{Context, Result, bail, ensure};
use aya::Ebpf;
use aya::programs::{ProgramInfo, TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::sys::{Stats, enable_stats};
use mesh_ebpf::generator::{FRAME_LEN, LINES_MAX, Recipe};
use mesh_lab::netns::Netns;

use crate::maps::{ifindex, set_per_cpu};
use crate::objects::Objects;
use crate::programs::xdp;

/// Frames that the kernel sends in one batch.
const BATCH: u32 = 64;
/// The most CPUs that can send at a time: the pair has a queue for each, served by the CPU that
/// fills it.
const QUEUES: &str = "2";
/// The distance between the flow numbers of two CPUs if every frame begins a new flow.
const NEW_FLOWS: u32 = 1 << 28;
/// The end that sends frames.
const SOURCE: &str = "source";
/// The end where programs are measured.
pub(super) const NODE: &str = "node";
/// The bare XDP_TX program.
pub(super) const BARE: &str = "bench_bounce";
/// The same, with a read of one line of memory.
pub(super) const ONE_LINE: &str = "bench_line";
/// The bare program that also finds the sender of a tunnel packet.
pub(super) const SENDER: &str = "bench_sender";
/// The same, which checks the packet's cookie as well.
pub(super) const COOKIE: &str = "bench_cookie";
/// The MAC addresses of both ends.
pub(super) const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The pair with the source of frames. Must be used on a thread inside `netns`.
pub(super) struct Rig {
    pub(super) generator: Ebpf,
    source_ifindex: u32,
    /// The usable CPUs, and how many of them send.
    cpus: Vec<usize>,
    used: usize,
    /// ifindex of the end where programs are measured.
    pub(super) node_ifindex: u32,
    /// The kernel counts run time while this is open.
    _stats: std::os::fd::OwnedFd,
}

/// The runs of a program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runs {
    /// The number of runs.
    pub(super) count: u64,
    /// The mean duration of a run, nanoseconds.
    pub(super) mean_ns: f64,
}

/// Makes the pair in `netns`.
pub(super) fn plug(netns: &Netns) -> Result<()> {
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    let (source_mac, node_mac) = (mac(SOURCE_MAC), mac(NODE_MAC));
    let queues = ["numtxqueues", QUEUES, "numrxqueues", QUEUES];
    let source = ["link", "add", SOURCE, "address", &source_mac];
    let node = ["type", "veth", "peer", "name", NODE, "address", &node_mac];
    netns.ip(&[&source[..], &queues, &node, &queues].concat())?;
    for end in [SOURCE, NODE] {
        // No neighbour discovery, so that only our frames are on the link.
        netns.ip(&["link", "set", end, "addrgenmode", "none", "up"])?;
    }
    Ok(())
}

impl Rig {
    /// Loads the source of frames, and attaches the sink.
    pub(super) fn new(objects: &Objects, cpus: Vec<usize>) -> Result<Self> {
        let mut generator = Ebpf::load(&objects.generator).context("load the source of frames")?;
        xdp(&mut generator, "bench_generate")?.load().context("load bench_generate")?;
        let sink = xdp(&mut generator, "bench_sink")?;
        sink.load().context("load bench_sink")?;
        sink.attach(SOURCE, XdpMode::Driver).context("attach the sink")?;
        for program in [BARE, ONE_LINE, SENDER, COOKIE] {
            xdp(&mut generator, program)?.load().with_context(|| format!("load {program}"))?;
        }
        let stats = enable_stats(Stats::RunTime).context("let the kernel count the time of programs")?;
        Ok(Self {
            generator,
            source_ifindex: ifindex(SOURCE)?,
            cpus,
            used: 1,
            node_ifindex: ifindex(NODE)?,
            _stats: stats,
        })
    }

    /// Sets how many CPUs send from now on.
    pub(super) fn use_cpus(&mut self, count: u32) {
        self.used = (count as usize).min(self.cpus.len());
    }

    /// Sends `frames` frames by the recipe, an equal share from each CPU, each CPU with flows of
    /// its own from number `first` on.
    pub(super) fn send(&mut self, recipe: &Recipe, first: u64, frames: u32) -> Result<()> {
        let (cpus, used) = (self.cpus[..self.used].to_vec(), u32::try_from(self.used)?);
        let (flows, ifindex) = (recipe.flows / used, self.source_ifindex);
        let apart = if recipe.flows == 0 { NEW_FLOWS } else { flows };
        let of_cpu = |cpu: usize| {
            let index = cpus.iter().position(|own| *own == cpu).and_then(|index| u32::try_from(index).ok());
            Recipe { flows, offset: index.unwrap_or(0) * apart, ifindex, ..*recipe }
        };
        set_per_cpu(&mut self.generator, "RECIPE", of_cpu)?;
        set_per_cpu(&mut self.generator, "SENT", |_| first)?;
        let program: &Xdp = self
            .generator
            .program("bench_generate")
            .context("no program bench_generate in the object")?
            .try_into()
            .context("bench_generate as an XDP program")?;
        // A new thread inherits the namespace of its parent, and stays on its CPU.
        thread::scope(|scope| {
            let senders: Vec<_> =
                cpus.iter().map(|cpu| scope.spawn(|| send_from(*cpu, program, frames / used))).collect();
            for sender in senders {
                match sender.join() {
                    Ok(sent) => sent?,
                    Err(_) => bail!("a thread that sends panicked"),
                }
            }
            Ok(())
        })
    }

    /// Measures one of the reference programs.
    pub(super) fn baseline(&mut self, program: &str, recipe: &Recipe, frames: u32) -> Result<Runs> {
        // A frame beyond its table would be dropped, which costs less than what is measured.
        ensure!(recipe.lines <= LINES_MAX, "{} lines, of {LINES_MAX} at most", recipe.lines);
        let baseline = xdp(&mut self.generator, program)?;
        let link = baseline.attach(NODE, XdpMode::Driver).with_context(|| format!("attach {program}"))?;
        self.send(recipe, 0, frames.max(2 * recipe.flows) / 2)?;
        let before = info(xdp(&mut self.generator, program)?)?;
        self.send(recipe, 0, frames)?;
        let baseline = xdp(&mut self.generator, program)?;
        let runs = between(&before, &info(baseline)?)?;
        baseline.detach(link).with_context(|| format!("detach {program}"))?;
        Ok(runs)
    }

    /// Measures `program` of `object`, which must be attached, with `frames` frames. The programs
    /// that it tail-calls are part of its runs.
    pub(super) fn measure(
        &mut self,
        object: &Ebpf,
        program: &str,
        recipe: &Recipe,
        first: u64,
        frames: u32,
    ) -> Result<Runs> {
        let info = || {
            let found =
                object.program(program).with_context(|| format!("no program {program} in the object"))?;
            found.info().context("ask for a program's run time")
        };
        let before = info()?;
        self.send(recipe, first, frames)?;
        between(&before, &info()?)
    }
}

/// Loads `program` of `object` and attaches it at the measured end. Dropping the object detaches
/// it.
pub(super) fn attach(object: &mut Ebpf, program: &str) -> Result<()> {
    let xdp = xdp(object, program)?;
    xdp.load().with_context(|| format!("load {program}"))?;
    xdp.attach(NODE, XdpMode::Driver).with_context(|| format!("attach {program}"))?;
    Ok(())
}

/// Runs the program for `frames` frames on this CPU, where the kernel also runs the other end's
/// program.
fn send_from(cpu: usize, generate: &Xdp, frames: u32) -> Result<()> {
    let mut one = rustix::thread::CpuSet::new();
    one.set(cpu);
    rustix::thread::sched_setaffinity(None, &one).context("stay on one CPU")?;
    let frame = [0; FRAME_LEN];
    let options = TestRunOptions {
        data_in: Some(&frame),
        repeat: frames,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::new()
    };
    generate.test_run(options).context("generate frames")?;
    Ok(())
}

fn between(before: &ProgramInfo, after: &ProgramInfo) -> Result<Runs> {
    let count = after.run_count() - before.run_count();
    ensure!(count > 0, "the program did not run");
    let time = after.run_time().saturating_sub(before.run_time());
    #[expect(clippy::cast_precision_loss, reason = "counts of frames are small")]
    let mean_ns = time.as_nanos() as f64 / count as f64;
    Ok(Runs { count, mean_ns })
}

fn info(program: &Xdp) -> Result<ProgramInfo> {
    program.info().context("ask for a program's run time")
}

//! Attaches programs to interfaces, by links or filters that outlive the agent.
//!
//! Invariants: every link is pinned, every filter is at mesh's place ([`filters`]); one that exists
//! keeps its place and only gets the new program, in one step, so no packet passes without a
//! program. This module detaches a program only if its interface is gone or no longer wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use mesh_ebpf::abi::names;
use tracing::{info, warn};

use super::config::{DatapathMode, TcHooks};
use super::error::DatapathError;
use super::loader;
use super::network::filters::Side;
use super::network::netlink::Link;
use super::pins::Pins;
use super::syscall::pinned_link_ifindex;
use filters::Way;
use mesh_runtime::error_chain;

pub(super) mod filters;
mod veths;
mod xdp;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An interface with a program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttachedHook {
    /// The interface's name.
    pub interface: String,
    /// The hook: `xdp`, `tc` or `tc-egress`.
    pub hook: &'static str,
    /// The mode: `native` or `generic` for XDP, `tcx` or `clsact` for TC.
    pub mode: &'static str,
}

/// The loaded programs, and where they are attached.
pub(super) struct Hooks {
    ebpf: Ebpf,
    pins: Pins,
    mode: DatapathMode,
    way: Way,
    /// The programs in place, by the pins of their links; a filter is at the pin that its link
    /// would have.
    placed: BTreeMap<PathBuf, Placed>,
    /// Indexes of the uplinks that refused XDP, where TC does in `auto`.
    without_xdp: BTreeSet<u32>,
}

/// A program in place.
struct Placed {
    /// The program's name in the object.
    program: &'static str,
    /// The interface to which it was attached.
    link: Link,
    /// How metrics show it.
    hook: AttachedHook,
}

impl Hooks {
    /// Programs that are not attached yet.
    pub(super) fn new(ebpf: Ebpf, pins: Pins, mode: DatapathMode, tc_hooks: TcHooks) -> Self {
        let way = Way::of(tc_hooks);
        Self { ebpf, pins, mode, way, placed: BTreeMap::new(), without_xdp: BTreeSet::new() }
    }

    /// Attaches the programs that the uplinks and the devices need, adopts links that exist,
    /// and removes this version's links on other interfaces.
    ///
    /// # Errors
    /// A program can't be attached; those that were attached before stay.
    pub(super) fn ensure(
        &mut self,
        uplinks: &[Link],
        tunnel: &Link,
        encryption: Option<&Link>,
    ) -> Result<(), DatapathError> {
        self.restore_pins()?;
        let mut wanted = BTreeSet::new();
        // The uplinks first: the tunnel device's program accepts only packets that the uplinks'
        // programs have marked.
        for uplink in uplinks {
            wanted.insert(self.ensure_tc(names::PROGRAM_EGRESS, uplink)?);
            wanted.insert(self.ensure_tc(names::PROGRAM_UPLINK, uplink)?);
            let tries_xdp = match self.mode {
                DatapathMode::Xdp => true,
                // Software devices, veth above all, lose more by XDP than they gain.
                DatapathMode::Auto => uplink.kind.is_none(),
                DatapathMode::Tc => false,
            };
            if tries_xdp {
                wanted.extend(self.ensure_xdp(uplink)?);
            }
        }
        wanted.insert(self.ensure_tc(names::PROGRAM_DEVICE, tunnel)?);
        wanted.insert(self.ensure_tc(names::PROGRAM_TUNNEL, tunnel)?);
        if let Some(device) = encryption {
            wanted.insert(self.ensure_tc(names::PROGRAM_DECRYPTED, device)?);
        }
        self.tidy(&wanted)
    }

    /// Detaches programs that are not wanted any more. Tasks' programs stay until their interface
    /// is gone or the task is detached.
    fn tidy(&mut self, wanted: &BTreeSet<PathBuf>) -> Result<(), DatapathError> {
        let tasks = self.pins.task("");
        for pin in self.pins.links() {
            let is_gone = pin.starts_with(&tasks) && pinned_link_ifindex(&pin).is_ok_and(|index| index == 0);
            if is_gone || (!pin.starts_with(&tasks) && !wanted.contains(&pin)) {
                remove(&pin);
                self.placed.remove(&pin);
            }
        }
        let has_others = self.tidy_filters(wanted)?;
        self.placed.retain(|pin, _| pin.starts_with(&tasks) || wanted.contains(pin));
        // Filters of another version still use its maps.
        self.pins.forget_others(|pin| has_others || pinned_link_ifindex(pin).is_ok_and(|index| index != 0));
        Ok(())
    }

    /// Attaches the program to the device of encrypted networks.
    ///
    /// # Errors
    /// It can't be attached.
    pub(super) fn guard_encryption(&mut self, device: &Link) -> Result<(), DatapathError> {
        self.ensure_tc(names::PROGRAM_DECRYPTED, device).map(drop)
    }

    /// Makes pins again that somebody has removed under the running agent. Maps live on by the
    /// agent's descriptors, and the next agent must find them; a link ends with its pin, so a
    /// task's program is attached anew. [`Hooks::ensure`] restores the uplinks' links.
    fn restore_pins(&mut self) -> Result<(), DatapathError> {
        self.pins.prepare()?;
        for (name, map) in self.ebpf.maps() {
            let Some(known) = names::MAPS.iter().copied().find(|known| *known == name) else { continue };
            let path = self.pins.map(known);
            if path.exists() {
                continue;
            }
            warn!(map = known, pin = %path.display(), "a map's pin was removed: pinning it again");
            map.pin(&path).map_err(|error| DatapathError::Bpffs {
                path: path.clone(),
                source: std::io::Error::other(error),
            })?;
        }
        let tasks = self.pins.task("");
        let is_lost =
            |(pin, placed): &(&PathBuf, &Placed)| pin.starts_with(&tasks) && !self.is_in_force(pin, placed);
        let lost: Vec<PathBuf> = self.placed.iter().filter(is_lost).map(|(pin, _)| pin.clone()).collect();
        for pin in &lost {
            self.restore(pin);
        }
        Ok(())
    }

    /// Where programs are attached now, including tasks' veths.
    pub(super) fn attached(&self) -> Vec<AttachedHook> {
        let mut attached: Vec<_> = self.placed.values().map(|placed| placed.hook.clone()).collect();
        attached.sort_unstable();
        attached
    }

    fn ensure_tc(&mut self, program: &'static str, link: &Link) -> Result<PathBuf, DatapathError> {
        let pin = self.pins.link(&link.name, tc_hook(program).0);
        self.place_tc(program, link, &pin)?;
        Ok(pin)
    }

    fn place_tc(&mut self, program: &'static str, link: &Link, pin: &Path) -> Result<(), DatapathError> {
        if self.is_placed(pin, link) {
            return Ok(());
        }
        let placed = match self.way {
            Way::Tcx => self.place_link(program, link, pin),
            Way::Clsact => self.place_filter(program, link, pin),
        };
        placed.map_err(|source| DatapathError::Attach {
            program,
            interface: link.name.clone(),
            advice: tc_advice(self.way, &source),
            source,
        })?;
        self.note(pin, program, link, tc_hook(program).0, self.way.label());
        Ok(())
    }

    fn place_link(&mut self, program: &'static str, link: &Link, pin: &Path) -> Result<(), BoxError> {
        let classifier = loader::classifier(&mut self.ebpf, program)?;
        let direction = tc_hook(program).1;
        renew(&self.pins, pin, link.index, |present| place_classifier(classifier, link, direction, present))?;
        filters::remove_left(program, link);
        Ok(())
    }

    fn is_placed(&self, pin: &Path, link: &Link) -> bool {
        let is_there = |placed: &Placed| placed.link.index == link.index && self.is_in_force(pin, placed);
        self.placed.get(pin).is_some_and(is_there)
    }

    /// Whether nobody has removed a program that was placed.
    fn is_in_force(&self, pin: &Path, placed: &Placed) -> bool {
        if self.way == Way::Tcx || placed.program == names::PROGRAM_XDP {
            return pin.exists();
        }
        self.has_filter(pin, placed)
    }

    fn note(
        &mut self,
        pin: &Path,
        program: &'static str,
        link: &Link,
        hook: &'static str,
        mode: &'static str,
    ) {
        info!(interface = link.name, hook, mode, "program attached");
        let hook = AttachedHook { interface: link.name.clone(), hook, mode };
        self.placed.insert(pin.to_owned(), Placed { program, link: link.clone(), hook });
    }
}

/// Gives a pinned link the new program if it is on the right interface, else makes and pins a new
/// link. `place` updates the link it is given, or attaches a new one.
fn renew(
    pins: &Pins,
    pin: &Path,
    ifindex: u32,
    mut place: impl FnMut(Option<FdLink>) -> Result<FdLink, BoxError>,
) -> Result<(), BoxError> {
    let present = if pin.exists() { Some(pin.to_owned()) } else { pins.elsewhere(pin) };
    if let Some(present) = present {
        if pinned_link_ifindex(&present)? == ifindex {
            let link = place(Some(PinnedLink::from_pin(&present)?.into()))?;
            if present != *pin {
                link.pin(pin)?;
                std::fs::remove_file(&present)?;
            }
            return Ok(());
        }
        // The link's interface has gone, or another interface has its name now.
        std::fs::remove_file(&present)?;
    }
    place(None)?.pin(pin)?;
    Ok(())
}

/// The hook's name for a TC program, and the direction of its packets.
fn tc_hook(program: &str) -> (&'static str, TcAttachType) {
    match program {
        names::PROGRAM_EGRESS | names::PROGRAM_DEVICE => ("tc-egress", TcAttachType::Egress),
        _ => ("tc", TcAttachType::Ingress),
    }
}

/// The side of an interface that a TC program is for.
fn side_of(program: &str) -> Side {
    match tc_hook(program).1 {
        TcAttachType::Egress => Side::Egress,
        _ => Side::Ingress,
    }
}

fn place_classifier(
    program: &mut SchedClassifier,
    link: &Link,
    direction: TcAttachType,
    present: Option<FdLink>,
) -> Result<FdLink, BoxError> {
    let id = match present {
        Some(present) => program.attach_to_link(present.try_into()?)?,
        None => program.attach_with_options(
            &link.name,
            direction,
            TcAttachOptions::TcxOrder(LinkOrder::default()),
        )?,
    };
    Ok(program.take_link(id)?.try_into()?)
}

fn errno(error: &BoxError) -> Option<i32> {
    match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::SyscallError(error)) => error.io_error.raw_os_error(),
        _ => error.downcast_ref::<std::io::Error>()?.raw_os_error(),
    }
}

/// The next step if a TC program can't be attached: only a kernel that doesn't know the command is
/// too old.
fn tc_advice(way: Way, error: &BoxError) -> &'static str {
    match (way, errno(error)) {
        (_, Some(libc::ENODEV)) => "the interface is gone",
        (_, Some(libc::EPERM | libc::EACCES)) => "the agent needs CAP_BPF and CAP_NET_ADMIN",
        (Way::Tcx, Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            "tcx links need kernel 6.6 or newer: leave --tc-hooks out, and filters of clsact do"
        }
        (Way::Clsact, Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            "the kernel has no clsact filters: load the modules sch_ingress and cls_bpf; \
             --datapath userspace works without"
        }
        (Way::Clsact, _) => "see `tc filter show dev IF ingress` (and egress) for others' filters there",
        (Way::Tcx, _) => "see whether the directory of --bpffs is there and writable",
    }
}

fn remove(pin: &Path) {
    if let Err(error) = std::fs::remove_file(pin) {
        warn!(pin = %pin.display(), error = error_chain(&error), "can't remove the pin of a link");
    }
}

//! Attaches programs to interfaces, by links that outlive the agent.
//!
//! Invariants: every link is pinned; a link that exists keeps its place and only gets the new
//! program, in one step, so no packet passes without a program. This module detaches a link only if
//! its interface is gone or no longer wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode};
use mesh_ebpf::abi::names;
use tracing::{info, warn};

use super::config::DatapathMode;
use super::error::DatapathError;
use super::loader;
use super::network::netlink::{Link, is_veth};
use super::pins::Pins;
use super::syscall::pinned_link_ifindex;
use mesh_runtime::error_chain;

mod veths;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An interface with a program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttachedHook {
    /// The interface's name.
    pub interface: String,
    /// The hook: `xdp`, `tc` or `tc-egress`.
    pub hook: &'static str,
    /// The mode: `native` or `generic` for XDP, `tcx` for TC.
    pub mode: &'static str,
}

/// The loaded programs, and where they are attached.
pub(super) struct Hooks {
    ebpf: Ebpf,
    pins: Pins,
    mode: DatapathMode,
    /// The links in place, by pin.
    placed: BTreeMap<PathBuf, Placed>,
}

/// A link in place.
struct Placed {
    /// The program's name in the object.
    program: &'static str,
    /// The interface for which the link was made.
    link: Link,
    /// How metrics show it.
    hook: AttachedHook,
}

impl Hooks {
    /// Programs that are not attached yet.
    pub(super) fn new(ebpf: Ebpf, pins: Pins, mode: DatapathMode) -> Self {
        Self { ebpf, pins, mode, placed: BTreeMap::new() }
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
        let tasks = self.pins.task("");
        for pin in self.pins.links() {
            let is_gone = pin.starts_with(&tasks) && pinned_link_ifindex(&pin).is_ok_and(|index| index == 0);
            if is_gone || (!pin.starts_with(&tasks) && !wanted.contains(&pin)) {
                remove(&pin);
                self.placed.remove(&pin);
            }
        }
        self.pins.forget_others(|pin| pinned_link_ifindex(pin).is_ok_and(|index| index != 0));
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
        let is_lost = |pin: &&PathBuf| pin.starts_with(&tasks) && !pin.exists();
        let lost: Vec<PathBuf> = self.placed.keys().filter(is_lost).cloned().collect();
        for pin in lost {
            let Some(Placed { program, link, .. }) = self.placed.remove(&pin) else { continue };
            warn!(interface = link.name, pin = %pin.display(), "a task's pin was removed: attaching its program again");
            if let Err(error) = self.place_tc(program, &link, &pin) {
                // The task may have ended: its interface is gone then.
                warn!(interface = link.name, error = %error_chain(&error), "can't attach a task's program again");
            }
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
        let classifier = loader::classifier(&mut self.ebpf, program)?;
        let (hook, direction) = tc_hook(program);
        let place = |present| place_classifier(classifier, link, direction, present);
        renew(&self.pins, pin, link.index, place).map_err(|source| DatapathError::Attach {
            program,
            interface: link.name.clone(),
            advice: tc_advice(&source),
            source,
        })?;
        self.note(pin, program, link, hook, "tcx");
        Ok(())
    }

    /// Attaches XDP in native mode. If the driver has none: nothing in `auto`, generic mode in
    /// `xdp`.
    fn ensure_xdp(&mut self, link: &Link) -> Result<Option<PathBuf>, DatapathError> {
        let pin = self.pins.link(&link.name, "xdp");
        if self.is_placed(&pin, link) {
            return Ok(Some(pin));
        }
        if is_veth(link) {
            warn!(
                interface = link.name,
                "native XDP on a veth works only if its other end runs an XDP program too, with `tx` offload off"
            );
        }
        let xdp = loader::xdp(&mut self.ebpf)?;
        let mut mode = if link.is_xdp_native == Some(false) { "generic" } else { "native" };
        let mut result = renew(&self.pins, &pin, link.index, |present| {
            place_xdp(xdp, link.index, XdpMode::Driver, present)
        });
        if result.as_ref().is_err_and(is_unsupported) {
            if self.mode == DatapathMode::Auto {
                info!(interface = link.name, "the driver has no native XDP: TC takes its packets");
                return Ok(None);
            }
            warn!(
                interface = link.name,
                "the driver has no native XDP: attaching in generic mode, which is no faster than --datapath tc"
            );
            mode = "generic";
            result = renew(&self.pins, &pin, link.index, |present| {
                place_xdp(xdp, link.index, XdpMode::Skb, present)
            });
        }
        result.map_err(|source| DatapathError::Attach {
            program: names::PROGRAM_XDP,
            interface: link.name.clone(),
            advice: xdp_advice(&source),
            source,
        })?;
        self.note(&pin, names::PROGRAM_XDP, link, "xdp", mode);
        Ok(Some(pin))
    }

    fn is_placed(&self, pin: &Path, link: &Link) -> bool {
        self.placed.get(pin).is_some_and(|placed| placed.link.index == link.index) && pin.exists()
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

/// aya falls back to netlink where the kernel has no XDP links; such a link can't be pinned and is
/// refused here.
fn place_xdp(
    program: &mut Xdp,
    ifindex: u32,
    mode: XdpMode,
    present: Option<FdLink>,
) -> Result<FdLink, BoxError> {
    let id = match present {
        Some(present) => program.attach_to_link(present.try_into()?)?,
        None => program.attach_to_if_index(ifindex, mode)?,
    };
    Ok(program.take_link(id)?.try_into()?)
}

fn errno(error: &BoxError) -> Option<i32> {
    match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::SyscallError(error)) => error.io_error.raw_os_error(),
        _ => None,
    }
}

fn is_unsupported(error: &BoxError) -> bool {
    errno(error) == Some(libc::EOPNOTSUPP)
}

/// The next step if a TC program can't be attached: only a kernel that doesn't know the command is
/// too old.
fn tc_advice(error: &BoxError) -> &'static str {
    match errno(error) {
        Some(libc::EINVAL | libc::EOPNOTSUPP) => {
            "tcx links need kernel 6.6 or newer; --datapath userspace works without"
        }
        Some(libc::ENODEV) => "the interface is gone",
        Some(libc::EPERM | libc::EACCES) => "the agent needs CAP_BPF and CAP_NET_ADMIN",
        _ => "see whether the directory of --bpffs is there and writable",
    }
}

fn xdp_advice(error: &BoxError) -> &'static str {
    match errno(error) {
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is there: remove it with `ip link set dev IF xdp off`, or use --datapath tc"
        }
        Some(libc::ERANGE | libc::EINVAL) => {
            "the driver refuses XDP at this MTU or with these offloads: lower the MTU, or use --datapath tc"
        }
        _ => "--datapath tc works without XDP",
    }
}

fn remove(pin: &Path) {
    if let Err(error) = std::fs::remove_file(pin) {
        warn!(pin = %pin.display(), error = error_chain(&error), "can't remove the pin of a link");
    }
}

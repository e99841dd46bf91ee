//! TC programs on kernels without tcx links: as filters, see
//! [`network::filters`](crate::datapath::network::filters).
//!
//! A filter has the name of the pin that its link would have, so both ways have the same
//! bookkeeping, and one takes over from the other without a gap: the new program is in place before
//! the old one goes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use mesh_runtime::error_chain;
use tracing::{debug, info, warn};

use super::{BoxError, Hooks, Placed, remove, side_of};
use crate::datapath::config::TcHooks;
use crate::datapath::error::DatapathError;
use crate::datapath::loader;
use crate::datapath::network::filters::{Filter, Side};
use crate::datapath::network::netlink::{Link, Netlink};

/// How TC programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By tcx links, which are pinned.
    Tcx,
    /// By filters of the `clsact` qdisc.
    Clsact,
}

impl Way {
    /// The way that is set; `auto` asks the kernel.
    pub(super) fn of(setting: TcHooks) -> Self {
        match setting {
            TcHooks::Tcx => Self::Tcx,
            TcHooks::Clsact => Self::Clsact,
            TcHooks::Auto if knows_tcx() => Self::Tcx,
            TcHooks::Auto => {
                info!("the kernel has no tcx links (Linux 6.6): TC programs are filters of clsact qdiscs");
                Self::Clsact
            }
        }
    }

    /// As metrics show it.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Whether the kernel knows tcx links. Distributions port features back, so a version doesn't tell.
fn knows_tcx() -> bool {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Err(ProgramError::SyscallError(error)) => error.io_error.raw_os_error() != Some(libc::EINVAL),
        _ => true,
    }
}

impl Hooks {
    /// Whether programs are attached as filters, which anybody may delete.
    pub(in crate::datapath) fn uses_filters(&self) -> bool {
        self.way == Way::Clsact
    }

    /// Puts a program at mesh's place of an interface.
    pub(super) fn place_filter(
        &mut self,
        program: &'static str,
        link: &Link,
        pin: &Path,
    ) -> Result<(), BoxError> {
        let classifier = loader::classifier(&mut self.ebpf, program)?;
        let fd = classifier.fd()?.as_fd();
        Netlink::open()?.place_filter(link.index, side_of(program), &self.pins.name(pin), fd)?;
        // What an agent has left that attached by links.
        let links = [pin.exists().then(|| pin.to_owned()), self.pins.elsewhere(pin)];
        links.iter().flatten().for_each(|link| remove(link));
        Ok(())
    }

    /// Whether the kernel has the filter still.
    pub(super) fn has_filter(&self, pin: &Path, placed: &Placed) -> bool {
        let side = side_of(placed.program);
        let found = Netlink::open().and_then(|mut netlink| netlink.filter(placed.link.index, side));
        let name = self.pins.name(pin);
        found.is_ok_and(|found| found.and_then(|filter| filter.label).is_some_and(|own| own.hook == name))
    }

    /// Removes the filter under this pin, of a program that was placed.
    pub(super) fn forget_filter(&self, pin: &Path, placed: &Placed) {
        let name = self.pins.name(pin);
        remove_at(placed.link.index, side_of(placed.program), |hook| hook == name);
    }

    /// Removes a task's filter, on whichever veth it is.
    pub(super) fn detach_filters(&self, pin: &Path) {
        let name = self.pins.name(pin);
        let removed = Netlink::open().and_then(|mut netlink| {
            let filters = netlink.filters()?;
            let mut own = filters.iter().filter(|filter| hook(filter) == Some(name.as_str()));
            own.try_for_each(|filter| netlink.remove_filter(filter))
        });
        if let Err(error) = removed {
            warn!(hook = name, error = error_chain(&error), "can't detach a task's filter");
        }
    }

    /// The pins of filters on containers' veths, by the veth's index.
    pub(super) fn filters_by_veth(&self) -> io::Result<Vec<(u32, PathBuf)>> {
        let tasks = self.pins.task("");
        let pin = |filter: &Filter| {
            Some((filter.ifindex, self.pins.named(hook(filter)?))).filter(|(_, pin)| pin.starts_with(&tasks))
        };
        Ok(Netlink::open()?.filters()?.iter().filter_map(pin).collect())
    }

    /// Removes filters on interfaces on which none is wanted any more. Tasks' filters stay until
    /// their tasks are detached. Returns whether there is one that isn't this agent's.
    pub(super) fn tidy_filters(&self, wanted: &BTreeSet<PathBuf>) -> Result<bool, DatapathError> {
        let failed = || DatapathError::netlink("looking through the filters of interfaces");
        let mut netlink = Netlink::open().map_err(failed())?;
        let tasks = self.pins.task("");
        let mut has_others = false;
        for filter in netlink.filters().map_err(failed())? {
            let Some(pin) = hook(&filter).map(|hook| self.pins.named(hook)) else { continue };
            let is_placed = self.way == Way::Clsact
                && self.placed.get(&pin).is_some_and(|placed| placed.link.index == filter.ifindex);
            if pin.starts_with(&tasks) {
                has_others |= !is_placed;
            } else if !is_placed || !wanted.contains(&pin) {
                netlink.remove_filter(&filter).map_err(failed())?;
            }
        }
        Ok(has_others)
    }

    /// Attaches the program of a task again whose pin or filter somebody has removed.
    pub(super) fn restore(&mut self, pin: &Path) {
        let Some(Placed { program, link, .. }) = self.placed.remove(pin) else { return };
        match self.place_tc(program, &link, pin) {
            Ok(()) => {
                warn!(interface = link.name, pin = %pin.display(), "a task's program was removed: attached it again");
            }
            // The task may have ended: its interface is gone then, with its filter.
            Err(error) if self.uses_filters() => {
                debug!(interface = link.name, error = %error_chain(&error), "can't attach a task's program again");
            }
            Err(error) => {
                warn!(interface = link.name, error = %error_chain(&error), "can't attach a task's program again");
            }
        }
    }
}

/// Removes the filter that an agent has left which attached by filters, as a link is in its place.
pub(super) fn remove_left(program: &str, link: &Link) {
    remove_at(link.index, side_of(program), |_| true);
}

fn remove_at(ifindex: u32, side: Side, is_meant: impl FnOnce(&str) -> bool) {
    let removed = Netlink::open().and_then(|mut netlink| match netlink.filter(ifindex, side)? {
        Some(filter) if hook(&filter).is_some_and(is_meant) => netlink.remove_filter(&filter),
        _ => Ok(()),
    });
    if let Err(error) = removed {
        warn!(ifindex, error = error_chain(&error), "can't remove a filter");
    }
}

fn hook(filter: &Filter) -> Option<&str> {
    filter.label.as_ref().map(|label| label.hook.as_str())
}

/// Removes every filter of mesh, of all versions. Returns what was removed, in words.
///
/// # Errors
/// The kernel refuses a query or a removal.
pub(in crate::datapath) fn remove_all() -> Result<Vec<String>, DatapathError> {
    let failed = || DatapathError::netlink("removing filters of interfaces");
    let mut netlink = Netlink::open().map_err(failed())?;
    let mut removed = Vec::new();
    for filter in netlink.filters().map_err(failed())? {
        netlink.remove_filter(&filter).map_err(failed())?;
        removed.extend(hook(&filter).map(|hook| format!("the filter mesh:{hook}")));
    }
    Ok(removed)
}

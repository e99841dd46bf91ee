//! Attaches programs to the host-side veths of containers.
//!
//! A veth has its program from the moment when it becomes a port of a bridge of mesh, which is
//! before the container's process runs and before anyone says whose it is. Its link is pinned under
//! the veth's index then, and under the task's id once the task is known; a filter's name changes
//! likewise.
//!
//! Invariant: a veth has one link or filter of mesh, under whichever name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mesh_ebpf::abi::names;
use mesh_runtime::error_chain;
use tracing::warn;

use super::{Hooks, remove};
use crate::datapath::error::DatapathError;
use crate::datapath::network::cables::Bridge;
use crate::datapath::network::netlink::Link;
use crate::datapath::syscall::pinned_link_ifindex;

impl Hooks {
    /// Attaches the task's program to its host-side veth, or takes over the link that the veth has.
    ///
    /// # Errors
    /// The program can't be attached.
    pub(in crate::datapath) fn attach_task(&mut self, task: &str, veth: &Link) -> Result<(), DatapathError> {
        let (pin, early) = (self.pins.task(task), self.pins.veth(veth.index));
        if early.exists() {
            // Of a veth that the task had before.
            self.forget(&pin);
            std::fs::rename(&early, &pin)
                .map_err(|source| DatapathError::Bpffs { path: early.clone(), source })?;
        }
        if let Some(placed) = self.placed.remove(&early)
            && !self.uses_filters()
        {
            self.placed.insert(pin.clone(), placed);
        }
        // A filter gets its new name by being placed again.
        self.place_tc(names::PROGRAM_TASK, veth, &pin)
    }

    /// Detaches a task's program from its veth, if both still exist.
    pub(in crate::datapath) fn detach_task(&mut self, task: &str) {
        let pin = self.pins.task(task);
        self.forget(&pin);
        if let Some(elsewhere) = self.pins.elsewhere(&pin) {
            remove(&elsewhere);
        }
        if self.uses_filters() {
            self.detach_filters(&pin);
        }
    }

    /// Attaches to each veth the program for its bridge, in the place of an earlier agent's if
    /// there is one. Returns the failures, by the veth's index.
    pub(in crate::datapath) fn attach_veths(
        &mut self,
        veths: &[(Bridge, Link)],
    ) -> BTreeMap<u32, DatapathError> {
        let mut failures = BTreeMap::new();
        if veths.is_empty() {
            return failures;
        }
        let present = self.pins_by_veth();
        for (bridge, veth) in veths {
            let program = match bridge {
                Bridge::Tasks => names::PROGRAM_TASK,
                Bridge::Network(_) => names::PROGRAM_OVERLAY,
            };
            let pin = match present.get(&veth.index).and_then(|pin| pin.file_name()?.to_str()) {
                Some(name) => self.pins.task(name),
                None => self.pins.veth(veth.index),
            };
            if let Err(error) = self.place_tc(program, veth, &pin) {
                failures.insert(veth.index, error);
            }
        }
        failures
    }

    /// Removes the link of a veth that is gone, or no port of a bridge of mesh any more. A task's
    /// own link stays until the task is detached.
    pub(in crate::datapath) fn detach_veth(&mut self, ifindex: u32) {
        let pin = self.pins.veth(ifindex);
        self.forget(&pin);
    }

    fn forget(&mut self, pin: &PathBuf) {
        if let Some(placed) = self.placed.remove(pin)
            && self.uses_filters()
        {
            self.forget_filter(pin, &placed);
        }
        if pin.exists() {
            remove(pin);
        }
    }

    /// The pins of veths' links and filters, by the veth's index.
    fn pins_by_veth(&self) -> BTreeMap<u32, PathBuf> {
        let filters = self.filters_by_veth().unwrap_or_else(|error| {
            warn!(error = error_chain(&error), "can't find the filters of an earlier agent");
            Vec::new()
        });
        let index = |pin: &PathBuf| pinned_link_ifindex(pin).ok().filter(|index| *index != 0);
        let links = self.pins.tasks().into_iter().filter_map(|pin| Some((index(&pin)?, pin)));
        filters.into_iter().chain(links).collect()
    }
}

//! Attaches XDP programs to uplinks.

use std::path::PathBuf;

use aya::programs::links::FdLink;
use aya::programs::{Xdp, XdpMode};
use mesh_ebpf::abi::names;
use mesh_runtime::error_chain;
use tracing::{info, warn};

use super::{BoxError, Hooks, errno, renew};
use crate::datapath::config::DatapathMode;
use crate::datapath::error::DatapathError;
use crate::datapath::loader;
use crate::datapath::network::netlink::{Link, is_veth};

impl Hooks {
    /// Attaches XDP in native mode. Where it is refused, TC does in `auto`.
    pub(super) fn ensure_xdp(&mut self, link: &Link) -> Result<Option<PathBuf>, DatapathError> {
        if self.mode != DatapathMode::Auto {
            return self.attach_xdp(link);
        }
        if self.without_xdp.contains(&link.index) {
            return Ok(None);
        }
        let attached = self.attach_xdp(link).unwrap_or_else(|error| {
            warn!(
                interface = link.name,
                error = error_chain(&error),
                "XDP is refused: TC takes its packets; once the cause is gone, restart the agent"
            );
            None
        });
        if attached.is_none() {
            self.without_xdp.insert(link.index);
        }
        Ok(attached)
    }

    /// Attaches XDP in native mode. If the driver has none: nothing in `auto`, generic mode in
    /// `xdp`.
    fn attach_xdp(&mut self, link: &Link) -> Result<Option<PathBuf>, DatapathError> {
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

fn is_unsupported(error: &BoxError) -> bool {
    errno(error) == Some(libc::EOPNOTSUPP)
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

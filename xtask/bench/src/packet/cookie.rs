//! What the check of a tunnel packet's cookie costs its receiver: the difference between a program
//! that finds the packet's sender among the members, as it would have to without cookies, and one
//! that checks the cookie as well.

use anyhow::Result;
use mesh_ebpf::abi::{Address, Member, member_flag, names};
use mesh_ebpf::generator::Recipe;

use super::rig::{COOKIE, Rig, SENDER};
use super::{case, tables};
use crate::maps::{insert, set};
use crate::samples::Samples;

/// The index of the member that the frames come from.
const INDEX: u32 = 5;
/// The most that the check may add to a packet of a flow that is known, as a part of its cost.
const TARGET: f64 = 0.03;

/// The check's cost, round by round.
#[derive(Debug, Default)]
pub(super) struct CookieCheck {
    nanoseconds: Samples,
    share: Samples,
}

impl CookieCheck {
    /// Makes the member known whose frames are measured.
    pub(super) fn new(rig: &mut Rig) -> Result<Self> {
        insert(&mut rig.generator, names::PEERS, [(Address::from(tables::ADDRESS), INDEX)])?;
        // Where a tunnel packet has its cookie, the frames have zeros. The member's second cookie
        // is zero, so both are compared.
        let member = Member { accepted: [1, 0], flags: member_flag::COOKIE };
        set(&mut rig.generator, names::MEMBERS, [(INDEX, member)])?;
        Ok(Self::default())
    }

    /// Measures the check beside a packet that cost `hit_ns`.
    pub(super) fn measure(&mut self, rig: &mut Rig, recipe: &Recipe, frames: u32, hit_ns: f64) -> Result<()> {
        let without = rig.baseline(SENDER, recipe, frames)?.mean_ns;
        let with = rig.baseline(COOKIE, recipe, frames)?.mean_ns;
        self.nanoseconds.push(with - without);
        self.share.push((with - without) / hit_ns);
        Ok(())
    }

    /// The result, for people; empty if nothing was measured.
    pub(super) fn text(&self) -> String {
        if self.share.is_empty() {
            return String::new();
        }
        let word = if self.share.median() <= TARGET { "met" } else { "missed" };
        format!(
            "- the check of a tunnel packet's cookie: {:.1} ns ({:.1}–{:.1}), {:.1} % of `{}`; ≤ {:.0} % {word}\n",
            self.nanoseconds.median(),
            self.nanoseconds.least(),
            self.nanoseconds.most(),
            self.share.median() * 100.0,
            case::HIT,
            TARGET * 100.0
        )
    }
}

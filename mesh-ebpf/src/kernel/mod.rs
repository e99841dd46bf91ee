//! The kernel's implementations of the pipeline's interfaces: packets at their hooks, maps,
//! sockets, counters; and the step that carries out verdicts.

mod act;
pub(crate) mod atomic;
mod durations;
mod flow_maps;
mod guard;
mod maps;
mod skb;
mod sockets;
mod tables;
mod xdp;

pub use act::{act_skb, act_xdp, hand_over_origin, handed_over, handed_over_origin};
pub use maps::{error, fragment};
pub use skb::{Skb, is_forwarded, origin};
pub use tables::Kernel;
pub use xdp::Xdp;

//! The programs behind the tail call: what would not fit the stack of the hooks' own programs.

/// A program that another one continues in. The number is its index in [`super::names::EDGES`].
///
/// What is handed over lies in the packet's control block (`__sk_buff::cb`), and is part of the ABI as much as a map's
/// layout: see [`Self::Refuse`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Edge {
    /// Makes an ICMP error of a packet. Words of the control block: a [`super::DropReason`]; the node whose tunnel the
    /// error goes back through, as its address lies in memory, 0: out of the interface that the packet came in by.
    Refuse = 0,
    /// An ICMP error at the uplink.
    UplinkError = 1,
    /// An ICMP error out of the tunnel.
    TunnelError = 2,
    /// An ICMP error of a task.
    TaskError = 3,
    /// A fragment at the uplink.
    UplinkFragment = 4,
    /// A fragment out of the tunnel.
    TunnelFragment = 5,
    /// A fragment of a task.
    TaskFragment = 6,
    /// A tunnel packet at the uplink. Not rare, but long.
    Decapsulate = 7,
}

impl Edge {
    /// Every one, in the order of the numbers.
    pub const ALL: [Self; 8] = [
        Self::Refuse,
        Self::UplinkError,
        Self::TunnelError,
        Self::TaskError,
        Self::UplinkFragment,
        Self::TunnelFragment,
        Self::TaskFragment,
        Self::Decapsulate,
    ];

    /// The program's name in the object; the kernel shows 15 characters of it.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Refuse => "mesh_refuse",
            Self::UplinkError => "mesh_uplink_err",
            Self::TunnelError => "mesh_tunnel_err",
            Self::TaskError => "mesh_task_err",
            Self::UplinkFragment => "mesh_uplink_fra",
            Self::TunnelFragment => "mesh_tunnel_fra",
            Self::TaskFragment => "mesh_task_fra",
            Self::Decapsulate => "mesh_decap",
        }
    }

    /// The one with this number; of a number that none has, [`Self::Refuse`].
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::UplinkError,
            2 => Self::TunnelError,
            3 => Self::TaskError,
            4 => Self::UplinkFragment,
            5 => Self::TunnelFragment,
            6 => Self::TaskFragment,
            7 => Self::Decapsulate,
            _ => Self::Refuse,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_come_back() {
        for (index, edge) in Edge::ALL.into_iter().enumerate() {
            assert_eq!(edge as usize, index, "{edge:?}");
            assert_eq!(Edge::from_number(edge as u32), edge);
        }
    }
}

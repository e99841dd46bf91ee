//! The operator's settings of the data plane.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_ebpf::abi::names;
use mesh_ebpf::guard;

use crate::lb::loads::Loads;

/// Which programs take the packets of published ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DatapathMode {
    /// XDP on uplinks whose driver runs it natively, TC on veth and all others.
    Auto,
    /// XDP on every uplink, and TC behind it.
    Xdp,
    /// TC on every uplink.
    Tc,
}

/// How TC programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TcHooks {
    /// By tcx links where the kernel has them (Linux 6.6), by filters elsewhere.
    #[default]
    Auto,
    /// By tcx links.
    Tcx,
    /// By filters of the `clsact` qdisc.
    Clsact,
}

/// Settings of the data plane.
#[derive(Debug, Clone)]
pub struct DatapathConfig {
    /// Which programs to attach.
    pub mode: DatapathMode,
    /// How TC programs are attached.
    pub tc_hooks: TcHooks,
    /// The uplinks; empty: those with a default route.
    pub interfaces: Vec<String>,
    /// The address by which other nodes reach this one; none: the first of the first uplink.
    pub address: Option<Ipv4Addr>,
    /// The directory for pins, below a BPF file system; one is mounted there if there is none.
    pub bpffs: PathBuf,
    /// UDP port of the tunnel, the same on every node.
    pub vxlan_port: u16,
    /// Sizes of the flow tables. They apply to maps that are made anew; pinned ones keep theirs.
    pub tables: TableSizes,
    /// SYNs per second for which each CPU makes flow entries; 0: all. Applies to pinned maps, too.
    pub syn_guard_rate: u32,
    /// The known loads of backends: measured here, and sent by managers.
    pub loads: Arc<Loads>,
    /// How often the flow tables are swept and connections recounted.
    pub sweep_period: Duration,
    /// How often all maps are read back and compared, whether anything changed or not.
    pub resync_period: Duration,
}

/// The number of connections for which the tables have room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSizes {
    /// Connections without a completed handshake.
    pub half_open: u32,
    /// All other connections.
    pub established: u32,
}

impl TableSizes {
    /// Room of the ingress role's flow table.
    pub(super) fn flows(self) -> u32 {
        self.half_open.saturating_add(self.established)
    }
}

impl Default for TableSizes {
    fn default() -> Self {
        Self { half_open: names::HALF_OPEN_MAX, established: names::ESTABLISHED_MAX }
    }
}

impl Default for DatapathConfig {
    fn default() -> Self {
        Self {
            mode: DatapathMode::Auto,
            tc_hooks: TcHooks::Auto,
            interfaces: Vec::new(),
            address: None,
            bpffs: PathBuf::from("/sys/fs/bpf/mesh"),
            vxlan_port: 4799,
            tables: TableSizes::default(),
            syn_guard_rate: guard::RATE,
            loads: Arc::default(),
            sweep_period: Duration::from_secs(5),
            resync_period: Duration::from_secs(30),
        }
    }
}

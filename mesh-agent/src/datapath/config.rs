//! What the operator chooses about the data plane.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_ebpf::abi::names;
use mesh_ebpf::guard;

use crate::lb::loads::Loads;

/// Which programs take the published ports' packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DatapathMode {
    /// XDP on uplinks whose driver runs it natively, TC on veth and all others.
    Auto,
    /// XDP on every uplink, and TC behind it.
    Xdp,
    /// TC on every uplink.
    Tc,
}

/// Settings of the data plane.
#[derive(Debug, Clone)]
pub struct DatapathConfig {
    /// Which programs to attach.
    pub mode: DatapathMode,
    /// The uplinks; empty: those with a default route.
    pub interfaces: Vec<String>,
    /// This node's address towards the others; none: the first of the first uplink.
    pub address: Option<Ipv4Addr>,
    /// Where to pin, below a BPF file system; one is mounted there if there is none.
    pub bpffs: PathBuf,
    /// UDP port of the tunnel, the same on every node.
    pub vxlan_port: u16,
    /// Sizes of the flow tables. They hold for maps that are made anew; pinned ones keep theirs.
    pub tables: TableSizes,
    /// SYNs a second for which each CPU remembers a flow; 0: all. Pinned maps take it over.
    pub syn_guard_rate: u32,
    /// Loads of backends that are known here: measured, and told by managers.
    pub loads: Arc<Loads>,
    /// How often the flow tables are swept and connections recounted.
    pub sweep_period: Duration,
    /// How often everything is read back and compared, whatever changed or not.
    pub resync_period: Duration,
}

/// How many connections there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSizes {
    /// Unconfirmed ones.
    pub half_open: u32,
    /// Others.
    pub established: u32,
}

impl TableSizes {
    /// Flows that the ingress role's table has room for.
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

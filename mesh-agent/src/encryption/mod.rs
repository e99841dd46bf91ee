//! Encrypted networks: carries their packets between nodes in WireGuard tunnels.
//!
//! The kernel programs hand a packet of an encrypted network, with the tunnel's outer headers, to
//! the device [`DEVICE`], and take what comes out of it for such networks only. This component is
//! the device's other end: it encrypts for the node that the outer header names, and decrypts what
//! that node sends. There is one tunnel for each node that has members on an encrypted network of
//! this node's.
//!
//! Invariants: whatever fails, a packet is dropped and not sent in clear, as the programs know no
//! other way out for it; a decrypted packet's outer source is the address of the node whose key
//! encrypted it; a node's private key stays in the agent's memory and in a file that only the agent
//! reads.
//!
//! The protocol itself is [`boringtun`]'s.

mod carry;
mod device;
mod key;
mod tunnels;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_runtime::{error_chain, private_file};
use mesh_state::node::EncryptionEnd;
use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::view::NodeView;
use device::Device;
use key::PrivateKey;

pub(crate) use device::{DEVICE, is_device};
pub use tunnels::overlay_mtu;

/// Why this node can't take part in encrypted networks.
#[derive(Debug, Error)]
pub enum EncryptionError {
    /// The file of the private key can't be read or written.
    #[error("keep the private key in {}", path.display())]
    Key {
        /// Where the key is kept, in the agent's data directory.
        path: PathBuf,
        /// The file system's error.
        #[source]
        source: io::Error,
    },
    /// The kernel refuses the device.
    #[error("make the device {DEVICE} (is /dev/net/tun there, with the kernel module tun?)")]
    Device {
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The socket can't be bound.
    #[error("listen on UDP {address}: choose another port with --wireguard-port")]
    Socket {
        /// Address and port.
        address: SocketAddrV4,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The device or the socket failed.
    #[error("carry packets of encrypted networks")]
    Carry {
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The thread that carries packets could not be started, or ended.
    #[error("run the thread that carries packets of encrypted networks")]
    Thread {
        /// The error of the call that failed.
        #[source]
        source: io::Error,
    },
}

/// The device, the socket and the key, ready to carry packets.
pub struct Encryption {
    key: PrivateKey,
    address: Ipv4Addr,
    device: Device,
    socket: std::net::UdpSocket,
    end: EncryptionEnd,
}

/// Makes the device and binds the socket, before the kernel programs are attached. `mtu` is that of
/// the uplink.
///
/// # Errors
/// The node lacks what encryption needs; each error names the next step.
pub fn open(data_dir: &Path, address: Ipv4Addr, port: u16, mtu: u32) -> Result<Encryption, EncryptionError> {
    let path = data_dir.join(key::FILE);
    let key = PrivateKey::load_or_make(&path).map_err(|source| EncryptionError::Key { path, source })?;
    let listening = SocketAddrV4::new(address, port);
    let socket =
        carry::bind(listening).map_err(|source| EncryptionError::Socket { address: listening, source })?;
    let device =
        Device::make(tunnels::device_mtu(mtu)).map_err(|source| EncryptionError::Device { source })?;
    let end = EncryptionEnd { public_key: key.public_text(), port };
    Ok(Encryption { key, address, device, socket, end })
}

/// Removes the private key from `data_dir`, if there is one. Blocks.
///
/// # Errors
/// The file can't be removed.
pub fn remove_key(data_dir: &Path) -> Result<(), EncryptionError> {
    let path = data_dir.join(key::FILE);
    private_file::remove(&path).map_err(|source| EncryptionError::Key { path, source })
}

impl Encryption {
    /// The node's end of tunnels, as other nodes are to know it.
    pub fn end(&self) -> EncryptionEnd {
        self.end.clone()
    }

    /// Carries packets on a thread of its own until `stop`, with the nodes that the views name.
    ///
    /// # Errors
    /// The device has gone, or the thread can't be started.
    pub async fn run(
        self,
        views: watch::Receiver<Arc<NodeView>>,
        stop: CancellationToken,
    ) -> Result<(), EncryptionError> {
        let (ended, end) = oneshot::channel();
        let work = move || {
            let result = self.run_here(views, stop);
            if let Err(Err(error)) = ended.send(result) {
                tracing::error!(error = %error_chain(&error), "encrypted networks end, and nobody waits for it");
            }
        };
        let thread = std::thread::Builder::new().name("encryption".to_owned());
        thread.spawn(work).map_err(|source| EncryptionError::Thread { source })?;
        end.await.map_err(|_| EncryptionError::Thread { source: io::ErrorKind::BrokenPipe.into() })?
    }

    fn run_here(
        self,
        views: watch::Receiver<Arc<NodeView>>,
        stop: CancellationToken,
    ) -> Result<(), EncryptionError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| EncryptionError::Thread { source })?;
        runtime.block_on(async move {
            let socket = UdpSocket::from_std(self.socket);
            let socket = socket.map_err(|source| EncryptionError::Carry { source })?;
            let tunnels = tunnels::Tunnels::new(self.address, self.key);
            let carried = carry::run(self.device, socket, tunnels, views, stop).await;
            carried.map_err(|source| EncryptionError::Carry { source })
        })
    }
}

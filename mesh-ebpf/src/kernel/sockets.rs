//! Looks up whether a socket of this node owns a connection.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};

use crate::abi::{Address, protocol};
use crate::lookups::Connection;

/// The kernel's number of the state of connected sockets.
const ESTABLISHED: u32 = 1;
/// The kernel's number of the listening state.
const LISTEN: u32 = 10;

/// See [`crate::lookups::Lookups::socket_owns`]. The kernel's lookups fall back to a listening or
/// unconnected socket, which is not an owner: every node binds every published port.
///
/// # Safety
///
/// `context` is that of the present program run.
#[inline(always)]
pub(super) unsafe fn owns(context: *mut c_void, connection: &Connection) -> bool {
    let (mut tuple, len) = tuple(connection);
    let netns = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: `len` bytes of the tuple are initialised; the references are released.
    unsafe {
        if connection.protocol == protocol::UDP {
            let socket = bpf_sk_lookup_udp(context, &raw mut tuple, len, netns, 0);
            if socket.is_null() {
                return false;
            }
            let is_connected = (*socket).state == ESTABLISHED;
            bpf_sk_release(socket.cast());
            return is_connected;
        }
        let socket = bpf_skc_lookup_tcp(context, &raw mut tuple, len, netns, 0);
        if socket.is_null() {
            return false;
        }
        let is_listening = (*socket).state == LISTEN;
        bpf_sk_release(socket.cast());
        !is_listening
    }
}

/// The connection in the form that the kernel's lookups take, and the length of that form.
#[inline(always)]
fn tuple(connection: &Connection) -> (bpf_sock_tuple, u32) {
    // SAFETY: all zeros is a valid tuple.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let ports = (connection.remote_port_be.0, connection.local_port_be.0);
    let (source_port, destination_port) = (u16::from_ne_bytes(ports.0), u16::from_ne_bytes(ports.1));
    if connection.local.is_v4() {
        tuple.__bindgen_anon_1.ipv4.saddr = u32::from_ne_bytes(connection.remote.v4_octets());
        tuple.__bindgen_anon_1.ipv4.daddr = u32::from_ne_bytes(connection.local.v4_octets());
        tuple.__bindgen_anon_1.ipv4.sport = source_port;
        tuple.__bindgen_anon_1.ipv4.dport = destination_port;
        return (tuple, 12);
    }
    tuple.__bindgen_anon_1.ipv6.saddr = words(&connection.remote);
    tuple.__bindgen_anon_1.ipv6.daddr = words(&connection.local);
    tuple.__bindgen_anon_1.ipv6.sport = source_port;
    tuple.__bindgen_anon_1.ipv6.dport = destination_port;
    (tuple, 36)
}

/// The address as four words in network order.
#[inline(always)]
fn words(address: &Address) -> [u32; 4] {
    let word = |at: usize| {
        u32::from_ne_bytes([address.0[at], address.0[at + 1], address.0[at + 2], address.0[at + 3]])
    };
    [word(0), word(4), word(8), word(12)]
}

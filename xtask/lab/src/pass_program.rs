//! An XDP program that passes everything, loaded without aya and pinned.
//!
//! A veth receives what its peer's XDP program transmits only if it runs an XDP program itself. Two
//! instructions need no compiler and no loader, so the lab makes them here and leaves mesh's own
//! programs to the agent.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;

/// `r0 = XDP_PASS; exit`
const INSTRUCTIONS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads; the kernel takes the rest as zero.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The part of `union bpf_attr` that `BPF_OBJ_PIN` reads.
#[repr(C)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Loads the program and pins it at `path`, which is on a bpffs.
pub(super) fn pin(path: &Path) -> Result<()> {
    let program = load().context("load the XDP_PASS program (needs root and a kernel with BPF)")?;
    let name = CString::new(path.as_os_str().as_bytes()).context("a pin's path has no NUL")?;
    let attr = ObjPin {
        pathname: name.as_ptr() as u64,
        bpf_fd: u32::try_from(program.as_raw_fd()).context("a file descriptor is not negative")?,
        file_flags: 0,
    };
    // SAFETY: ObjPin begins like the kernel's attr of this command, and `name` and `program`
    // outlive the call.
    unsafe { bpf(BPF_OBJ_PIN, &attr) }.map(drop).with_context(|| format!("pin {}", path.display()))
}

fn load() -> io::Result<OwnedFd> {
    let mut prog_name = [0; 16];
    prog_name[..8].copy_from_slice(b"lab_pass");
    let attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: 2,
        insns: INSTRUCTIONS.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
    };
    // SAFETY: ProgLoad begins like the kernel's attr of this command, and its pointers are to
    // statics.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &attr) }?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `attr` must have the layout that the kernel expects for `command`, and its pointers must be
/// valid during the call.
unsafe fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_int> {
    // SAFETY: the caller guarantees attr's layout and pointers; its size is passed with it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}

//! The few bpf(2) commands that aya doesn't offer: batches of a map, entries of any size, the
//! interface of a pinned link.
//!
//! Invariants: only types without padding and without invalid bit patterns (aya's `Pod`) are read
//! from the kernel.

use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Entries per batch; a hash bucket with more could not be read, but no real one comes near.
const BATCH: usize = 4096;

/// Length of a cursor in bytes: four for hashes, a key for other kinds.
const CURSOR_BYTES: usize = 64;

/// The part of `union bpf_attr` for single entries.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for batches.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for opening a pin.
#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part of `union bpf_attr` for querying an object.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_link_info`, as XDP and TCX links fill it.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    attach_type: u32,
    rest: [u64; 8],
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a live, exclusively borrowed prefix of `union bpf_attr` for this command,
    // its size is passed along, and the callers keep the memory that it points at alive for the
    // call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Calls `visit` with every entry of a map, `BATCH` entries per system call. The map may change
/// meanwhile.
///
/// # Errors
/// The kernel's error of `BPF_MAP_LOOKUP_BATCH`.
pub(super) fn for_each_entry<K: Pod + Default, V: Pod + Default>(
    map: impl AsFd,
    mut visit: impl FnMut(K, V),
) -> io::Result<()> {
    let mut keys = vec![K::default(); BATCH];
    let mut values = vec![V::default(); BATCH];
    let buffers = (keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64);
    let mut cursor = Cursor::default();
    while let Some(count) = cursor.next(&map, buffers, BATCH)? {
        for (key, value) in keys.iter().zip(&values).take(count) {
            visit(*key, *value);
        }
    }
    Ok(())
}

/// Calls `visit` with the entries of a range of an array map, `BATCH` entries per system call.
///
/// # Errors
/// The kernel's error of `BPF_MAP_LOOKUP_BATCH`.
pub(super) fn for_each_in_range<V: Pod + Default>(
    map: impl AsFd,
    range: Range<u32>,
    mut visit: impl FnMut(u32, V),
) -> io::Result<()> {
    let mut left = range.len();
    let room = left.min(BATCH);
    let (mut keys, mut values) = (vec![0_u32; room], vec![V::default(); room]);
    let buffers = (keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64);
    let mut cursor = range.start.checked_sub(1).map_or_else(Cursor::default, Cursor::behind);
    while left > 0 {
        let Some(count) = cursor.next(&map, buffers, left.min(room))? else { break };
        for (key, value) in keys.iter().zip(&values).take(count) {
            visit(*key, *value);
        }
        left = left.saturating_sub(count.max(1));
    }
    Ok(())
}

/// Calls `visit` with every entry of a map whose keys and values have these sizes.
///
/// # Errors
/// The kernel's error of `BPF_MAP_LOOKUP_BATCH`.
pub(super) fn for_each_raw(
    map: impl AsFd,
    (key_size, value_size): (usize, usize),
    mut visit: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    if key_size == 0 || key_size > CURSOR_BYTES || value_size == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut keys = vec![0_u8; key_size * BATCH];
    let mut values = vec![0_u8; value_size * BATCH];
    let buffers = (keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64);
    let mut cursor = Cursor::default();
    while let Some(count) = cursor.next(&map, buffers, BATCH)? {
        for (key, value) in keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)).take(count) {
            visit(key, value);
        }
    }
    Ok(())
}

/// Writes one entry. The key and the value must have the map's sizes.
///
/// # Errors
/// The kernel's error of `BPF_MAP_UPDATE_ELEM`.
pub(super) fn update_raw(map: impl AsFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: raw_fd(&map),
        padding: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// The position of a walk over a map: a bucket for hashes, the last key for others.
struct Cursor {
    at: [u8; CURSOR_BYTES],
    next: [u8; CURSOR_BYTES],
    is_begun: bool,
    is_over: bool,
}

impl Default for Cursor {
    fn default() -> Self {
        Self { at: [0; CURSOR_BYTES], next: [0; CURSOR_BYTES], is_begun: false, is_over: false }
    }
}

impl Cursor {
    /// A walk over an array map that starts behind the entry `index`.
    fn behind(index: u32) -> Self {
        let mut cursor = Self { is_begun: true, ..Self::default() };
        cursor.at[..size_of::<u32>()].copy_from_slice(&index.to_ne_bytes());
        cursor
    }

    /// Fills the buffers, which have room for `room` keys and values, with the next entries;
    /// returns how many there are, 0 at the end.
    fn next(
        &mut self,
        map: &impl AsFd,
        (keys, values): (u64, u64),
        room: usize,
    ) -> io::Result<Option<usize>> {
        if self.is_over {
            return Ok(None);
        }
        let mut attr = BatchAttr {
            in_batch: if self.is_begun { self.at.as_mut_ptr() as u64 } else { 0 },
            out_batch: self.next.as_mut_ptr() as u64,
            keys,
            values,
            count: u32::try_from(room).unwrap_or_default(),
            map_fd: raw_fd(map),
            elem_flags: 0,
            flags: 0,
        };
        match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.is_over = true,
            result => drop(result?),
        }
        self.at = self.next;
        self.is_begun = true;
        Ok(Some(usize::try_from(attr.count).unwrap_or_default().min(room)))
    }
}

/// The index of the interface to which a pinned XDP or TCX link is attached; 0 once that interface
/// is gone.
///
/// # Errors
/// The pin can't be opened (absent: `NotFound`), or is no link.
pub(super) fn pinned_link_ifindex(pin: &Path) -> io::Result<u32> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = i32::try_from(bpf(BPF_OBJ_GET, &mut attr)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor, nothing else owns it.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = LinkInfo::default();
    let mut attr = InfoAttr {
        fd: raw_fd(&link),
        info_len: u32::try_from(size_of::<LinkInfo>()).unwrap_or_default(),
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info.ifindex)
}

fn raw_fd(fd: &impl AsFd) -> u32 {
    u32::try_from(fd.as_fd().as_raw_fd()).unwrap_or(u32::MAX)
}

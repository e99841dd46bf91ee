//! Writes the maps of loaded programs.

use anyhow::{Context, Result, anyhow};
use aya::maps::{Array, HashMap, PerCpuArray, PerCpuValues};
use aya::{Ebpf, Pod};

/// Writes elements of an array.
pub(super) fn set<V: Pod>(
    object: &mut Ebpf,
    map: &'static str,
    values: impl IntoIterator<Item = (u32, V)>,
) -> Result<()> {
    let found = object.map_mut(map).ok_or_else(|| anyhow!("no map {map} in the object"))?;
    let mut array: Array<_, V> = Array::try_from(found).with_context(|| format!("open map {map}"))?;
    for (index, value) in values {
        array.set(index, value, 0).with_context(|| format!("write map {map}"))?;
    }
    Ok(())
}

/// Writes element 0 of a per-CPU array: `value` of each CPU's number.
pub(super) fn set_per_cpu<V: Pod>(
    object: &mut Ebpf,
    map: &'static str,
    value: impl Fn(usize) -> V,
) -> Result<()> {
    let found = object.map_mut(map).ok_or_else(|| anyhow!("no map {map} in the object"))?;
    let mut array: PerCpuArray<_, V> =
        PerCpuArray::try_from(found).with_context(|| format!("open map {map}"))?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("count CPUs")?;
    let values = PerCpuValues::try_from((0..cpus).map(value).collect::<Vec<V>>())?;
    array.set(0, values, 0).with_context(|| format!("write map {map}"))
}

/// Adds entries to a hash.
pub(super) fn insert<K: Pod, V: Pod>(
    object: &mut Ebpf,
    map: &'static str,
    entries: impl IntoIterator<Item = (K, V)>,
) -> Result<()> {
    let found = object.map_mut(map).ok_or_else(|| anyhow!("no map {map} in the object"))?;
    let mut hash: HashMap<_, K, V> = HashMap::try_from(found).with_context(|| format!("open map {map}"))?;
    for (key, value) in entries {
        hash.insert(key, value, 0).with_context(|| format!("write map {map}"))?;
    }
    Ok(())
}

/// The index of a network device in this thread's namespace.
pub(super) fn ifindex(device: &str) -> Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
        .context("open a socket")?;
    rustix::net::netdevice::name_to_index(&socket, device).with_context(|| format!("index of {device}"))
}

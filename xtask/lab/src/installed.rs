//! Machines that run systemd: the packages are installed on them as on an operator's.
//!
//! A machine sees this one's file system through an overlay, so it has Debian's packages, systemd
//! and an engine, and what it changes stays in memory. It has namespaces of its own for everything
//! but users and time, and control groups below one of its own.
//!
//! Invariants: a machine ends with this process, and leaves nothing behind. Units that would change
//! what all machines share (clock, devices, kernel modules and settings) don't start in it.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_checkout::workspace;

use crate::cgroup;
use crate::cluster::eventually;
use crate::netns::Netns;

/// How long systemd may take until it takes orders.
const BOOT_LIMIT: Duration = Duration::from_mins(1);
/// How long one command may take.
const COMMAND_LIMIT: &str = "120";
/// The bridge between the machines, in a namespace of its own.
const BRIDGE: &str = "br0";
const PREFIX_BITS: u8 = 24;
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Enters control groups of its own, before the namespace that hides the others is made. Arguments:
/// the group, then the words to go on with.
const ENTER_GROUP: &str = r#"
group=$1; shift
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then set_of=/sys/fs/cgroup; else set_of=/sys/fs/cgroup/*; fi
for tree in $set_of; do
    [ -e "$tree/cgroup.procs" ] || continue
    mkdir -p "$tree/$group"
    for kind in cpus mems; do
        if [ -e "$tree/$group/cpuset.$kind" ]; then cat "$tree/cpuset.$kind" > "$tree/$group/cpuset.$kind"; fi
    done
    echo $$ > "$tree/$group/cgroup.procs"
done
exec "$@"
"#;

/// Becomes the machine's first process. Arguments: a directory of its own, the host name, a name
/// server.
const BOOT: &str = r#"
stage=$1 name=$2
echo "$name" > /proc/sys/kernel/hostname
mount -t tmpfs -o mode=0755 mesh-machine "$stage"
tree=$stage/tree
mkdir "$stage/upper" "$stage/work" "$tree"
mount -t overlay -o "lowerdir=/,upperdir=$stage/upper,workdir=$stage/work" mesh-machine "$tree"
mount -t proc proc "$tree/proc"
mount -t sysfs sysfs "$tree/sys"
mount --rbind /dev "$tree/dev"
for directory in run tmp var/lib/docker var/lib/containerd; do
    mkdir -p "$tree/$directory"
    mount -t tmpfs -o mode=0755 mesh-machine "$tree/$directory"
done
chmod 1777 "$tree/tmp"
mount -t bpf -o mode=0700 bpf "$tree/sys/fs/bpf"
groups=$tree/sys/fs/cgroup
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 "$groups"
else
    mount -t tmpfs -o mode=0755 mesh-machine "$groups"
    while IFS=: read -r number controllers path; do
        case "$controllers" in
        '') mkdir "$groups/unified"; mount -t cgroup2 cgroup2 "$groups/unified";;
        name=*) mkdir "$groups/${controllers#name=}"
            mount -t cgroup -o "none,$controllers" cgroup "$groups/${controllers#name=}";;
        *) mkdir "$groups/$controllers"; mount -t cgroup -o "$controllers" cgroup "$groups/$controllers";;
        esac
    done < /proc/self/cgroup
fi
: > "$tree/etc/fstab"
: > "$tree/etc/machine-id"
echo "$name" > "$tree/etc/hostname"
echo "127.0.0.1 localhost $name" > "$tree/etc/hosts"
rm -f "$tree/etc/resolv.conf"
# Nobody listens there, so that questions are refused at once.
echo "nameserver $3" > "$tree/etc/resolv.conf"
rm -f "$tree/usr/sbin/policy-rc.d"
rm -rf "$tree/var/lib/mesh" "$tree/etc/mesh" "$tree"/var/lib/etcd/*
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
    systemd-modules-load.service systemd-sysctl.service systemd-timesyncd.service systemd-random-seed.service \
    systemd-remount-fs.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount apparmor.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount kmod-static-nodes.service systemd-tmpfiles-setup-dev.service \
    systemd-networkd.service networking.service systemd-logind.service; do
    ln -sf /dev/null "$tree/etc/systemd/system/$unit"
done
exec env -i container=mesh "PATH=$SEARCH_PATH" chroot "$tree" /lib/systemd/systemd --system --unit=basic.target --show-status=no
"#;

/// The network between machines, and the namespace of their clients.
#[derive(Debug)]
pub struct Wire {
    netns: Netns,
}

impl Wire {
    /// The address of the clients.
    pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);

    /// Makes the network; one that an earlier run left is replaced.
    ///
    /// # Errors
    /// The kernel refuses; it needs root.
    pub fn make(name: &str) -> Result<Self> {
        let netns = Netns::named(format!("{name}-wire"));
        netns.delete()?;
        netns.add()?;
        let wire = Self { netns };
        wire.netns.sysctl("net.bridge.bridge-nf-call-iptables", "0")?;
        wire.netns.ip(&["link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "mcast_snooping", "0"])?;
        let address = format!("{}/{PREFIX_BITS}", Self::CLIENT);
        wire.netns.ip(&["address", "add", &address, "dev", BRIDGE])?;
        wire.netns.ip(&["link", "set", BRIDGE, "up"])?;
        Ok(wire)
    }

    /// The namespace in which clients run.
    pub fn clients(&self) -> &Netns {
        &self.netns
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Err(error) = self.netns.delete() {
            eprintln!("remove the network namespace {}: {error:#}", self.netns.name());
        }
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    name: String,
    address: Ipv4Addr,
    netns: Netns,
    group: PathBuf,
    stage: PathBuf,
    starter: Child,
    /// systemd's process id, as seen from here.
    pid: u32,
}

impl Machine {
    /// Starts the machine `number`, and waits until its systemd takes orders.
    ///
    /// # Errors
    /// It can't be made, or doesn't boot.
    pub fn boot(prefix: &str, number: u8, wire: &Wire) -> Result<Self> {
        let name = format!("{prefix}-{number}");
        let netns = Netns::named(&name);
        let address = Ipv4Addr::new(10, 78, 0, 10 + number);
        netns.delete()?;
        netns.add()?;
        plug(wire, &netns, address, number)?;
        let stage = workspace::target_dir().join("machines").join(&name);
        fs::create_dir_all(&stage).with_context(|| format!("make {}", stage.display()))?;
        let log = stage.with_extension("log");
        let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        // Its end is ours, however we end: then unshare ends, and takes the machine with it.
        let mut starter = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter"])
            .arg(format!("--net={}", netns.path().display()))
            .args(["sh", "-ec", ENTER_GROUP, "group", &name])
            .args(["unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"])
            .args(["--propagation", "private", "sh", "-ec", BOOT, "boot"])
            .arg(&stage)
            .arg(&name)
            .arg(Wire::CLIENT.to_string())
            .env("SEARCH_PATH", SEARCH_PATH)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share the machine's log")?)
            .stderr(output)
            .spawn()
            .context("start a machine")?;
        let found = eventually("the machine's first process", BOOT_LIMIT, || first_process(&mut starter));
        let pid = match found {
            Ok(pid) => pid,
            Err(error) => {
                drop(starter.kill().and_then(|()| starter.wait()));
                netns.delete()?;
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Err(error.context(format!("{name} doesn't start: {said}")));
            }
        };
        let machine = Self { group: PathBuf::from(&name), name, address, netns, stage, starter, pid };
        eventually("a booted machine", BOOT_LIMIT, || machine.run("systemctl is-active basic.target"))?;
        Ok(machine)
    }

    /// The name that it has as a host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the wire.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A file of the machine, as this process sees it.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid))
    }

    /// Runs a shell script on it; returns what it prints.
    ///
    /// # Errors
    /// It fails; the message has its output.
    pub fn run(&self, script: &str) -> Result<String> {
        let output = self.attempt(script, Stdio::null())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !output.status.success() {
            let (said, error) = (text(&output.stdout), text(&output.stderr));
            bail!("`{script}` on {} failed ({}): {said} {error}", self.name, output.status);
        }
        Ok(text(&output.stdout))
    }

    /// Runs a shell script on it, whatever its exit code.
    ///
    /// # Errors
    /// It can't be started.
    pub fn attempt(&self, script: &str, input: Stdio) -> Result<Output> {
        Command::new("timeout")
            .args(["--kill-after=5", COMMAND_LIMIT, "nsenter", "--target", &self.pid.to_string()])
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd=/"])
            .args([
                "env",
                "-i",
                &format!("PATH={SEARCH_PATH}"),
                "HOME=/root",
                "LC_ALL=C.UTF-8",
                "SYSTEMD_COLORS=0",
            ])
            // The working directory that nsenter sets is outside of the machine's root.
            .args(["sh", "-ec", &format!("cd /\n{script}")])
            .stdin(input)
            .output()
            .with_context(|| format!("run `{script}` on {}", self.name))
    }

    /// Copies a file of this machine to `path` there.
    ///
    /// # Errors
    /// One of them can't be opened, or writing fails.
    pub fn copy(&self, file: &Path, path: &str) -> Result<()> {
        let opened = File::open(file).with_context(|| format!("open {}", file.display()))?;
        let output = self.attempt(&format!("cat > {path}"), Stdio::from(opened))?;
        if !output.status.success() {
            bail!("copy {} to {}: {}", file.display(), self.name, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        // The machine's first process ends with its starter, and takes all others with it.
        self.starter.kill().context("end the machine")?;
        self.starter.wait().context("wait for the machine's end")?;
        cgroup::kill(&self.group)?;
        cgroup::remove(&self.group)?;
        self.netns.delete()?;
        fs::remove_dir_all(&self.stage).with_context(|| format!("remove {}", self.stage.display()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("remove the machine {}: {error:#}", self.name);
        }
    }
}

/// The first process in the namespaces that `starter` makes.
fn first_process(starter: &mut Child) -> Result<u32> {
    if let Some(status) = starter.try_wait().context("look at the machine's starter")? {
        bail!("it has ended ({status})");
    }
    let pid = starter.id();
    let children =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).context("read its children")?;
    let child = children.split_ascii_whitespace().next().context("it has no child yet")?;
    // Before systemd, the child is one of the programs that prepare for it.
    let name = fs::read_to_string(format!("/proc/{child}/comm")).context("read the child's name")?;
    ensure!(name.trim() == "systemd", "it runs {name}");
    child.parse().context("the child's process id")
}

fn plug(wire: &Wire, netns: &Netns, address: Ipv4Addr, number: u8) -> Result<()> {
    let (middle, port) = (wire.clients(), format!("port{number}"));
    netns.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", middle.name()])?;
    middle.ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
    netns.ip(&["address", "add", &format!("{address}/{PREFIX_BITS}"), "dev", "eth0"])?;
    netns.ip(&["link", "set", "eth0", "up"])?;
    netns.ip(&["route", "add", "default", "via", &Wire::CLIENT.to_string()])
}

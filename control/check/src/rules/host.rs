//! The kernel, its control groups and its clock.

use crate::facts::{Expected, HostFacts};
use crate::finding::Finding;

/// The oldest kernel on which programs attach by links that another program can't replace (tcx).
const TCX_KERNEL: (u32, u32) = (6, 6);
/// The oldest kernel on which the kernel programs are tested.
const TESTED_KERNEL: (u32, u32) = (6, 1);

/// Whether mesh's kernel programs can run here.
pub(super) fn kernel(facts: &HostFacts, expected: &Expected) -> Vec<Finding> {
    if !expected.has_kernel_programs {
        return vec![Finding::ok(
            "kernel.version",
            format!("Linux {}: no kernel programs are wanted", facts.kernel),
        )];
    }
    let mut findings = vec![version(&facts.kernel)];
    findings.push(if facts.has_btf {
        Finding::ok("kernel.btf", "the kernel describes its types (BTF)")
    } else {
        Finding::warning(
            "kernel.btf",
            "the kernel has no /sys/kernel/btf/vmlinux",
            "take a kernel of your distribution, which is built with CONFIG_DEBUG_INFO_BTF",
        )
    });
    match facts.jit.as_deref() {
        // Network namespaces of their own don't show it.
        None => {}
        Some("0") => findings.push(Finding::warning(
            "kernel.jit",
            "net.core.bpf_jit_enable = 0: kernel programs are interpreted, which costs each packet several times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        )),
        Some(_) => findings.push(Finding::ok("kernel.jit", "kernel programs are compiled")),
    }
    findings.push(if facts.has_bpffs {
        Finding::ok("kernel.bpffs", "a BPF file system is at /sys/fs/bpf")
    } else {
        Finding::warning(
            "kernel.bpffs",
            "no BPF file system is at /sys/fs/bpf: an agent in a mount namespace of its own would mount one that others don't see",
            "mount -t bpf bpf /sys/fs/bpf",
        )
    });
    findings.push(if facts.has_tun {
        Finding::ok("kernel.tun", "/dev/net/tun is there, for encrypted networks")
    } else {
        Finding::warning(
            "kernel.tun",
            "there is no /dev/net/tun: encrypted networks can't be used",
            "modprobe tun",
        )
    });
    findings
}

fn version(release: &str) -> Finding {
    let check = "kernel.version";
    let cure = "install a newer kernel, 6.1 or later; or set datapath = \"userspace\" in /etc/mesh/agent.toml, so that the agent \
                doesn't try";
    match parse_version(release) {
        None => Finding::skipped(check, format!("can't tell the version of the kernel {release}")),
        Some(version) if version >= TCX_KERNEL => Finding::ok(check, format!("Linux {release} has tcx")),
        Some(version) if version >= TESTED_KERNEL => {
            Finding::ok(check, format!("Linux {release} has no tcx: programs attach by filters (clsact)"))
        }
        Some(_) => Finding::warning(
            check,
            format!(
                "Linux {release} is older than 6.1, on which mesh's kernel programs are tested: they may not load"
            ),
            cure,
        ),
    }
}

/// `6.1` in `6.1.0-18-amd64`.
fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Which control groups there are.
pub(super) fn cgroups(facts: &HostFacts) -> Vec<Finding> {
    let check = "kernel.cgroups";
    vec![if facts.has_cgroup2 {
        Finding::ok(check, "control groups are of version 2")
    } else {
        Finding::warning(
            check,
            "control groups are of version 1, which Docker and systemd give up",
            "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line and restart the machine",
        )
    }]
}

/// Whether something keeps the clock.
pub(super) fn clock(facts: &HostFacts) -> Vec<Finding> {
    let check = "time.ntp";
    vec![match facts.is_clock_kept {
        Some(true) => Finding::ok(check, "the clock is kept by NTP"),
        Some(false) => Finding::warning(
            check,
            "nothing keeps the clock by NTP: certificates and logs of nodes with other clocks don't fit",
            "apt install systemd-timesyncd && timedatectl set-ntp true",
        ),
        None => Finding::skipped(
            check,
            "can't tell whether the clock is kept by NTP: the kernel may not be asked here",
        ),
    }]
}

/// The share of etcd's quota, in percent, from which on it is warned of.
const QUOTA_WARNED_SHARE: u64 = 80;

/// Whether the database of the manager's own etcd has room.
pub(super) fn etcd(facts: &HostFacts, expected: &Expected) -> Option<Finding> {
    let check = "etcd.quota";
    let (own, bytes) = (expected.etcd.as_ref()?, facts.etcd_bytes?);
    let mebibytes = |bytes: u64| bytes >> 20;
    let (used, quota) = (mebibytes(bytes), mebibytes(own.quota));
    let said = format!("etcd's database has {used} MiB of at most {quota} MiB");
    let cure = "remove services, secrets and configs that nobody needs; mesh-control then gives the room back within minutes";
    Some(if bytes >= own.quota {
        Finding::error(check, format!("{said}: nothing can be changed"), cure)
    } else if bytes.saturating_mul(100) >= own.quota.saturating_mul(QUOTA_WARNED_SHARE) {
        Finding::warning(check, said, cure)
    } else {
        Finding::ok(check, said)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;
    use crate::rules::network::tests::expected;

    #[test]
    fn kernels_are_judged_by_their_version() {
        for (release, severity) in [
            ("6.18.44", Severity::Ok),
            ("6.6.0-rc1", Severity::Ok),
            ("6.1.0-18-amd64", Severity::Ok),
            ("5.15.0-91-generic", Severity::Warning),
            ("5.10.0-28-amd64", Severity::Warning),
            ("7", Severity::Skipped),
            ("", Severity::Skipped),
        ] {
            assert_eq!(version(release).severity, severity, "{release}");
        }
    }

    #[test]
    fn etcds_database_is_held_against_its_quota() {
        let own = crate::facts::OwnEtcd { database: "/db".into(), quota: 1000 << 20 };
        let expected = Expected { etcd: Some(own), ..expected() };
        let judged = |mebibytes: u64| {
            let facts = HostFacts { etcd_bytes: Some(mebibytes << 20), ..HostFacts::default() };
            etcd(&facts, &expected).map(|finding| finding.severity)
        };
        assert_eq!(judged(799), Some(Severity::Ok));
        assert_eq!(judged(800), Some(Severity::Warning));
        assert_eq!(judged(1000), Some(Severity::Error));
        assert_eq!(etcd(&HostFacts::default(), &expected), None, "no database yet");
    }

    #[test]
    fn a_good_kernel_has_no_findings_and_a_bare_one_has_cures() {
        let good = HostFacts {
            kernel: "6.12.1".to_owned(),
            has_btf: true,
            jit: Some("1".to_owned()),
            has_bpffs: true,
            has_tun: true,
            ..HostFacts::default()
        };
        let seen = kernel(&good, &expected());
        assert!(seen.iter().all(|finding| finding.severity == Severity::Ok), "{seen:?}");
        let bare =
            HostFacts { kernel: "6.12.1".to_owned(), jit: Some("0".to_owned()), ..HostFacts::default() };
        let seen = kernel(&bare, &expected());
        let cured =
            seen.iter().filter(|finding| finding.severity == Severity::Warning && !finding.cure.is_empty());
        assert_eq!(cured.count(), 4, "{seen:?}");
        let userspace = Expected { has_kernel_programs: false, ..expected() };
        assert_eq!(
            kernel(&HostFacts { kernel: "4.19.0".to_owned(), ..HostFacts::default() }, &userspace).len(),
            1
        );
    }
}

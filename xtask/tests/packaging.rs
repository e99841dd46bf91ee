//! systemd's own checks of our units, and the shell's of the maintainer scripts.

#![expect(clippy::unwrap_used, reason = "what can't be set up fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mesh_checkout::workspace;

/// The units, with the highest exposure that `systemd-analyze security` may find.
const UNITS: [(&str, f64); 2] = [("mesh-agent", 6.0), ("mesh-control", 4.0)];

fn unit(name: &str) -> PathBuf {
    workspace::root().join("xtask/packaging/systemd").join(format!("{name}.service"))
}

/// What a program prints, on both outputs, and whether it succeeds.
fn run(program: &str, words: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(words).env("SYSTEMD_COLORS", "0").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let directory = tempfile::tempdir().unwrap();
    for (name, _) in UNITS {
        // The daemon is not installed on this machine: another program stands for it.
        let text = fs::read_to_string(unit(name)).unwrap();
        let program = format!("ExecStart=/usr/sbin/{name}\n");
        assert!(text.contains(&program), "{name} is started from where its package puts it");
        let copy = directory.path().join(format!("{name}.service"));
        fs::write(&copy, text.replace(&format!("/usr/sbin/{name}"), "/bin/true")).unwrap();
        let (good, said) = run("systemd-analyze", &["verify", "--man=no", copy.to_str().unwrap()]);
        let ours: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        assert!(good && ours.is_empty(), "{name}: {said}");
    }
}

#[test]
fn the_units_are_confined() {
    for (name, limit) in UNITS {
        let file = unit(name);
        let (_, said) = run("systemd-analyze", &["security", "--offline=true", file.to_str().unwrap()]);
        let exposure = said
            .lines()
            .find_map(|line| line.split_once("Overall exposure level for"))
            .map(|(_, rest)| rest.split_whitespace().find_map(|word| word.parse::<f64>().ok()).unwrap());
        let exposure = exposure.unwrap_or_else(|| panic!("no exposure of {name} in: {said}"));
        assert!(exposure <= limit, "{name}: {exposure} > {limit}\n{said}");
    }
}

#[test]
fn the_units_keep_what_the_daemons_rely_on() {
    for (name, _) in UNITS {
        let text = fs::read_to_string(unit(name)).unwrap();
        for line in ["Type=notify", "WatchdogSec=30", "Restart=always", "ExecReload=/bin/kill -HUP $MAINPID"]
        {
            assert!(text.lines().any(|found| found == line), "{name}: {line}");
        }
    }
    let agent = fs::read_to_string(unit("mesh-agent")).unwrap();
    // Mounts of a namespace of its own would not be seen by Docker; a socket that isn't kept breaks
    // bind mounts of docker.sock.
    for line in ["FileDescriptorStoreMax=1", "RuntimeDirectoryPreserve=yes"] {
        assert!(agent.lines().any(|found| found == line), "{line}");
    }
    // mesh-control starts its etcd by setpriv, which fails where it may not call capset.
    let control = fs::read_to_string(unit("mesh-control")).unwrap();
    assert!(control.lines().any(|found| found == "SystemCallFilter=capset"), "{control}");
    // An etcd that ends at the same time as mesh-control can't take its lease back.
    assert!(control.lines().any(|found| found == "KillMode=mixed"), "{control}");
}

#[test]
fn maintainer_scripts_are_shell_scripts_that_stop_at_errors() {
    let directory = workspace::root().join("xtask/packaging/debian");
    let mut scripts = 0;
    for package in fs::read_dir(directory).unwrap() {
        for script in fs::read_dir(package.unwrap().path()).unwrap() {
            let path = script.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("#!/bin/sh\n") && text.contains("\nset -e\n"), "{}", path.display());
            let (good, said) = run("sh", &["-n", path.to_str().unwrap()]);
            assert!(good, "{}: {said}", path.display());
            scripts += 1;
        }
    }
    assert_eq!(scripts, 7);
}

/// Runs a maintainer script with programs that only tell how they were called; returns what they
/// tell.
fn calls(script: &str, words: &[&str], answers: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("calls");
    let program = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let tell = format!("echo \"${{0##*/}} $*\" >> {}", log.display());
    for name in ["systemctl", "deb-systemd-helper", "deb-systemd-invoke", "adduser", "getent"] {
        program(name, &tell);
    }
    program("mesh-agent", &format!("{tell}\n{answers}"));
    program("mesh-control", &format!("{tell}\n{answers}"));
    let path = workspace::root().join("xtask/packaging/debian").join(script);
    // The scripts look for a running systemd: this machine need not have one.
    let text = fs::read_to_string(path).unwrap().replace("/run/systemd/system", "/");
    let text = text.replace("/etc/default/", "/nonexistent/");
    let status = Command::new("sh")
        .arg("-c")
        .arg(text)
        .arg("script")
        .args(words)
        .env("PATH", format!("{}:/usr/bin:/bin", directory.path().display()))
        .status()
        .unwrap();
    let told = fs::read_to_string(&log).unwrap_or_default();
    format!("{told}exit {}\n", status.code().unwrap())
}

#[test]
fn a_new_package_starts_only_what_is_set_up() {
    for daemon in ["mesh-agent", "mesh-control"] {
        let postinst = format!("{daemon}/postinst");
        let set_up = calls(&postinst, &["configure", ""], "exit 0");
        assert!(set_up.contains(&format!("deb-systemd-invoke start {daemon}.service")), "{set_up}");
        let bare = calls(&postinst, &["configure", ""], "exit 1");
        assert!(!bare.contains("deb-systemd-invoke") && bare.ends_with("exit 0\n"), "{bare}");
    }
}

#[test]
fn an_upgrade_restarts_no_agent_that_carries_traffic_itself() {
    let upgrade = |datapath: &str| {
        let answers =
            format!("if [ \"$1\" = --print-config ]; then echo 'datapath = \"{datapath}\" # file'; fi");
        calls("mesh-agent/postinst", &["configure", "0.0.9"], &answers)
    };
    assert!(upgrade("auto").contains("deb-systemd-invoke restart mesh-agent.service"), "{}", upgrade("auto"));
    assert!(!upgrade("userspace").contains("deb-systemd-invoke"), "{}", upgrade("userspace"));
    let before = calls("mesh-agent/prerm", &["upgrade", "0.2.0"], "");
    assert_eq!(before, "exit 0\n", "an upgrade stops nothing and uninstalls nothing");
}

#[test]
fn a_removal_takes_the_data_plane_away_or_fails() {
    let removal = calls("mesh-agent/prerm", &["remove"], "");
    // A policy-rc.d that forbids deb-systemd-invoke must not keep the agent running.
    let stop = removal.find("systemctl stop mesh-agent.service").unwrap();
    let uninstall = removal.find("mesh-agent uninstall --stop").unwrap();
    assert!(stop < uninstall && removal.ends_with("exit 0\n"), "{removal}");
    assert!(calls("mesh-agent/prerm", &["remove"], "exit 1").ends_with("exit 1\n"));
    let manager = calls("mesh-control/prerm", &["remove"], "");
    assert!(manager.contains("systemctl stop mesh-control.service"), "{manager}");
}

#[test]
fn the_packages_metadata_names_files_of_the_checkout() {
    for krate in ["mesh-agent", "control"] {
        let directory = workspace::root().join(krate);
        let manifest = fs::read_to_string(directory.join("Cargo.toml")).unwrap();
        let sources: Vec<&str> =
            manifest.split('"').filter(|word| word.starts_with("../xtask/packaging/")).collect();
        assert!(sources.len() >= 3, "{krate}: {sources:?}");
        for source in sources {
            assert!(Path::new(&directory).join(source).exists(), "{krate}: {source}");
        }
    }
}

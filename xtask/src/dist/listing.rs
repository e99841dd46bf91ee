//! Checks of a package's contents. Pure.

/// A file or directory of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// As `ls` shows it.
    mode: String,
    owner: String,
    /// From the root, without a leading slash.
    path: String,
}

/// What `dpkg-deb --contents` lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listing {
    entries: Vec<Entry>,
}

impl Listing {
    /// Parses the output of `dpkg-deb --contents`; `None` if a line has another form.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let entry = |line: &str| {
            let mut words = line.split_whitespace();
            let (mode, owner) = (words.next()?.to_owned(), words.next()?.to_owned());
            let path = words.nth(3)?.trim_start_matches("./").to_owned();
            Some(Entry { mode, owner, path })
        };
        Some(Self { entries: text.lines().map(entry).collect::<Option<_>>()? })
    }

    /// What is wrong with the files, of which all of `needed` must be there.
    pub(super) fn findings(&self, needed: &[&str]) -> Vec<String> {
        let mut found: Vec<String> = needed
            .iter()
            .filter(|path| !self.entries.iter().any(|entry| entry.path == **path))
            .map(|path| format!("{path} is missing"))
            .collect();
        for entry in self.entries.iter().filter(|entry| !entry.path.is_empty()) {
            let Entry { mode, owner, path } = entry;
            // cargo-deb writes no names of users and groups.
            if !["root/root", "0/0"].contains(&owner.as_str()) {
                found.push(format!("{path} belongs to {owner}"));
            }
            if mode.contains(['s', 't', 'S', 'T']) {
                found.push(format!("{path} has a special bit: {mode}"));
            }
            // Group and others: the letters after those of the owner.
            if mode.get(4..).is_some_and(|rights| rights.contains('w')) && !mode.starts_with('l') {
                found.push(format!("{path} can be written to by others than root: {mode}"));
            }
            let is_program = path.starts_with("usr/bin/") || path.starts_with("usr/sbin/");
            if mode.starts_with('-') && mode.contains('x') != is_program {
                found.push(format!("{path} has the wrong mode: {mode}"));
            }
            if !["etc/", "usr/"].iter().any(|directory| path.starts_with(directory)) {
                found.push(format!("{path} is outside /etc and /usr"));
            }
        }
        found
    }

    /// Files in `/etc` that `conffiles` doesn't name: an upgrade would replace what an operator
    /// wrote.
    pub(super) fn not_kept(&self, conffiles: &str) -> Vec<String> {
        self.entries
            .iter()
            .filter(|entry| entry.mode.starts_with('-') && entry.path.starts_with("etc/"))
            .filter(|entry| !conffiles.lines().any(|line| line.trim_start_matches('/') == entry.path))
            .map(|entry| format!("{} is no conffile", entry.path))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
drwxr-xr-x root/root         0 2026-11-30 10:00 ./
drwxr-xr-x root/root         0 2026-11-30 10:00 ./etc/
-rw-r--r-- 0/0             900 2026-11-30 10:00 ./etc/mesh/agent.toml
-rwxr-xr-x root/root    900000 2026-11-30 10:00 ./usr/sbin/mesh-agent
";

    fn findings(text: &str) -> Vec<String> {
        Listing::parse(text).unwrap().findings(&["usr/sbin/mesh-agent"])
    }

    #[test]
    fn a_good_package_has_no_findings() {
        assert!(findings(GOOD).is_empty(), "{:?}", findings(GOOD));
        assert!(Listing::parse(GOOD).unwrap().not_kept("/etc/mesh/agent.toml\n").is_empty());
    }

    #[test]
    fn each_mistake_is_found() {
        for (from, to, expected) in [
            ("./usr/sbin/mesh-agent", "./usr/sbin/other", "is missing"),
            ("-rwxr-xr-x root/root", "-rwxr-xr-x me/root", "belongs to"),
            ("-rwxr-xr-x", "-rwsr-xr-x", "special bit"),
            ("-rwxr-xr-x", "-rwxrwxr-x", "written to by others"),
            ("-rwxr-xr-x", "-rw-r--r--", "wrong mode"),
            ("-rw-r--r-- 0", "-rwxr-xr-x 0", "wrong mode"),
            ("./etc/mesh/agent.toml", "./var/agent.toml", "outside"),
        ] {
            let seen = findings(&GOOD.replacen(from, to, 1));
            assert!(seen.iter().any(|line| line.contains(expected)), "expected {expected:?}, saw {seen:?}");
        }
        assert_eq!(Listing::parse(GOOD).unwrap().not_kept("").len(), 1, "no conffile");
        assert_eq!(Listing::parse("nonsense\n"), None);
    }
}

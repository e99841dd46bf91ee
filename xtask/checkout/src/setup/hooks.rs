//! Installs git's pre-commit hook: format and house rules, in some seconds.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::workspace;

/// The line that identifies a hook of this command.
const MARK: &str = "# Written by cargo xtask setup --hooks; removing the file removes the hook.";

/// Writes the hook of this checkout; returns its path.
///
/// # Errors
/// This is no git checkout, another hook exists, or it can't be written.
pub fn install() -> Result<PathBuf> {
    let said = Command::new("git")
        .args(["rev-parse", "--path-format=absolute", "--git-path", "hooks"])
        .current_dir(workspace::root())
        .output()
        .context("run git; install it with: apt-get install git")?;
    ensure!(said.status.success(), "git: {}", String::from_utf8_lossy(&said.stderr).trim());
    let directory = PathBuf::from(String::from_utf8_lossy(&said.stdout).trim());
    install_in(&directory)
}

fn install_in(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("pre-commit");
    if let Ok(present) = fs::read_to_string(&path)
        && !present.contains(MARK)
    {
        bail!("{} is another hook: move it away, or call cargo xtask tidy from it", path.display());
    }
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let script = format!("#!/bin/sh\n{MARK}\nset -e\ncargo fmt --all --check\nexec cargo xtask tidy\n");
    fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&path, Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_written_and_rewritten_but_another_one_stays() {
        let directory = tempfile::tempdir().unwrap();
        let hooks = directory.path().join("hooks");
        let path = install_in(&hooks).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(install_in(&hooks).unwrap(), path, "an own hook is replaced");
        fs::write(&path, "#!/bin/sh\nmine\n").unwrap();
        let refused = install_in(&hooks).unwrap_err().to_string();
        assert!(refused.contains("move it away"), "expected the next step, saw: {refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "#!/bin/sh\nmine\n");
    }
}

//! Runs other programs, with errors that name the command line and its output.
//!
//! Left to others: long-lived processes (`lab::daemon`) and everything that must outlive xtask.

use std::env;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// A program to run to its end.
#[derive(Debug)]
pub struct Program {
    command: Command,
}

impl Program {
    /// The program `name`, which is looked up in `PATH` unless it is a path.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(name);
        command.stdin(Stdio::null());
        Self { command }
    }

    /// The cargo that started us, so that its toolchain stays the same, without the variables that
    /// it set for our own package: build scripts that depend on these would run again, with
    /// everything that depends on them, whenever cargo is called by hand.
    pub fn cargo() -> Self {
        let mut program = Self::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
            program.command.env_remove(name);
        }
        program
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command.args(args);
        self
    }

    /// Sets a variable of the program's environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Removes a variable from the program's environment.
    #[must_use]
    pub fn without_env(mut self, key: &str) -> Self {
        self.command.env_remove(key);
        self
    }

    /// Sets the program's working directory.
    #[must_use]
    pub fn current_dir(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs it with its output captured; returns standard output as text.
    ///
    /// # Errors
    /// It can't be started or doesn't exit with 0; the message has the command line and standard
    /// error.
    pub fn output(mut self) -> Result<String> {
        let shown = self.shown();
        let Output { status, stdout, stderr } = self.command.output().map_err(|e| start_error(&shown, &e))?;
        if !status.success() {
            bail!("`{shown}` failed ({status}): {}", String::from_utf8_lossy(&stderr).trim());
        }
        String::from_utf8(stdout).with_context(|| format!("`{shown}` printed something other than UTF-8"))
    }

    /// Runs it silently; its output appears only in the error.
    ///
    /// # Errors
    /// As for [`Program::output`].
    pub fn run(self) -> Result<()> {
        self.output().map(drop)
    }

    /// Runs it with our terminal as its output.
    ///
    /// # Errors
    /// It can't be started or doesn't exit with 0.
    pub fn run_shown(mut self) -> Result<()> {
        let shown = self.shown();
        let status = self.command.status().map_err(|e| start_error(&shown, &e))?;
        if !status.success() {
            bail!("`{shown}` failed ({status})");
        }
        Ok(())
    }

    /// As [`Program::run_shown`], but after `limit` prints the living descendants and kills them
    /// all: so a hang can be located.
    ///
    /// # Errors
    /// As for [`Program::run_shown`], and if the limit is exceeded.
    pub fn run_shown_within(mut self, limit: Duration) -> Result<()> {
        let shown = self.shown();
        let mut child = self.command.spawn().map_err(|e| start_error(&shown, &e))?;
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().with_context(|| format!("wait for `{shown}`"))? {
                return if status.success() { Ok(()) } else { bail!("`{shown}` failed ({status})") };
            }
            if begun.elapsed() >= limit {
                end_tree(&mut child)?;
                bail!("`{shown}` did not end within {} s and was killed", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs it with our terminal as its output and input; returns its exit status.
    ///
    /// # Errors
    /// It can't be started.
    pub fn status(mut self) -> Result<ExitStatus> {
        let shown = self.shown();
        self.command.stdin(Stdio::inherit()).status().map_err(|e| start_error(&shown, &e))
    }

    /// Replaces this process with the program; returns only if it can't be started.
    pub fn exec(mut self) -> anyhow::Error {
        let shown = self.shown();
        start_error(&shown, &self.command.stdin(Stdio::inherit()).exec())
    }

    /// Runs it silently; returns whether it exited with 0. False for a program that doesn't exist.
    pub fn succeeds(mut self) -> bool {
        self.command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    fn shown(&self) -> String {
        std::iter::once(self.command.get_program())
            .chain(self.command.get_args())
            .map(|word| quoted(&word.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// Prints and kills `child` and all its descendants.
fn end_tree(child: &mut Child) -> Result<()> {
    let listed = Program::new("ps").args(["-e", "-o", "pid=,ppid=,stat=,args="]).output()?;
    let mut ended = vec![child.id().to_string()];
    for line in listed.lines() {
        let mut words = line.split_whitespace();
        // Parents come before their children: `ps` sorts by id, and ids don't wrap within one test
        // run.
        if let (Some(pid), Some(parent)) = (words.next(), words.next())
            && ended.iter().any(|id| id == parent || id == pid)
        {
            println!("still alive: {line}");
            ended.push(pid.to_owned());
        }
    }
    // A process that has ended by itself makes `kill` fail, which is no failure here.
    Program::new("kill").arg("-KILL").args(&ended).succeeds();
    child.wait().context("wait for what was killed")?;
    Ok(())
}

fn quoted(word: &str) -> String {
    let plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || "'\"$;|&<>()".contains(c));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

fn start_error(shown: &str, error: &std::io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::NotFound {
        anyhow!("cannot start `{shown}`: no such program; `cargo xtask setup` installs what mesh needs")
    } else {
        anyhow!("cannot start `{shown}`: {error}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_tells_command_and_stderr() {
        let error = Program::new("sh").args(["-c", "echo no such thing >&2; exit 3"]).run().unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("sh -c 'echo no such thing >&2; exit 3'"),
            "expected the command line, saw: {text}"
        );
        assert!(text.contains("exit status: 3): no such thing"), "expected status and stderr, saw: {text}");
    }

    #[test]
    fn a_hang_is_ended_with_its_descendants() {
        let begun = Instant::now();
        let error = Program::new("sh")
            .args(["-c", "sleep 61.25 & wait"])
            .run_shown_within(Duration::from_millis(300))
            .unwrap_err();
        assert!(error.to_string().contains("did not end within"), "saw: {error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "took {:?}", begun.elapsed());
        let left = Program::new("ps").args(["-e", "-o", "args="]).output().unwrap();
        assert!(!left.lines().any(|line| line == "sleep 61.25"), "the descendant is alive:\n{left}");
    }

    #[test]
    fn missing_program_names_the_next_step() {
        let text = Program::new("mesh-no-such-program").run().unwrap_err().to_string();
        assert!(text.contains("cargo xtask setup"), "expected the next step, saw: {text}");
    }
}

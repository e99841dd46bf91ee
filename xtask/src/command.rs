//! Other programs, started so that a failure says what was run and what it said.
//!
//! Leaves to others: long-lived processes (`lab::daemon`) and everything that must survive xtask.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// A program to run to its end.
#[derive(Debug)]
pub struct Program {
    command: Command,
}

impl Program {
    /// Names the program, looked up in `PATH` unless it is a path.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(name);
        command.stdin(Stdio::null());
        Self { command }
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

    /// Runs it with its output captured and returns standard output as text.
    ///
    /// # Errors
    /// When it can't be started or doesn't exit with 0; the message holds the command line and its standard error.
    pub fn output(mut self) -> Result<String> {
        let shown = self.shown();
        let Output { status, stdout, stderr } = self.command.output().map_err(|e| start_error(&shown, &e))?;
        if !status.success() {
            bail!("`{shown}` failed ({status}): {}", String::from_utf8_lossy(&stderr).trim());
        }
        String::from_utf8(stdout)
            .with_context(|| format!("`{shown}` answered with something else than UTF-8"))
    }

    /// Runs it silently; its output is shown only in the error.
    ///
    /// # Errors
    /// As [`Program::output`].
    pub fn run(self) -> Result<()> {
        self.output().map(drop)
    }

    /// Runs it with our terminal as its output.
    ///
    /// # Errors
    /// When it can't be started or doesn't exit with 0.
    pub fn run_shown(mut self) -> Result<()> {
        let shown = self.shown();
        let status = self.command.status().map_err(|e| start_error(&shown, &e))?;
        if !status.success() {
            bail!("`{shown}` failed ({status})");
        }
        Ok(())
    }

    /// Runs it with our terminal as its output and input, and returns how it ended.
    ///
    /// # Errors
    /// Only when it can't be started.
    pub fn status(mut self) -> Result<ExitStatus> {
        let shown = self.shown();
        self.command.stdin(Stdio::inherit()).status().map_err(|e| start_error(&shown, &e))
    }

    /// Runs it silently and tells only whether it exited with 0; a program that isn't there has not.
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
    fn missing_program_names_the_next_step() {
        let text = Program::new("mesh-no-such-program").run().unwrap_err().to_string();
        assert!(text.contains("cargo xtask setup"), "expected the next step, saw: {text}");
    }
}

//! A daemon's settings: flags, then `MESH_*` variables, then a TOML file, then defaults.
//!
//! Everything comes from the daemon's clap definition: the file's keys are the long flags, and its
//! values go through the flags' own parsers. A new flag is a new key without any further code.
//!
//! Invariants: a value of the file never replaces one of the command line or the environment; a key
//! that the daemon doesn't know is an error, also for a command that has no such flag.

mod effective;
mod keys;
mod man;
mod values;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches};
use thiserror::Error;

pub use keys::Fault;
pub use man::write_man_pages;
pub use values::{Change, Values};

use crate::reload::Reloader;

/// The flags by which a daemon finds its file, and shows or checks what it was set to.
#[derive(Debug, Clone, Default, Args)]
pub struct SettingsArgs {
    /// File with settings in TOML, whose keys are these flags without their dashes [default:
    /// agent.toml or control.toml in /etc/mesh, if it exists]. Flags and variables replace what it
    /// says.
    #[arg(long, env = "MESH_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings in force as TOML, each with its origin, and exit.
    #[arg(long)]
    pub print_config: bool,
    /// Check the settings, print every mistake, and exit with 0 if there is none, else with 1.
    #[arg(long, conflicts_with = "print_config")]
    pub check_config: bool,
    /// Write the manual pages to a directory, and exit. For packages.
    #[arg(long, value_name = "DIR", hide = true)]
    pub write_man_pages: Option<PathBuf>,
}

/// What a daemon was called for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Run, or whatever the command says.
    Run,
    /// Print the settings in force.
    Print,
    /// Check the settings.
    Check,
    /// Write the manual pages to this directory.
    ManPages(PathBuf),
}

/// The settings in force.
#[derive(Debug)]
pub struct Settings<C> {
    /// The parsed command line, with the values of file and variables in it.
    pub cli: C,
    /// What the daemon was called for.
    pub request: Request,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// The settings in force, as TOML.
    pub effective: String,
    /// The same by their keys, secret ones too.
    pub values: Values,
}

/// Why there are no settings.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The command line or a variable is bad, or a setting is missing. Also help and version.
    #[error("{error}")]
    Usage {
        /// What clap found.
        error: clap::Error,
        /// The file in which a missing setting could be.
        file: PathBuf,
    },
    /// The file can't be read.
    #[error("read {}: see that the file exists and is readable, or name another with --config", path.display())]
    Unreadable {
        /// The file that was named, or is there by default.
        path: PathBuf,
        /// The error of the call that failed.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not TOML", path.display())]
    Syntax {
        /// The file that was read.
        path: PathBuf,
        /// What the parser found, with line and column.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Keys or values of the file are bad.
    #[error("{}", Faults(path, faults))]
    Faults {
        /// The file that was read.
        path: PathBuf,
        /// Every mistake in it.
        faults: Vec<Fault>,
    },
}

/// Every mistake on a line of its own, with file and key.
struct Faults<'a>(&'a Path, &'a [Fault]);

impl fmt::Display for Faults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.1.iter().enumerate() {
            let line_break = if number == 0 { "" } else { "\n" };
            write!(f, "{line_break}{}: {fault}", self.0.display())?;
        }
        Ok(())
    }
}

/// Reads the settings: `words` are the command line, `default_file` is read unless `--config` names
/// another, and may be absent.
///
/// # Errors
/// [`SettingsError`]
pub fn read<C: CommandFactory + FromArgMatches>(
    words: impl IntoIterator<Item = OsString>,
    default_file: &Path,
) -> Result<Settings<C>, SettingsError> {
    let mut words: Vec<OsString> = words.into_iter().collect();
    let command = C::command();
    let usage = |file: &Path| {
        let file = file.to_owned();
        |error| SettingsError::Usage { error, file }
    };
    // Without a look at what is missing or wrong: only who sets what matters here.
    let first = command.clone().ignore_errors(true).try_get_matches_from(&words);
    let first = first.map_err(usage(default_file))?;
    let (matches, active) = innermost(&first, &command);
    let named = matches.try_get_one::<PathBuf>("config").ok().flatten();
    let text = read_file(named.map_or(default_file, PathBuf::as_path), named.is_some())?;
    let path = named.cloned().unwrap_or_else(|| default_file.to_owned());
    let mut from_file = Vec::new();
    if let Some(text) = &text {
        let table: toml::Table = toml::from_str(text)
            .map_err(|source| SettingsError::Syntax { path: path.clone(), source: Box::new(source) })?;
        let settings = keys::settings(&command, &table)
            .map_err(|faults| SettingsError::Faults { path: path.clone(), faults })?;
        from_file.extend(settings.into_iter().filter(|setting| is_free(&setting.id, matches, active)));
    }
    // Appended flags belong to the innermost command, as neither daemon takes positional arguments.
    words.extend(from_file.iter().flat_map(|setting| setting.words.iter().map(OsString::from)));
    let matches = command.clone().try_get_matches_from(&words).map_err(usage(&path))?;
    let cli = C::from_arg_matches(&matches).map_err(usage(&path))?;
    let (matches, active) = innermost(&matches, &command);
    let is_from_file = |id: &str| from_file.iter().any(|setting| setting.id == id);
    Ok(Settings {
        cli,
        request: request(matches),
        effective: effective::toml(active, matches, is_from_file),
        values: Values::of(active, matches),
        file: text.map(|_| path),
    })
}

/// The file's text; `None` if it doesn't exist and nobody named it.
fn read_file(path: &Path, is_named: bool) -> Result<Option<String>, SettingsError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => Ok(None),
        Err(source) => Err(SettingsError::Unreadable { path: path.to_owned(), source }),
    }
}

/// The command that was given, with its matches.
fn innermost<'a>(mut matches: &'a ArgMatches, mut command: &'a Command) -> (&'a ArgMatches, &'a Command) {
    while let Some((name, inner)) = matches.subcommand()
        && let Some(subcommand) = command.find_subcommand(name)
    {
        (matches, command) = (inner, subcommand);
    }
    (matches, command)
}

/// Whether `command` has this flag, and neither its command line nor a variable sets it.
fn is_free(id: &str, matches: &ArgMatches, command: &Command) -> bool {
    let Some(flag) = command.get_arguments().find(|flag| flag.get_id() == id) else { return false };
    // Not by clap's source: with a bad variable, clap stops before it has looked at all of them.
    let has_variable = flag.get_env().is_some_and(|name| std::env::var_os(name).is_some());
    !has_variable && matches.value_source(id) != Some(ValueSource::CommandLine)
}

fn request(matches: &ArgMatches) -> Request {
    let is_set = |id| matches.try_get_one::<bool>(id).ok().flatten() == Some(&true);
    if let Some(directory) = matches.try_get_one::<PathBuf>("write_man_pages").ok().flatten() {
        Request::ManPages(directory.clone())
    } else if is_set("print_config") {
        Request::Print
    } else if is_set("check_config") {
        Request::Check
    } else {
        Request::Run
    }
}

/// A daemon's `main`: reads the settings of `C` and does what the command line asks for. `check`
/// looks for mistakes that no single flag shows; `run` is the daemon, which can read its settings
/// again.
pub fn launch<C: CommandFactory + FromArgMatches + 'static>(
    default_file: &'static Path,
    check: fn(C) -> anyhow::Result<()>,
    run: impl FnOnce(C, Reloader) -> anyhow::Result<()>,
) -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let only_checks = words.iter().any(|word| word == "--check-config");
    let name = C::command().get_name().to_owned();
    let settings = match read::<C>(words.clone(), default_file) {
        Ok(settings) => settings,
        Err(error) => return refuse(&name, &error, only_checks),
    };
    let end = match settings.request {
        Request::Run => {
            let read_again = move || {
                let settings = read::<C>(words.clone(), default_file)?;
                check(settings.cli).map(|()| settings.values)
            };
            run(settings.cli, Reloader::new(settings.values, read_again))
        }
        Request::Print => {
            print!("{}", settings.effective);
            Ok(())
        }
        Request::Check => check(settings.cli).map(|()| match settings.file {
            Some(file) => println!("{name}: {}: no mistakes", file.display()),
            None => println!("{name}: no mistakes; there is no {}", default_file.display()),
        }),
        Request::ManPages(directory) => write_man_pages(C::command(), &directory),
    };
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints why there are no settings, and returns the exit code: clap's, unless a check was asked
/// for.
fn refuse(name: &str, error: &SettingsError, only_checks: bool) -> ExitCode {
    let SettingsError::Usage { error, file } = error else {
        for line in crate::error_chain(error).lines() {
            eprintln!("{name}: {line}");
        }
        return ExitCode::FAILURE;
    };
    // Nothing else can be done if the terminal is gone.
    drop(error.print());
    if error.kind() == ErrorKind::MissingRequiredArgument {
        eprintln!("Give the flag, its variable, or its key in {}", file.display());
    }
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if only_checks => ExitCode::FAILURE,
        code => ExitCode::from(u8::try_from(code).unwrap_or(1)),
    }
}

#[cfg(test)]
mod tests;

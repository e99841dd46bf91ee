//! Tests with a daemon of their own, whose variables are some that cargo sets.

use std::net::IpAddr;

use clap::Parser;

use super::*;

/// A daemon with flags of every kind.
#[derive(Debug, Parser)]
#[command(name = "daemon", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Verb>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Run(Run),
    Tidy {
        #[arg(long)]
        config: Option<PathBuf>,
        #[arg(long, default_value = "/default")]
        data_dir: PathBuf,
    },
}

#[derive(Debug, Clone, Args)]
struct Run {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Cargo sets this variable for tests.
    #[arg(long, env = "CARGO_PKG_NAME")]
    package: Option<String>,
    #[arg(long, required = true)]
    advertise: Vec<IpAddr>,
    #[arg(long, default_value_t = 4799, value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: u16,
    #[arg(long, value_delimiter = ',')]
    interface: Vec<String>,
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
    #[arg(long, default_value = "/default")]
    data_dir: PathBuf,
    #[arg(long)]
    insecure: bool,
    #[arg(long, hide = true)]
    debug_faults: bool,
}

/// Settings of a command line and a file.
fn with_file(words: &[&str], file: &str) -> Result<Settings<Cli>, SettingsError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("daemon.toml");
    std::fs::write(&path, file).unwrap();
    read(["daemon"].iter().chain(words).map(OsString::from), &path)
}

/// The lines of the error, without the file's path.
fn faults(file: &str) -> Vec<String> {
    match with_file(&[], file).unwrap_err() {
        SettingsError::Faults { faults, .. } => faults.iter().map(ToString::to_string).collect(),
        other => panic!("expected faults, saw {other:?}"),
    }
}

#[test]
fn flags_come_before_variables_before_the_file_before_defaults() {
    let file = "advertise = ['10.0.0.1', '10.0.0.2']\nvxlan-port = 1\npackage = 'file'\ninsecure = true\n\
                interface = ['a', 'b']\n";
    let run = with_file(&["--vxlan-port", "2"], file).unwrap().cli.run;
    assert_eq!(run.vxlan_port, 2, "the flag");
    assert_eq!(run.package.as_deref(), Some("mesh-runtime"), "the variable");
    assert_eq!(run.advertise.len(), 2, "the file");
    assert_eq!((run.insecure, run.interface), (true, vec!["a".to_owned(), "b".to_owned()]), "the file");
    assert_eq!(run.data_dir, Path::new("/default"), "the default");
    let run = with_file(&["--interface", "c"], file).unwrap().cli.run;
    assert_eq!(run.interface, ["c"], "a list is replaced as a whole");
}

#[test]
fn flags_that_need_one_another_may_come_from_different_places() {
    let file = "advertise = '10.0.0.1'\nkey = '/k'\n";
    assert!(with_file(&["--cert", "/c"], file).is_ok());
    let alone = with_file(&[], file).unwrap_err().to_string();
    assert!(alone.contains("--cert"), "expected the missing flag, saw: {alone}");
}

#[test]
fn every_mistake_is_named_with_its_key() {
    let seen = faults(
        "vxlan_port = 1\ninsecure = 'yes'\nadvertise = 'node-1'\nvxlan-port = 70000\ncert = 1.5\n\
         check-config = true\n[interface]\n",
    );
    assert_eq!(seen.len(), 7, "{seen:#?}");
    let has = |start: &str, part: &str| {
        let line = seen.iter().find(|line| line.starts_with(&format!("{start}: ")));
        assert!(line.is_some_and(|line| line.contains(part)), "expected {start}: {part}, saw {seen:#?}");
    };
    has("vxlan_port", "the nearest is vxlan-port");
    has("insecure", "expected true or false");
    has("advertise", "invalid value 'node-1' for '--advertise");
    has("vxlan-port", "70000 is not in 1..");
    has("cert", "expected a string or a whole number");
    has("check-config", "no such key");
    has("interface", "expected a string, or a list of strings");
    let shown = with_file(&[], "a = 1\nb = 2\n").unwrap_err().to_string();
    assert_eq!(shown.matches("daemon.toml: ").count(), 2, "each line names the file, saw: {shown}");
}

#[test]
fn no_hidden_flag_is_suggested() {
    assert!(!faults("debug-fault = true")[0].contains("debug-faults"));
}

#[test]
fn a_file_that_is_no_toml_is_named_with_the_line() {
    let error = crate::error_chain(&with_file(&[], "a = 1\nb =\n").unwrap_err());
    assert!(error.contains("daemon.toml") && error.contains("line 2"), "saw: {error}");
}

#[test]
fn only_a_file_that_was_named_must_exist() {
    let absent = Path::new("/nonexistent/daemon.toml");
    let words = |words: &[&str]| ["daemon"].iter().chain(words).map(OsString::from).collect::<Vec<_>>();
    let settings = read::<Cli>(words(&["--advertise", "10.0.0.1"]), absent).unwrap();
    assert_eq!(settings.file, None);
    let error = read::<Cli>(words(&["--config", "/nonexistent/x"]), absent).unwrap_err();
    assert!(matches!(error, SettingsError::Unreadable { .. }), "saw: {error:?}");
    let error = read::<Cli>(words(&[]), absent).unwrap_err();
    assert!(matches!(error, SettingsError::Usage { .. }), "a required flag is missing, saw: {error:?}");
}

#[test]
fn a_subcommand_takes_its_keys_and_passes_over_the_others() {
    let file = "data-dir = '/file'\nvxlan-port = 7\n";
    let Some(Verb::Tidy { data_dir, .. }) = with_file(&["tidy"], file).unwrap().cli.command else {
        panic!("expected the subcommand")
    };
    assert_eq!(data_dir, Path::new("/file"));
    let Some(Verb::Tidy { data_dir, .. }) =
        with_file(&["tidy", "--data-dir", "/flag"], file).unwrap().cli.command
    else {
        panic!("expected the subcommand")
    };
    assert_eq!(data_dir, Path::new("/flag"));
    let words = ["run", "--advertise", "10.0.0.1"];
    let Some(Verb::Run(run)) = with_file(&words, file).unwrap().cli.command else { panic!("expected run") };
    assert_eq!(run.vxlan_port, 7);
    assert!(with_file(&["tidy"], "data-dri = '/x'").is_err(), "an unknown key is refused for every command");
}

#[test]
fn what_is_printed_has_the_same_effect_and_names_the_origins() {
    let file = "advertise = '10.0.0.1'\nvxlan-port = 7\ninterface = 'a'\n";
    let printed = with_file(&["--print-config", "--data-dir", "/flag"], file).unwrap();
    assert_eq!(printed.request, Request::Print);
    let origin = |key: &str| {
        let line = printed.effective.lines().find(|line| line.starts_with(key)).unwrap();
        line.rsplit_once("# ").unwrap().1.to_owned()
    };
    assert_eq!(origin("vxlan-port = 7"), "file");
    assert_eq!(origin("data-dir = \"/flag\""), "flag");
    assert_eq!(origin("package = "), "CARGO_PKG_NAME");
    assert_eq!(origin("insecure = false"), "default");
    assert_eq!(origin("# cert is not set"), "default");
    assert!(!printed.effective.contains("debug-faults"), "hidden flags stay hidden");
    let again = with_file(&[], &printed.effective).unwrap().cli.run;
    assert_eq!((again.vxlan_port, again.data_dir), (7, PathBuf::from("/flag")));
    assert_eq!(again.interface, ["a"]);
}

#[test]
fn a_bad_command_line_is_refused_as_ever() {
    for words in [&["--no-such-flag"][..], &["--vxlan-port", "x", "--advertise", "10.0.0.1"], &["--help"]] {
        let error = with_file(words, "advertise = '10.0.0.1'\nvxlan-port = 7\n").unwrap_err();
        assert!(matches!(error, SettingsError::Usage { .. }), "{words:?}: {error:?}");
    }
}

//! `mesh`: the commands that the `docker` CLI doesn't have.
//!
//! Purpose: show the cluster as mesh sees it, and change mesh's own settings. It is a client of the
//! Docker API like any other: `docker service inspect` shows what it sets.
//!
//! Left to others: everything that `docker service`, `docker node` and `docker swarm` can do.

mod backup;
mod check;
mod cli;
mod client;
mod context;
mod etcd_certificates;
mod membership;
mod policy;
mod problems;
mod remote_client;
mod service;
mod spent;
mod status;
mod table;
mod token;
mod why;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use cli::{Cli, Command, PolicyCommand, ServiceCommand};
use client::{Client, ClientError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Check(args) = &cli.command {
        return check::run(&cli.host, args, cli.output).await;
    }
    match run(&cli).await {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("mesh: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

async fn run(cli: &Cli) -> anyhow::Result<String> {
    let client = Client::new(cli.host.clone());
    match &cli.command {
        Command::Policy { command: PolicyCommand::Get { service } } => {
            policy::get(&client, service, cli.output).await
        }
        Command::Policy { command: PolicyCommand::Set { service, policy } } => {
            policy::set(&client, service, *policy, cli.output).await
        }
        Command::Service { command: ServiceCommand::Show { service } } => {
            service::show(&client, service, cli.output).await
        }
        // Its exit code depends on what it finds.
        Command::Check(_) => Ok(String::new()),
        Command::Up { advertise_addr, skip_check } => {
            membership::up(&client, advertise_addr.as_deref(), *skip_check, cli.output).await
        }
        Command::Join { token, manager, advertise_addr, skip_check } => {
            let towards = (token.as_str(), manager.as_str());
            membership::join(&client, towards, advertise_addr.as_deref(), *skip_check, cli.output).await
        }
        Command::Client(args) => remote_client::run(args, cli.output).await,
        Command::Backup { command } => backup::run(&client, command, cli.output).await,
        Command::Status(args) => status::show(&client, args.wait, cli.output).await,
        Command::Why { asked } => why::show(&client, asked, cli.output).await,
        Command::EtcdCertificates { out, days, members } => etcd_certificates::make(out, *days, members),
        Command::Context { make_current } => context::set_up(&cli.host, *make_current),
        Command::Completions { shell } => completions(*shell),
        Command::ManPages { directory } => {
            mesh_runtime::settings::write_man_pages(Cli::command(), directory)?;
            Ok(format!("wrote the manual pages to {}", directory.display()))
        }
        Command::Token { role } => token::show(&client, *role, cli.output).await,
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<String> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mesh", &mut text);
    Ok(String::from_utf8(text)?)
}

/// The exit code of a host that can't be reached, is no manager, or has lost etcd.
const UNREACHABLE: u8 = 4;

/// The exit codes that `--help` documents.
fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<status::StillUnwell>() {
        return 6;
    }
    if error.is::<why::NoSuchSlot>() {
        return 3;
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused { status: 404, .. }) => 3,
        Some(ClientError::Refused { status: 503, .. } | ClientError::Unreachable { .. }) => UNREACHABLE,
        _ => 1,
    }
}

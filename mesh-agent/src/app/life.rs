//! The node's life: alone, a member, alone again. Serves the calls that change it, one at a time.
//!
//! Invariants: a join that fails leaves nothing behind; a member's parts have ended before the node
//! is alone; an error that no client asked for ends the process, for its supervisor to restart it.

use std::pin::pin;

use mesh_runtime::Components;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Process, STOP_LIMIT, departure, member};
use crate::cli::RunArgs;
use crate::config::{Config, hostname};
use crate::control_link::identity::Identity;
use crate::control_link::place::Place;
use crate::enrolment::attempt::{self, Admitted};
use crate::enrolment::{Call, Desk, EnrolmentError, JOIN_LIMIT, JoinOrder, LocalState, Reply};

/// What a member begins with: its settings, and its identity unless it is to join by its flags.
pub(super) type Beginning = (Config, Option<Identity>);

/// A node that was admitted on a client's call.
struct Arrival {
    beginning: Beginning,
    client: Client,
}

/// The client that waits for a join.
struct Client {
    reply: Option<Reply>,
    deadline: Instant,
}

impl Client {
    fn answer(&mut self, outcome: Result<(), EnrolmentError>) {
        let Some(reply) = self.reply.take() else { return };
        if reply.send(outcome).is_err() {
            tracing::debug!("the client that asked to join is gone");
        }
    }
}

/// How being a member ended.
enum End {
    /// The process stops.
    Stopping,
    /// The node is alone again.
    Left,
}

/// What the node begins with as a member, by what is on its disk and by its flags; `None` if it is
/// in no cluster and its flags name none.
///
/// # Errors
/// A file can't be used, or a setting is missing or wrong.
pub(super) fn present(args: &RunArgs) -> anyhow::Result<Option<Beginning>> {
    let identity = Identity::load(&args.data_dir)?;
    let place = Place::load(&args.data_dir)?.unwrap_or_default();
    let joins_by_flags = !args.manager.is_empty() || args.join_token_file.is_some();
    if identity.is_none() && place.left && joins_by_flags {
        tracing::info!(
            "this node left its cluster: it joins one by docker swarm join only, not by its flags"
        );
    }
    if identity.is_none() && (place.left || !joins_by_flags) {
        return Ok(None);
    }
    let config = Config::new(placed(args, &place))?;
    if identity.is_none() {
        config.join_token()?;
    }
    Ok(Some((config, identity)))
}

/// The flags, completed with where the node's cluster is.
fn placed(args: &RunArgs, place: &Place) -> RunArgs {
    let mut args = args.clone();
    for manager in &place.managers {
        if !args.manager.contains(manager) {
            args.manager.push(*manager);
        }
    }
    args.address = args.address.or(place.address);
    args
}

/// Lives until the process stops.
///
/// # Errors
/// What a member runs can't start, or failed.
pub(super) async fn live(
    process: &Process,
    mut desk: Desk,
    mut begins: Option<Beginning>,
) -> anyhow::Result<()> {
    loop {
        let (beginning, client) = match begins.take() {
            Some(beginning) => (beginning, None),
            None => match alone(process, &mut desk).await? {
                Some(arrival) => (arrival.beginning, Some(arrival.client)),
                None => return Ok(()),
            },
        };
        if matches!(be_member(process, &mut desk, beginning, client).await?, End::Stopping) {
            return Ok(());
        }
    }
}

/// Serves calls while the node is in no cluster. Returns `None` when the process stops.
async fn alone(process: &Process, desk: &mut Desk) -> anyhow::Result<Option<Arrival>> {
    desk.state.send_replace(LocalState::Inactive);
    process.ready.send_replace(true);
    tracing::info!("this node is in no cluster: docker swarm join on its socket makes it a member of one");
    let stop = process.components.stopping();
    loop {
        let call = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            call = desk.next() => call,
        };
        match call {
            Call::Leave { reply, .. } => answer(reply, Err(EnrolmentError::NotMember)),
            Call::Join(order, reply) => {
                desk.state.send_replace(LocalState::Pending);
                let client = Client { reply: Some(reply), deadline: Instant::now() + JOIN_LIMIT };
                let arrival = join(process, desk, order, client).await?;
                if stop.is_cancelled() || arrival.is_some() {
                    return Ok(arrival);
                }
                desk.state.send_replace(LocalState::Inactive);
            }
        }
    }
}

/// Tries to join until there is an outcome. The client is answered if that takes too long, if it
/// fails, or if it is given up; otherwise it waits on.
async fn join(
    process: &Process,
    desk: &mut Desk,
    order: JoinOrder,
    mut client: Client,
) -> anyhow::Result<Option<Arrival>> {
    let hostname = process.args.name.clone().map_or_else(hostname, Ok)?;
    tracing::info!(managers = ?order.remotes, "join the cluster");
    let mut attempt = pin!(attempt::join(&order, &hostname));
    let outcome = loop {
        tokio::select! {
            () = process.components.stopping().cancelled() => return Ok(None),
            outcome = &mut attempt => break outcome,
            () = sleep_until(client.deadline), if client.reply.is_some() => {
                client.answer(Err(EnrolmentError::Timeout));
            }
            call = desk.next() => match call {
                Call::Join(_, reply) => answer(reply, Err(EnrolmentError::AlreadyMember)),
                Call::Leave { reply, .. } => {
                    client.answer(Err(EnrolmentError::GivenUp));
                    desk.state.send_replace(LocalState::Inactive);
                    answer(reply, Ok(()));
                    return Ok(None);
                }
            },
        }
    };
    let kept = outcome.and_then(|admitted| {
        settle(process, &order, admitted).map_err(|error| EnrolmentError::Join(format!("{error:#}")))
    });
    match kept {
        Ok(beginning) => Ok(Some(Arrival { beginning, client })),
        Err(error) => {
            tracing::warn!(error = %error, "this node did not join");
            desk.state.send_replace(LocalState::Inactive);
            client.answer(Err(error));
            Ok(None)
        }
    }
}

/// Stores what the node got as it joined: the place first, as an identity alone names no manager.
fn settle(process: &Process, order: &JoinOrder, admitted: Admitted) -> anyhow::Result<Beginning> {
    let place = Place {
        managers: admitted.managers,
        address: order.address,
        advertise: order.advertise,
        listen: Some(order.listen),
        left: false,
    };
    let config = Config::new(placed(&process.args, &place))?;
    place.store(&process.args.data_dir)?;
    admitted.identity.store(&process.args.data_dir)?;
    Ok((config, Some(admitted.identity)))
}

/// Runs what a member runs until the process stops or the node leaves.
async fn be_member(
    process: &Process,
    desk: &mut Desk,
    (config, identity): Beginning,
    client: Option<Client>,
) -> anyhow::Result<End> {
    let components = process.components.phase();
    let begun = member::start(process, config.clone(), identity, &components).await;
    let connected = match begun {
        Ok(connected) => connected,
        Err(error) => return undo(process, desk, (components, &config), client, error).await,
    };
    desk.state.send_replace(LocalState::Active);
    let Some(leaving) = serve_member(process, &components, desk, connected, client).await else {
        components.wait(STOP_LIMIT).await?;
        return Ok(End::Stopping);
    };
    let outcome = departure::depart(process, &config, components).await;
    desk.state.send_replace(LocalState::Inactive);
    answer(leaving, outcome);
    Ok(End::Left)
}

/// Serves calls while the node is a member. Returns the client that makes the node leave; `None`
/// when the process stops or a component fails.
async fn serve_member(
    process: &Process,
    components: &Components,
    desk: &mut Desk,
    mut connected: watch::Receiver<bool>,
    mut client: Option<Client>,
) -> Option<Reply> {
    loop {
        let deadline = client.as_ref().map_or_else(Instant::now, |client| client.deadline);
        tokio::select! {
            () = components.stopping().cancelled() => return None,
            // The sender is gone only when the member ends.
            _ = connected.wait_for(|connected| *connected), if client.is_some() => {
                client.take().into_iter().for_each(|mut client| client.answer(Ok(())));
            }
            () = sleep_until(deadline), if client.is_some() => {
                client.take().into_iter().for_each(|mut client| client.answer(Err(EnrolmentError::Timeout)));
            }
            call = desk.next() => match call {
                Call::Join(_, reply) => answer(reply, Err(EnrolmentError::AlreadyMember)),
                Call::Leave { force, reply } => match departure::check(process, force).await {
                    Ok(()) => return Some(reply),
                    Err(error) => answer(reply, Err(error)),
                },
            },
        }
    }
}

/// Takes back a membership that can't begin. If no client asked for it, the process ends.
async fn undo(
    process: &Process,
    desk: &Desk,
    (components, config): (Components, &Config),
    client: Option<Client>,
    error: anyhow::Error,
) -> anyhow::Result<End> {
    let Some(mut client) = client else {
        components.stopping().cancel();
        components.wait(STOP_LIMIT).await?;
        return Err(error);
    };
    let mut reason = format!("{error:#}");
    if let Err(left) = departure::depart(process, config, components).await {
        reason = format!("{reason}; {left}");
    }
    tracing::error!(reason, "this node can't take part in its cluster: it left again");
    desk.state.send_replace(LocalState::Inactive);
    client.answer(Err(EnrolmentError::Start(reason)));
    Ok(End::Left)
}

fn answer(reply: Reply, outcome: Result<(), EnrolmentError>) {
    if reply.send(outcome).is_err() {
        tracing::debug!("the client of a call about the membership is gone");
    }
}

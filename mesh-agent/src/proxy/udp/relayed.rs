//! A relayed UDP flow on the task's node: from frames to the task and back.
//!
//! Left to others: which peers may ask ([`crate::proxy::relay`]), and how long a flow lives
//! ([`super::sessions`], on the node that took it): the flow ends with its connection.

use std::io;
use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::link::{Receiver, Sender, to_node, to_task};
use crate::proxy::preamble::Answer;
use crate::proxy::routes::Target;

/// Carries the flow until its connection ends, the task refuses, or the backend is gone.
pub(in crate::proxy) async fn carry(mut stream: TcpStream, target: &Target, task: SocketAddr) {
    let linked = to_task(task).await;
    let answer = if linked.is_ok() { Answer::Connected } else { Answer::Unreachable };
    if let Err(error) = stream.write_all(&[answer.to_byte()]).await {
        tracing::debug!(
            error = mesh_runtime::error_chain(&error),
            "send the answer to a relayed flow's node"
        );
        return;
    }
    let (mut to_task, mut from_task) = match linked {
        Ok(link) => link,
        Err(error) => {
            tracing::debug!(
                backend = target.id.get(),
                error = mesh_runtime::error_chain(&error),
                "open a socket to a task"
            );
            return;
        }
    };
    let (mut to_node, mut from_node) = to_node(stream);
    let both = async {
        tokio::select! {
            ended = pass(&mut from_node, &mut to_task) => ended,
            ended = pass(&mut from_task, &mut to_node) => ended,
        }
    };
    tokio::select! {
        ended = both => if let Err(error) = ended {
            tracing::debug!(backend = target.id.get(), error = mesh_runtime::error_chain(&error), "a relayed flow ended");
        },
        () = target.entry.gone().signalled() => {}
    }
}

async fn pass(from: &mut Receiver, to: &mut Sender) -> io::Result<()> {
    let mut datagram = Vec::new();
    while from.receive(&mut datagram).await? {
        to.send(&datagram).await?;
    }
    Ok(())
}

//! Handles a node's reports in its session, and acknowledges those that the store holds.

use chrono::Utc;
use mesh_admission::figures::report::{LOADS, MESSAGE_BYTES, STATUSES, STATUSES_WAITING};
use mesh_admission::refusals::Reason;
use mesh_admission::text::Outside;
use mesh_state::Timestamp;
use mesh_state::ids::TaskId;
use mesh_state::node::PortClash;
use mesh_state::proto;
use mesh_state::proto::agent_message::Body as Up;
use mesh_state::proto::control_message::Body as Down;
use mesh_state::proto::{AgentMessage, PortClashes, TaskStatuses};
use mesh_state::report::{self, ReportError};
use mesh_state::spec::Protocol;
use mesh_state::store::generation_of;
use prost::Message as _;
use tracing::debug;

use super::super::end::SessionEnd;
use super::Session;
use crate::feed::clocks::Peer;
use crate::feed::snapshot::ClusterSnapshot;

impl Session {
    pub(super) fn receive(&mut self, message: AgentMessage) -> Result<(), SessionEnd> {
        report::check_bytes("a message", message.encoded_len(), MESSAGE_BYTES)?;
        if !self.rate.take(std::time::Instant::now()) {
            return Err(SessionEnd::TooFast);
        }
        self.note_heard();
        match message.body {
            Some(Up::Heartbeat(heartbeat)) => {
                report::check_entries("the list of loads", heartbeat.loads.len(), LOADS)?;
                self.note_engine(heartbeat.engine_away);
                self.note_time(heartbeat.unix_ms)?;
                self.loads.put(&self.node, heartbeat.loads);
            }
            Some(Up::Statuses(statuses)) => self.take_statuses(statuses)?,
            Some(Up::TableAck(ack)) => {
                // No node can hold a table that is newer than the store.
                let newest = generation_of(self.snapshots.borrow().revision);
                let sent = self.sent_table.as_ref().map_or(0, |table| table.generation);
                let (node, generation) = (self.node.clone(), ack.generation.min(newest.max(sent)));
                self.reports.leave(|mailbox| mailbox.put_ack(node, generation));
            }
            Some(Up::PortClashes(told)) => {
                let (node, clashes) = (self.node.clone(), port_clashes(told)?);
                self.reports.leave(|mailbox| mailbox.put_clashes(node, clashes));
            }
            Some(Up::HostNetworks(told)) => {
                let (node, networks) = (self.node.clone(), report::read_host_networks(&told.networks)?);
                self.reports.leave(|mailbox| mailbox.put_host_networks(node, networks));
            }
            Some(Up::Hello(_)) => return Err(SessionEnd::Protocol("a second hello came")),
            None => {
                return Err(SessionEnd::Protocol("a message of an unknown kind came: upgrade this manager"));
            }
        }
        Ok(())
    }

    /// Notes the node's clock. Older agents don't send it.
    fn note_time(&self, unix_ms: i64) -> Result<(), SessionEnd> {
        if unix_ms == 0 {
            return Ok(());
        }
        let told = Timestamp::from_timestamp_millis(unix_ms)
            .ok_or(SessionEnd::Protocol("a heartbeat came with a time that is none"))?;
        self.clocks.tell(&Peer::Node(self.node.clone()), told, Utc::now());
        Ok(())
    }

    fn take_statuses(&mut self, statuses: TaskStatuses) -> Result<(), SessionEnd> {
        report::check_entries("the list of statuses", statuses.statuses.len(), STATUSES)?;
        let waiting = self.unacknowledged.len() + statuses.statuses.len();
        report::check_entries("the list of statuses that wait", waiting, STATUSES_WAITING)?;
        for reported in statuses.statuses {
            let status = match report::read_status(&reported.task_id, &reported.status_json) {
                Ok(status) => status,
                // The status may be of another version of mesh: the node's other tasks are handled
                // all the same.
                Err(ReportError::Unreadable { source, .. }) => {
                    let what = format!("node {}, task {}: {source}", self.node, reported.task_id);
                    self.door.refuse(Reason::Unwritable, &what);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let task = TaskId::from(reported.task_id);
            let message = Outside(&status.message);
            debug!(node = %self.node, %task, state = status.state.as_str(), %message, "a task's status came");
            self.unacknowledged.put(task.clone(), reported.number, status.clone());
            self.reports.leave_status(self.node.clone(), task, status);
        }
        self.snapshots.mark_changed();
        Ok(())
    }

    /// Acknowledges the statuses that the store holds by now, and those that it will never hold.
    pub(super) async fn acknowledge(&mut self, snapshot: &ClusterSnapshot) -> Result<(), SessionEnd> {
        let done = self.unacknowledged.settle(&self.node, snapshot);
        if done.task_ids.is_empty() {
            return Ok(());
        }
        self.send(Down::StatusAck(done)).await
    }
}

/// The published ports that a node can't listen on, in their stored form.
fn port_clashes(told: PortClashes) -> Result<Vec<PortClash>, SessionEnd> {
    let clash = |clash: proto::PortClash| {
        let known = [Protocol::Tcp, Protocol::Udp];
        let protocol = known.into_iter().find(|protocol| protocol.as_str() == clash.protocol)?;
        Some(PortClash { protocol, port: u16::try_from(clash.port).ok()?, reason: clash.reason })
    };
    let clashes: Option<Vec<PortClash>> = told.clashes.into_iter().map(clash).collect();
    let clashes = clashes.ok_or(SessionEnd::Protocol("a port clash that can't be read came"))?;
    report::check_clashes(&clashes)?;
    Ok(clashes)
}

//! Encodes a log stream for Docker's clients. Pure.
//!
//! Invariant: a frame holds one line with its own prefix, as clients take a frame as one write and
//! look for the prefix in each. Frames are Docker's stdcopy: stream, three zeroes, length as
//! big-endian u32 ("Attach to a container" in Docker's API).

use bytes::{BufMut as _, Bytes, BytesMut};
use chrono::{DateTime, SecondsFormat};
use mesh_state::ids::{NodeId, ServiceId, TaskId};
use mesh_state::proto::LogLine;

/// The form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    /// Both outputs in one stream without frames, for tasks with a terminal.
    pub(crate) raw: bool,
    /// Put the time in front.
    pub(crate) timestamps: bool,
    /// Put node, service and task in front.
    pub(crate) details: bool,
}

/// The source of a line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// The task's node.
    pub(crate) node: &'a NodeId,
    /// The task's service.
    pub(crate) service: &'a ServiceId,
    /// The task that wrote the line.
    pub(crate) task: &'a TaskId,
}

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// Docker's stream number for errors of the daemon: clients show the text and stop reading.
const SYSTEM_ERROR: u8 = 3;

impl Format {
    /// Appends a line.
    pub(crate) fn line(self, out: &mut BytesMut, origin: Origin<'_>, line: &LogLine) {
        let mut prefix = String::new();
        if self.timestamps {
            let at = DateTime::from_timestamp_nanos(line.unix_ns);
            prefix.push_str(&at.to_rfc3339_opts(SecondsFormat::Nanos, true));
            prefix.push(' ');
        }
        if self.details {
            prefix.push_str(&details(origin, &line.details));
            prefix.push(' ');
        }
        self.frame(out, if line.stderr { STDERR } else { STDOUT }, prefix.as_bytes(), &line.data);
    }

    /// The error at the end of a stream that lists the missing logs.
    pub(crate) fn incomplete(self, reasons: &[String]) -> Bytes {
        let text = format!(
            "Error grabbing logs: warning: incomplete log stream. some logs could not be retrieved for the following reasons: {}\n",
            reasons.join(", ")
        );
        let mut out = BytesMut::new();
        self.frame(&mut out, SYSTEM_ERROR, &[], text.as_bytes());
        out.freeze()
    }

    fn frame(self, out: &mut BytesMut, stream: u8, prefix: &[u8], data: &[u8]) {
        if !self.raw {
            let length = u32::try_from(prefix.len() + data.len()).unwrap_or(u32::MAX);
            out.put_slice(&[stream, 0, 0, 0]);
            out.put_u32(length);
        }
        out.put_slice(prefix);
        out.put_slice(data);
    }
}

/// `key=value` by key, those of the log driver included; the driver can't override these three
/// keys.
fn details(origin: Origin<'_>, of_driver: &str) -> String {
    let own = [
        format!("com.docker.swarm.node.id={}", origin.node),
        format!("com.docker.swarm.service.id={}", origin.service),
        format!("com.docker.swarm.task.id={}", origin.task),
    ];
    let key = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let theirs = of_driver.split(',').filter(|pair| !pair.is_empty());
    let theirs = theirs.filter(|pair| own.iter().all(|mine| key(mine) != key(pair))).map(str::to_owned);
    let mut all: Vec<String> = theirs.chain(own.iter().cloned()).collect();
    all.sort_by_key(|pair| key(pair));
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stderr: bool, details: &str, data: &'static [u8]) -> LogLine {
        let (task_id, details) = ("t1".to_owned(), details.to_owned());
        LogLine { task_id, stderr, unix_ns: 1_700_000_000_000_000_042, details, data: data.into() }
    }

    fn written(format: Format, line: &LogLine) -> Vec<u8> {
        let (node, service, task) = ("n1".into(), "s1".into(), "t1".into());
        let mut out = BytesMut::new();
        format.line(&mut out, Origin { node: &node, service: &service, task: &task }, line);
        out.to_vec()
    }

    #[test]
    fn a_frame_is_a_line_with_its_time_and_place() {
        let format = Format { raw: false, timestamps: true, details: true };
        let seen = written(format, &line(true, "zone=a%3Db,app=x", b"hello\n"));
        let text = "2023-11-14T22:13:20.000000042Z app=x,com.docker.swarm.node.id=n1,\
                    com.docker.swarm.service.id=s1,com.docker.swarm.task.id=t1,zone=a%3Db hello\n";
        assert_eq!(seen[..4], [2, 0, 0, 0]);
        assert_eq!(seen[4..8], u32::try_from(text.len()).unwrap().to_be_bytes());
        assert_eq!(String::from_utf8_lossy(&seen[8..]), text);
    }

    #[test]
    fn a_terminal_has_no_frames() {
        let format = Format { raw: true, timestamps: false, details: false };
        assert_eq!(written(format, &line(false, "", b"\x1b[0m$ ")), b"\x1b[0m$ ");
    }

    #[test]
    fn a_driver_cant_forge_the_source_of_a_line() {
        let format = Format { raw: true, timestamps: false, details: true };
        let seen = written(format, &line(false, "com.docker.swarm.task.id=forged", b"x"));
        let text = String::from_utf8(seen).unwrap();
        assert!(text.contains("task.id=t1 x") && !text.contains("forged"), "saw {text}");
    }

    #[test]
    fn missing_logs_are_an_error_of_the_daemon() {
        let format = Format { raw: false, timestamps: false, details: false };
        let seen = format.incomplete(&["node a is not available".to_owned(), "b".to_owned()]);
        assert_eq!(seen[0], SYSTEM_ERROR);
        let text = String::from_utf8_lossy(&seen[8..]).into_owned();
        assert!(text.ends_with("the following reasons: node a is not available, b\n"), "saw {text}");
    }
}

//! Filters of the `clsact` qdisc, by which TC programs are attached where the kernel has no tcx
//! links (before Linux 6.6).
//!
//! Invariants: mesh has one place at an interface and side, a fixed priority and handle. The kernel
//! exchanges the filter at a place in one step, so no packet passes without a program. A filter
//! persists without any process, until it or its interface is deleted. Its name says that it is
//! mesh's, and which hook it is; a filter of another name is never replaced or removed.
//!
//! Messages are read by hand here, and only as far as needed: a qdisc or filter of others that
//! can't be parsed must not keep mesh from working.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rtnetlink::packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NetlinkDeserializable,
    NetlinkHeader, NetlinkSerializable,
};

use super::netlink::Netlink;

/// mesh's place: behind filters with lower numbers, before those whose number the kernel chooses.
const PRIORITY: u32 = 50;
const HANDLE: u32 = 1;

/// The handle of a `clsact` or `ingress` qdisc, and its parent.
const QDISC: u32 = 0xffff_0000;
const QDISC_PARENT: u32 = 0xffff_fff1;

/// Attributes of qdiscs and filters, from linux/rtnetlink.h and linux/pkt_cls.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
/// The bit of an attribute's kind that says that it holds attributes.
const NESTED: u16 = 1 << 15;
/// The program's return value is the verdict.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// Where a filter sees its interface's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// Packets that come in.
    Ingress,
    /// Packets that go out.
    Egress,
}

impl Side {
    /// Both sides.
    const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// The name of a filter of mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    /// The hook: `links/eth0-tc`, `tasks/<task>`.
    pub(crate) hook: String,
    /// Whether mesh has made the qdisc, and so removes it with its last filter.
    made_qdisc: bool,
}

impl Label {
    const PREFIX: &str = "mesh:";
    const PREFIX_WITH_QDISC: &str = "mesh+qdisc:";

    /// Reads a filter's name; `None` if it isn't mesh's.
    fn parse(name: &str) -> Option<Self> {
        let own = name.strip_prefix(Self::PREFIX).map(|hook| (hook, false));
        let (hook, made_qdisc) =
            own.or_else(|| name.strip_prefix(Self::PREFIX_WITH_QDISC).map(|hook| (hook, true)))?;
        let is_hook = matches!(hook.split_once('/'), Some(("links" | "tasks", rest)) if !rest.is_empty() && !rest.contains(['/', '.']));
        is_hook.then(|| Self { hook: hook.to_owned(), made_qdisc })
    }

    fn name(&self) -> String {
        let prefix = if self.made_qdisc { Self::PREFIX_WITH_QDISC } else { Self::PREFIX };
        format!("{prefix}{}", self.hook)
    }
}

/// A filter at mesh's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Index of its interface.
    pub(crate) ifindex: u32,
    /// Which of its interface's packets it sees.
    pub(crate) side: Side,
    /// Its name; `None` if it is not mesh's.
    pub(crate) label: Option<Label>,
}

impl Netlink {
    /// The filter at mesh's place of an interface, whoever has made it.
    ///
    /// # Errors
    /// The kernel refuses the query.
    pub(crate) fn filter(&mut self, ifindex: u32, side: Side) -> io::Result<Option<Filter>> {
        let answers = match self.ask(Message::filter(libc::RTM_GETTFILTER, ifindex, side), NLM_F_ACK) {
            Ok(answers) => answers,
            // There is no such interface, no qdisc, or no filter at this place.
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = answers.iter().find(|answer| answer.handle == HANDLE);
        Ok(found.map(|answer| Filter { ifindex, side, label: answer.label() }))
    }

    /// Every filter of mesh.
    ///
    /// # Errors
    /// The kernel refuses a query.
    pub(crate) fn filters(&mut self) -> io::Result<Vec<Filter>> {
        let mut filters = Vec::new();
        for (ifindex, kind) in self.ingress_qdiscs()? {
            for side in Side::BOTH {
                if side == Side::Ingress || kind == "clsact" {
                    filters.extend(self.filter(ifindex, side)?.filter(|filter| filter.label.is_some()));
                }
            }
        }
        Ok(filters)
    }

    /// Puts a program at mesh's place, in one step in the place of the one that is there.
    ///
    /// # Errors
    /// The place is somebody else's, or the kernel refuses the qdisc or the filter.
    pub(crate) fn place_filter(
        &mut self,
        ifindex: u32,
        side: Side,
        hook: &str,
        program: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let made_qdisc = match self.filter(ifindex, side)? {
            Some(Filter { label: Some(label), .. }) => label.made_qdisc,
            Some(_) => {
                let text = format!("another program's filter has priority {PRIORITY} and handle {HANDLE}");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            None => self.ensure_qdisc(ifindex, side)?,
        };
        let name = Label { hook: hook.to_owned(), made_qdisc }.name();
        let options = [
            attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes()),
            attribute(TCA_BPF_NAME, &terminated(&name)),
            attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes()),
        ];
        let mut message = Message::filter(libc::RTM_NEWTFILTER, ifindex, side);
        message.attributes.extend(attribute(TCA_OPTIONS, &options.concat()));
        self.ask(message, NLM_F_ACK | NLM_F_CREATE).map(drop)
    }

    /// Removes a filter of mesh; and the qdisc, if mesh has made it and no filter is left in it.
    /// One that is gone already is no error.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(crate) fn remove_filter(&mut self, filter: &Filter) -> io::Result<()> {
        let Some(label) = &filter.label else { return Ok(()) };
        let (ifindex, side) = (filter.ifindex, filter.side);
        absent_is_fine(self.ask(Message::filter(libc::RTM_DELTFILTER, ifindex, side), NLM_F_ACK))?;
        if !label.made_qdisc {
            return Ok(());
        }
        for side in Side::BOTH {
            let all = Message { ifindex, parent: side.parent(), ..Message::new(libc::RTM_GETTFILTER) };
            if !absent_is_fine(self.ask(all, NLM_F_DUMP))?.is_empty() {
                return Ok(());
            }
        }
        absent_is_fine(self.ask(Message::qdisc(libc::RTM_DELQDISC, ifindex), NLM_F_ACK)).map(drop)
    }

    /// Makes the qdisc if there is none. Returns whether it is mesh's.
    fn ensure_qdisc(&mut self, ifindex: u32, side: Side) -> io::Result<bool> {
        let mut message = Message::qdisc(libc::RTM_NEWQDISC, ifindex);
        message.attributes.extend(attribute(TCA_KIND, &terminated("clsact")));
        match self.ask(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL) {
            Ok(_) => return Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(error),
        }
        // An `ingress` qdisc takes filters for packets that go out, too, and runs them on those
        // that come in.
        let kind = self.ingress_qdiscs()?.remove(&ifindex);
        if side == Side::Egress && kind.as_deref() == Some("ingress") {
            let text = "it has a qdisc of the kind `ingress`, which has no programs for outgoing packets: \
                        replace it with clsact";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        for side in Side::BOTH {
            if self.filter(ifindex, side)?.and_then(|filter| filter.label).is_some_and(|own| own.made_qdisc) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The kinds of the qdiscs that take filters for incoming packets, by interface.
    fn ingress_qdiscs(&mut self) -> io::Result<BTreeMap<u32, String>> {
        let answers = self.ask(Message::new(libc::RTM_GETQDISC), NLM_F_DUMP)?;
        let qdiscs = answers.iter().filter(|answer| answer.parent == QDISC_PARENT);
        Ok(qdiscs.filter_map(|qdisc| Some((qdisc.ifindex, qdisc.text(TCA_KIND)?))).collect())
    }
}

/// Whether the error says that the interface, the qdisc or the filter does not exist.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV))
}

fn absent_is_fine(result: io::Result<Vec<Message>>) -> io::Result<Vec<Message>> {
    match result {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        other => other,
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_owned());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// A string as the kernel reads it.
fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_owned();
    bytes.push(0);
    bytes
}

/// A message about a qdisc or a filter: `struct tcmsg`, and attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Message {
    kind: u16,
    ifindex: u32,
    handle: u32,
    parent: u32,
    info: u32,
    attributes: Vec<u8>,
}

impl Message {
    /// Length of `struct tcmsg`.
    const HEADER: usize = 20;

    fn new(kind: u16) -> Self {
        Self { kind, ..Self::default() }
    }

    fn qdisc(kind: u16, ifindex: u32) -> Self {
        Self { ifindex, handle: QDISC, parent: QDISC_PARENT, ..Self::new(kind) }
    }

    /// A filter at mesh's place.
    fn filter(kind: u16, ifindex: u32, side: Side) -> Self {
        let every_protocol = u32::from(u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be());
        Self {
            ifindex,
            handle: HANDLE,
            parent: side.parent(),
            info: (PRIORITY << 16) | every_protocol,
            attributes: attribute(TCA_KIND, &terminated("bpf")),
            ..Self::new(kind)
        }
    }

    /// The value of the first attribute of a kind.
    fn value(attributes: &[u8], kind: u16) -> Option<&[u8]> {
        let mut rest = attributes;
        while let [low, high, tail @ ..] = rest {
            let length = usize::from(u16::from_ne_bytes([*low, *high]));
            let found = u16::from_ne_bytes(tail.first_chunk().copied()?) & !NESTED;
            if found == kind {
                return rest.get(4..length);
            }
            rest = rest.get(length.max(4).next_multiple_of(4)..)?;
        }
        None
    }

    fn text(&self, kind: u16) -> Option<String> {
        text(Self::value(&self.attributes, kind)?)
    }

    /// The name of a filter of mesh.
    fn label(&self) -> Option<Label> {
        if self.text(TCA_KIND)? != "bpf" {
            return None;
        }
        let options = Self::value(&self.attributes, TCA_OPTIONS)?;
        Label::parse(&text(Self::value(options, TCA_BPF_NAME)?)?)
    }
}

fn text(value: &[u8]) -> Option<String> {
    Some(std::str::from_utf8(value).ok()?.trim_end_matches('\0').to_owned())
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        Self::HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..Self::HEADER].fill(0);
        for (at, word) in [self.ifindex, self.handle, self.parent, self.info].into_iter().enumerate() {
            buffer[4 * (at + 1)..4 * (at + 2)].copy_from_slice(&word.to_ne_bytes());
        }
        buffer[Self::HEADER..Self::HEADER + self.attributes.len()].copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = io::Error;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> io::Result<Self> {
        let word = |at: usize| {
            let bytes = payload.get(4 * at..4 * (at + 1)).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_ne_bytes).ok_or(io::ErrorKind::InvalidData)
        };
        Ok(Self {
            kind: header.message_type,
            ifindex: word(1)?,
            handle: word(2)?,
            parent: word(3)?,
            info: word(4)?,
            attributes: payload.get(Self::HEADER..).unwrap_or_default().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_filters_are_read_back_and_others_are_not_meshs() {
        for (made_qdisc, name) in [(false, "mesh:links/eth0%7-tc"), (true, "mesh+qdisc:links/eth0%7-tc")] {
            let label = Label { hook: "links/eth0%7-tc".to_owned(), made_qdisc };
            assert_eq!(label.name(), name);
            assert_eq!(Label::parse(name), Some(label));
        }
        for other in
            ["", "mesh_uplink", "mesh:", "mesh:links/", "mesh:tasks/../maps", "mesh:tasks/a/b", "cil"]
        {
            assert_eq!(Label::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_filters_name_is_read_from_its_message() {
        let mut message = Message::filter(libc::RTM_NEWTFILTER, 7, Side::Egress);
        let name = attribute(TCA_BPF_NAME, &terminated("mesh:tasks/t1"));
        message.attributes.extend(attribute(TCA_OPTIONS, &name));
        let mut bytes = vec![0xff; message.buffer_len()];
        message.serialize(&mut bytes);
        let mut header = NetlinkHeader::default();
        header.message_type = libc::RTM_NEWTFILTER;
        let read = Message::deserialize(&header, &bytes).expect("a message");
        assert_eq!(read, message);
        assert_eq!(read.label().map(|label| label.hook), Some("tasks/t1".to_owned()));
        assert!(Message::deserialize(&header, &bytes[..12]).is_err(), "cut short");
        message.attributes = attribute(TCA_KIND, &terminated("flower"));
        assert_eq!(message.label(), None, "another kind of filter");
    }
}

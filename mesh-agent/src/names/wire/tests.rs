//! Tests of parsing good and bad messages, and of answers that fit.

use proptest::prelude::*;

use super::*;
use crate::names::respond::{Step, respond};
use crate::names::zone::Zone;
use crate::task::local::Asker;

fn asked(name: &str, record_type: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let labels = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
    message.add_query(Query::query(Name::from_labels(labels).unwrap(), record_type));
    message.edns = payload.map(|payload| {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        edns
    });
    message.to_vec().unwrap()
}

fn question(name: &str, payload: Option<u16>, transport: Transport) -> Question {
    read(&asked(name, RecordType::A, payload), transport).expect("a good question")
}

fn decoded(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).expect("a good answer")
}

fn many(count: u32) -> Resolution {
    let addresses = (0..count).map(|number| Ipv4Addr::from(0x0a00_0000 + number)).collect();
    Resolution::Addresses { addresses, ttl: 3 }
}

#[test]
fn the_answer_keeps_the_id_and_the_spelling_and_is_authoritative() {
    let question = question("wEb.Shop_Net", None, Transport::Udp);
    assert_eq!(question.key(), "web.shop_net");
    let answer = decoded(&question.answer(&many(2)));
    assert_eq!(answer.metadata.id, 0x1234);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert!(answer.metadata.recursion_desired && !answer.metadata.truncation);
    assert_eq!(answer.queries[0].name().to_ascii(), "wEb.Shop_Net.");
    let names: Vec<_> = answer.answers.iter().map(|record| record.name.to_ascii()).collect();
    assert_eq!(names, ["wEb.Shop_Net.", "wEb.Shop_Net."]);
    assert!(answer.edns.is_none(), "who speaks no EDNS is answered without");
}

#[test]
fn a_name_that_nobody_has_is_denied_with_authority_and_a_foreign_one_refused_without() {
    let question = question("nobody", Some(4096), Transport::Udp);
    let denied = decoded(&question.answer(&Resolution::NoName));
    assert_eq!(denied.metadata.response_code, ResponseCode::NXDomain);
    assert!(denied.metadata.authoritative && denied.edns.is_some());
    let empty = decoded(&question.answer(&Resolution::NoData));
    assert_eq!((empty.metadata.response_code, empty.answers.len()), (ResponseCode::NoError, 0));
    let refused = decoded(&question.answer(&Resolution::Foreign));
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    assert!(!refused.metadata.authoritative);
}

#[test]
fn pointers_and_ports_name_their_hosts() {
    let bytes = asked("12.1.0.10.in-addr.arpa", RecordType::PTR, None);
    let question = read(&bytes, Transport::Udp).expect("a good question");
    assert_eq!((question.key().as_str(), question.kind()), ("12.1.0.10.in-addr.arpa", Kind::Pointer));
    let answer = decoded(&question.answer(&Resolution::Pointer { name: "web.1.t2.shop_net".to_owned() }));
    assert_eq!(answer.answers[0].data.to_string(), "web.1.t2.shop_net.");
    let bytes = asked("_8080._tcp.Web", RecordType::SRV, None);
    let question = read(&bytes, Transport::Udp).expect("a good question");
    let addresses = vec![Ipv4Addr::new(10, 0, 1, 2)];
    let answer = decoded(&question.answer(&Resolution::Port { port: 8080, addresses, ttl: 30 }));
    assert_eq!(answer.answers[0].data.to_string(), "0 0 8080 Web.");
    assert_eq!(answer.additionals[0].data.to_string(), "10.0.1.2");
}

#[test]
fn an_answer_fits_its_client() {
    for (payload, transport, room, complete) in [
        (None, Transport::Udp, 512, 30),
        (Some(100), Transport::Udp, 512, 29),
        (Some(700), Transport::Udp, 700, 41),
        (Some(65_535), Transport::Udp, 1232, 74),
        (None, Transport::Tcp, 65_535, 1000),
    ] {
        let question = question("tasks.web", payload, transport);
        for count in [complete, complete + 1, 3000] {
            let bytes = question.answer(&many(count));
            let answer = decoded(&bytes);
            assert!(bytes.len() <= room, "{} bytes for {room}", bytes.len());
            assert_eq!(answer.edns.is_some(), payload.is_some(), "EDNS is answered by EDNS");
            let fits = answer.answers.len() == count as usize;
            assert_eq!(answer.metadata.truncation, !fits, "{count} for {room}");
            assert!(
                fits || transport == Transport::Tcp || bytes.len() + 16 > room,
                "as many as there is room for"
            );
            assert!(fits || count > complete, "{complete} fit into {room}, saw {}", answer.answers.len());
        }
    }
}

#[test]
fn bad_messages_are_refused_or_ignored() {
    let good = asked("web", RecordType::A, None);
    let code = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        match read(&bytes, Transport::Udp) {
            Err(Unreadable::Refused(reply)) => {
                assert_eq!(reply[..2], bytes[..2], "its id");
                assert!(reply[2] & 0x80 != 0, "an answer");
                Some(decoded(&reply).metadata.response_code)
            }
            Err(Unreadable::Silent) => None,
            Ok(question) => panic!("{question:?} is a question"),
        }
    };
    assert_eq!(code(&|bytes| bytes.truncate(11)), None, "no header");
    assert_eq!(code(&|bytes| bytes[2] |= 0x80), None, "an answer");
    assert_eq!(code(&|bytes| bytes[2] |= 5 << 3), Some(ResponseCode::NotImp), "an update");
    assert_eq!(code(&|bytes| bytes[5] = 2), Some(ResponseCode::FormErr), "two questions");
    assert_eq!(code(&|bytes| bytes[5] = 0), Some(ResponseCode::FormErr), "no question");
    assert_eq!(code(&|bytes| bytes[7] = 1), Some(ResponseCode::FormErr), "an answer in a question");
    assert_eq!(code(&|bytes| bytes[11] = 1), Some(ResponseCode::FormErr), "a missing record");
    assert_eq!(code(&|bytes| bytes.truncate(14)), Some(ResponseCode::FormErr), "half a name");
    assert_eq!(code(&|bytes| bytes[12] = 0xc0), Some(ResponseCode::FormErr), "a pointer to itself");
    assert_eq!(code(&|bytes| bytes.resize(5000, 0)), Some(ResponseCode::FormErr), "too long");
    assert_eq!(code(&|bytes| *bytes.last_mut().unwrap() = 3), Some(ResponseCode::Refused), "CHAOS");
}

#[test]
fn a_newer_edns_is_told_which_one_we_speak() {
    let mut message = decoded(&asked("web", RecordType::A, Some(1232)));
    message.edns.as_mut().unwrap().set_version(1);
    let Err(Unreadable::Refused(reply)) = read(&message.to_vec().unwrap(), Transport::Udp) else {
        panic!("it is refused");
    };
    let reply = decoded(&reply);
    // BADVERS and BADSIG have the same number, which is decoded as the latter.
    assert_eq!((u16::from(reply.metadata.response_code), reply.version()), (16, 0));
}

#[test]
fn a_dot_within_a_label_is_no_dot_between_labels() {
    let mut bytes = asked("webxback", RecordType::A, None);
    bytes[16] = b'.';
    let question = read(&bytes, Transport::Udp).expect("a good question");
    assert_eq!(question.key(), "web\\.back");
}

proptest! {
    #[test]
    fn random_bytes_are_no_panic_and_answers_can_be_read(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        head in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if head && bytes.len() >= HEADER {
            // A plausible header makes the decoder parse the rest.
            let records = bytes[11] & 1;
            bytes[2..HEADER].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, records]);
        }
        for transport in [Transport::Udp, Transport::Tcp] {
            match respond(&Zone::default(), Some(&Asker::default()), &bytes, transport) {
                Step::Reply(reply, _) => {
                    let answer = Message::from_vec(&reply);
                    prop_assert!(answer.is_ok(), "{:?}", answer);
                    prop_assert_eq!(&reply[..2], &bytes[..2]);
                }
                Step::Forward(question) => prop_assert!(question.key().len() < 1024),
                Step::Silence => {}
                Step::Wait(question) => prop_assert!(false, "{:?}", question),
            }
        }
    }
}

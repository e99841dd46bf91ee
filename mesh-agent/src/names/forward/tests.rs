//! Tests with resolvers that answer, forge answers, fail or stay silent.

use std::fs;

use tokio::net::TcpListener;

use super::*;
use crate::names::wire;

/// How a resolver of these tests behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Good,
    /// It sends answers with other ids and to other questions before the right one.
    Forged,
    /// It changes names to lower case.
    Lowers,
    Fails,
    Silent,
    /// It truncates answers over UDP, so clients ask again over TCP.
    Truncates,
    /// It sends answers that are too large for the client.
    Overflows,
}

/// The answers of a resolver that behaves like `manner`; the address in them ends with `last`.
fn reply(question: &[u8], manner: Manner, by_tcp: bool, last: u8) -> Vec<Vec<u8>> {
    let mut answer = question.to_vec();
    answer[2] |= 0x84;
    answer[6..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    let end = HEADER + question[HEADER..].iter().position(|byte| *byte == 0).unwrap() + 5;
    answer.truncate(end);
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, last]);
    match manner {
        Manner::Good => {}
        Manner::Forged => {
            let mut other_id = answer.clone();
            other_id[0] ^= 1;
            let mut other_name = answer.clone();
            other_name[HEADER + 1] = b'0';
            let mut other_type = answer.clone();
            other_type[end - 3] = 28;
            return vec![other_id, other_name, other_type, vec![0; 5], answer];
        }
        Manner::Lowers => answer[HEADER..end].make_ascii_lowercase(),
        Manner::Fails => answer[3] |= 2,
        Manner::Silent => return Vec::new(),
        Manner::Truncates if by_tcp => {}
        Manner::Truncates => {
            answer[2] |= 2;
            answer[7] = 0;
            answer.truncate(end);
        }
        Manner::Overflows => answer.extend([0; 700]),
    }
    vec![answer]
}

/// A resolver at 127.78.`third`.`last`, by UDP and TCP on the same port.
async fn resolver(third: u8, last: u8, port: u16, manner: Manner) -> u16 {
    let address = Ipv4Addr::new(127, 78, third, last);
    let tcp = TcpListener::bind((address, port)).await.expect("a listener");
    let port = tcp.local_addr().expect("its address").port();
    let udp = UdpSocket::bind((address, port)).await.expect("a socket");
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            for answer in reply(&buffer[..length], manner, false, last) {
                udp.send_to(&answer, from).await.expect("it is sent");
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let length = usize::from(stream.read_u16().await.expect("a length"));
            let mut question = vec![0; length];
            stream.read_exact(&mut question).await.expect("a question");
            for answer in reply(&question, manner, true, last) {
                stream.write_u16(u16::try_from(answer.len()).unwrap()).await.expect("it is sent");
                stream.write_all(&answer).await.expect("it is sent");
            }
        }
    });
    port
}

fn question(transport: Transport) -> Question {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend(b"\x03WwW\x07eXample\x03orG\x00\x00\x01\x00\x01");
    wire::read(&bytes, transport).expect("a good question")
}

/// Asks resolvers that behave like `manners`, in this order. Each test uses addresses of its own.
async fn ask(third: u8, manners: &[Manner], transport: Transport) -> Result<Vec<u8>, ForwardError> {
    let (mut port, mut listed) = (0, Vec::new());
    for (number, manner) in manners.iter().enumerate() {
        let last = u8::try_from(number + 1).unwrap();
        port = resolver(third, last, port, *manner).await;
        listed.push(format!("nameserver 127.78.{third}.{last}"));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("resolv.conf");
    fs::write(&path, listed.join("\n")).expect("a file");
    let forwarder = Forwarder::new(Resolvers::new(path, port));
    forwarder.ask(Ipv4Addr::new(10, 128, 0, 2), &question(transport)).await
}

/// Checks that the answer has the client's id and spelling, has no AA, and comes from `last`.
#[track_caller]
fn check(answer: &[u8], last: u8) {
    let message = Message::from_vec(answer).expect("a good answer");
    assert_eq!(message.metadata.id, 0xabcd);
    assert_eq!(message.queries[0].name().to_ascii(), "WwW.eXample.orG.");
    assert_eq!(message.answers[0].name.to_ascii(), "WwW.eXample.orG.");
    assert!(!message.metadata.authoritative && message.metadata.recursion_available);
    assert_eq!(message.answers[0].data.to_string(), format!("192.0.2.{last}"));
}

#[tokio::test]
async fn an_answer_comes_under_the_clients_id_and_spelling() {
    check(&ask(1, &[Manner::Good], Transport::Udp).await.expect("an answer"), 1);
    check(&ask(2, &[Manner::Good], Transport::Tcp).await.expect("an answer"), 1);
}

#[tokio::test]
async fn answers_to_other_questions_are_not_believed() {
    check(&ask(3, &[Manner::Forged], Transport::Udp).await.expect("an answer"), 1);
}

#[tokio::test]
async fn a_resolver_that_respells_names_is_asked_by_tcp() {
    check(&ask(4, &[Manner::Lowers], Transport::Udp).await.expect("an answer"), 1);
}

#[tokio::test]
async fn the_next_resolver_is_asked_when_one_fails_or_says_nothing() {
    check(&ask(5, &[Manner::Fails, Manner::Good], Transport::Udp).await.expect("an answer"), 2);
    check(&ask(6, &[Manner::Silent, Manner::Good], Transport::Udp).await.expect("an answer"), 2);
    let failure = ask(7, &[Manner::Fails, Manner::Silent], Transport::Udp).await.expect("the failure");
    assert_eq!(failure[3] & 0x0f, 2, "SERVFAIL of the one that spoke");
}

#[tokio::test]
async fn nobodys_answer_comes_before_dockerd_gives_up() {
    let began = Instant::now();
    let result = ask(8, &[Manner::Silent], Transport::Udp).await;
    assert!(matches!(result, Err(ForwardError::Unanswered)), "{result:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "it took {:?}", began.elapsed());
}

#[tokio::test]
async fn a_truncated_answer_is_passed_on_and_the_whole_one_comes_by_tcp() {
    let short = ask(9, &[Manner::Truncates], Transport::Udp).await.expect("an answer");
    assert!(Message::from_vec(&short).expect("it can be read").metadata.truncation);
    check(&ask(10, &[Manner::Truncates], Transport::Tcp).await.expect("an answer"), 1);
    let cut = ask(11, &[Manner::Overflows], Transport::Udp).await.expect("an answer");
    let cut = Message::from_vec(&cut).expect("it can be read");
    assert!(cut.metadata.truncation && cut.answers.is_empty(), "more than its client takes");
}

#[test]
fn each_task_and_all_together_have_a_bounded_number_under_way() {
    let under_way = Arc::new(UnderWay::default());
    let [one, other, third] = [1, 2, 3].map(|last| Ipv4Addr::new(10, 128, 0, last));
    let mut places: Vec<Place> = (0..UNDER_WAY_PER_TASK).map_while(|_| under_way.enter(one)).collect();
    assert_eq!(places.len(), UNDER_WAY_PER_TASK);
    assert!(under_way.enter(one).is_none(), "one task takes no more");
    places.extend((0..UNDER_WAY).map_while(|_| under_way.enter(other)));
    assert_eq!(places.len(), UNDER_WAY);
    assert!(under_way.enter(third).is_none(), "all together take no more");
    places.clear();
    assert!(under_way.enter(one).is_some());
    assert!(under_way.by_task.lock().unwrap().1.is_empty(), "nothing is kept of who asks no more");
}

#[test]
fn a_respelled_name_is_the_same_name() {
    let name = question(Transport::Udp).name;
    let all = respelled(&name, u128::MAX).expect("a name");
    assert_eq!(all.to_ascii(), "wWw.ExAMPLE.ORg.", "every letter changes");
    assert_eq!(respelled(&name, 0).expect("a name").to_ascii(), name.to_ascii());
    assert_eq!(all, name);
}

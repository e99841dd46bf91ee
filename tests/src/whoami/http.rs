//! A minimal HTTP/1.1 server for tests: keep-alive, bodies are read and dropped, answers have a
//! known length.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::echo::canonical;
use crate::identity::Identity;
use crate::proxied::take_header;

const HEAD_BYTES_MAX: u64 = 64 * 1024;
const WAIT_MS_MAX: u64 = 3_600_000;

/// The period of the pattern in `/bytes`; a prime number, so that a lost or duplicated packet
/// shows.
const PATTERN_BYTES: usize = 65_521;

/// What was read of a client's request.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    keep_alive: bool,
    /// The length of the body that follows the head.
    body_bytes: u64,
}

/// What the server answers with.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// A text after a pause; the head is sent before the pause.
    Text { body: String, pause: Duration },
    /// This many bytes of the pattern.
    Bytes(u64),
    /// An error of the client.
    BadRequest(&'static str),
}

/// Serves the requests of one connection until it ends.
pub(crate) fn serve(mut stream: TcpStream, identity: &Identity) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let told = take_header(&mut stream)?;
    let (client, local) = match told {
        Some(ends) => ends,
        None => (stream.peer_addr()?, stream.local_addr()?),
    };
    let (client, local) = (canonical(client).to_string(), canonical(local).to_string());
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = BufWriter::new(stream);
    while let Some(head) = read_head(&mut reader)? {
        let Some(request) = parse(&head) else {
            return send(&mut writer, &Answer::BadRequest("this is not an HTTP/1 request"), false, false);
        };
        if request.headers.get("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            writer.flush()?;
        }
        io::copy(&mut reader.by_ref().take(request.body_bytes), &mut io::sink())?;
        println!("client={client} {} {}{}", request.method, request.path, shown_query(&request.query));
        let answer = answer(
            &request,
            identity,
            &Endpoints { client: &client, local: &local, proxied: told.is_some() },
        );
        send(&mut writer, &answer, request.keep_alive, request.method == "HEAD")?;
        if !request.keep_alive {
            break;
        }
    }
    Ok(())
}

/// The lines up to the empty one; `None` if the client has closed the connection between two
/// requests.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    let mut limited = reader.take(HEAD_BYTES_MAX);
    loop {
        let length = limited.read_line(&mut head)?;
        if length == 0 && head.is_empty() {
            return Ok(None);
        }
        if length == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the request's head is cut off or too long",
            ));
        }
        if head.ends_with("\r\n\r\n") || head.ends_with("\n\n") {
            return Ok(Some(head));
        }
    }
}

fn parse(head: &str) -> Option<Request> {
    let mut lines = head.lines();
    let mut words = lines.next()?.split_whitespace();
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if !version.starts_with("HTTP/1.") {
        return None;
    }
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    // A body of unknown length would have to be decoded; no test sends one.
    if headers.contains_key("transfer-encoding") {
        return None;
    }
    let body_bytes = headers.get("content-length").map_or(Some(0), |length| length.parse().ok())?;
    let connection = headers.get("connection").map_or("", String::as_str).to_ascii_lowercase();
    let keep_alive = if version == "HTTP/1.0" { connection == "keep-alive" } else { connection != "close" };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        keep_alive,
        body_bytes,
    })
}

/// The two ends of a connection.
struct Endpoints<'a> {
    client: &'a str,
    local: &'a str,
    /// Whether they come from a PROXY header.
    proxied: bool,
}

fn answer(request: &Request, identity: &Identity, ends: &Endpoints<'_>) -> Answer {
    let about = || about(request, identity, ends);
    match request.path.as_str() {
        "/slow" => match number(&request.query, "ms") {
            Some(ms) if ms <= WAIT_MS_MAX => Answer::Text { body: about(), pause: Duration::from_millis(ms) },
            _ => Answer::BadRequest("give /slow?ms= a number of milliseconds up to an hour"),
        },
        "/burn" => match number(&request.query, "ms") {
            Some(ms) if ms <= WAIT_MS_MAX => {
                burn(Duration::from_millis(ms));
                Answer::Text { body: about(), pause: Duration::ZERO }
            }
            _ => Answer::BadRequest("give /burn?ms= a number of milliseconds up to an hour"),
        },
        "/bytes" => {
            number(&request.query, "n").map_or(Answer::BadRequest("give /bytes?n= a number"), Answer::Bytes)
        }
        _ => Answer::Text { body: about(), pause: Duration::ZERO },
    }
}

fn about(request: &Request, identity: &Identity, ends: &Endpoints<'_>) -> String {
    let body = json!({
        "task": identity.task,
        "node": identity.node,
        "hostname": identity.hostname,
        "client": ends.client,
        "local": ends.local,
        "proxied": ends.proxied,
        "method": request.method,
        "path": request.path,
        "headers": request.headers,
    });
    format!("{body}\n")
}

fn number(query: &str, key: &str) -> Option<u64> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

/// Keeps one CPU busy for this long.
fn burn(time: Duration) {
    let begun = Instant::now();
    let mut state = 1_u64;
    while begun.elapsed() < time {
        for _ in 0..1000 {
            state = std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

fn send(writer: &mut impl Write, answer: &Answer, keep_alive: bool, head_only: bool) -> io::Result<()> {
    let (status, kind, length) = match answer {
        Answer::Text { body, .. } => ("200 OK", "application/json", body.len() as u64),
        Answer::Bytes(count) => ("200 OK", "application/octet-stream", *count),
        Answer::BadRequest(why) => ("400 Bad Request", "text/plain", why.len() as u64),
    };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    write!(writer, "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n")?;
    write!(writer, "Connection: {connection}\r\n\r\n")?;
    if head_only {
        return writer.flush();
    }
    match answer {
        Answer::Text { body, pause } => {
            if !pause.is_zero() {
                writer.flush()?;
                thread::sleep(*pause);
            }
            writer.write_all(body.as_bytes())?;
        }
        Answer::Bytes(count) => write_pattern(writer, *count)?,
        Answer::BadRequest(why) => writer.write_all(why.as_bytes())?,
    }
    writer.flush()
}

/// Byte `i` is the low byte of a square; it depends on `i` modulo the pattern's length alone.
fn write_pattern(writer: &mut impl Write, count: u64) -> io::Result<()> {
    let pattern: Vec<u8> = (0..PATTERN_BYTES).map(|i| ((i * i) >> 3).to_le_bytes()[0]).collect();
    let mut left = count;
    while left > 0 {
        let length = usize::try_from(left).map_or(PATTERN_BYTES, |left| left.min(PATTERN_BYTES));
        writer.write_all(&pattern[..length])?;
        left -= length as u64;
    }
    Ok(())
}

fn shown_query(query: &str) -> String {
    if query.is_empty() { String::new() } else { format!("?{query}") }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn identity() -> Identity {
        Identity { task: "web.1".into(), node: Some("node-1".into()), hostname: "abc".into() }
    }

    /// The server's answers to a client that sends `requests` and then no more.
    fn conversation(requests: &str) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(requests.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (stream, _) = listener.accept().unwrap();
        serve(stream, &identity()).unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        said
    }

    #[test]
    fn a_connection_serves_several_requests() {
        let said = conversation(
            "POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyzGET /b HTTP/1.1\r\nConnection: close\r\n\r\n",
        );
        assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 2, "expected two answers, saw: {said}");
        assert!(said.contains(r#""path":"/b""#), "expected the second request's path, saw: {said}");
        assert!(said.contains(r#""client":"127.0.0.1:"#), "expected the client's address, saw: {said}");
        assert!(said.contains(r#""task":"web.1""#), "expected the task, saw: {said}");
    }

    #[test]
    fn bad_numbers_are_the_clients_fault() {
        for target in ["/slow", "/slow?ms=x", "/burn?ms=-1", "/bytes?n=", "/slow?ms=3600001"] {
            let said = conversation(&format!("GET {target} HTTP/1.1\r\nConnection: close\r\n\r\n"));
            assert!(said.starts_with("HTTP/1.1 400"), "expected 400 to {target}, saw: {said}");
        }
        assert!(conversation("nonsense\r\n\r\n").starts_with("HTTP/1.1 400"), "expected 400 to nonsense");
    }

    #[test]
    fn the_pattern_continues_over_its_end() {
        let mut seen = Vec::new();
        write_pattern(&mut seen, PATTERN_BYTES as u64 + 10).unwrap();
        assert_eq!(seen.len(), PATTERN_BYTES + 10, "expected exactly as many bytes as asked for");
        assert_eq!(seen[PATTERN_BYTES..], seen[..10], "expected the pattern to repeat");
    }

    #[test]
    fn connections_stay_open_by_the_versions_rules() {
        let keep = |head: &str| parse(head).map(|request| request.keep_alive);
        assert_eq!(keep("GET / HTTP/1.1\r\n\r\n"), Some(true), "HTTP/1.1 keeps the connection");
        assert_eq!(keep("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n"), Some(false), "unless told to close");
        assert_eq!(keep("GET / HTTP/1.0\r\n\r\n"), Some(false), "HTTP/1.0 closes");
        assert_eq!(keep("GET / HTTP/2\r\n\r\n"), None, "another protocol is refused");
    }
}

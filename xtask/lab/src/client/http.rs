//! One HTTP request on a connection of its own, with a deadline.
//!
//! Invariant: a response is complete (its body has the announced length) or it is an error.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

/// The deadline of a request.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// A complete response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// The bytes after the header.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends a GET request for `path` to `server`.
///
/// # Errors
/// The connection fails or is cut, or the answer is not complete within `deadline`.
pub fn get(server: impl Into<SocketAddr>, path: &str, deadline: Duration) -> Result<Response> {
    let server = server.into();
    let mut stream = open(server, path, deadline)?;
    let bytes = read_to_end(&mut stream, deadline).with_context(|| format!("read http://{server}{path}"))?;
    parse(&bytes).with_context(|| format!("parse the answer of http://{server}{path}"))
}

/// Posts `body` to `path` of `server`.
///
/// # Errors
/// The connection fails or is cut, or the answer is not complete within `deadline`.
pub fn post(server: impl Into<SocketAddr>, path: &str, body: &str, deadline: Duration) -> Result<Response> {
    let server = server.into();
    let head = format!("Content-Type: text/plain\r\nContent-Length: {}\r\n", body.len());
    let mut stream = request(server, &format!("POST {path}"), &head, body, deadline)?;
    let bytes = read_to_end(&mut stream, deadline).with_context(|| format!("read http://{server}{path}"))?;
    parse(&bytes).with_context(|| format!("parse the answer of http://{server}{path}"))
}

/// Sends the request and returns the connection; the caller reads from it, or keeps it open.
///
/// # Errors
/// The connection can't be made or written to within `deadline`.
pub fn open(server: impl Into<SocketAddr>, path: &str, deadline: Duration) -> Result<TcpStream> {
    request(server.into(), &format!("GET {path}"), "", "", deadline)
}

fn request(server: SocketAddr, line: &str, head: &str, body: &str, deadline: Duration) -> Result<TcpStream> {
    let mut stream =
        TcpStream::connect_timeout(&server, deadline).with_context(|| format!("connect to {server}"))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    stream.set_write_timeout(Some(deadline)).context("set the write deadline")?;
    let text = format!("{line} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n{head}\r\n{body}");
    stream.write_all(text.as_bytes()).with_context(|| format!("send {line} to {server}"))?;
    Ok(stream)
}

/// Reads until the server closes the connection, no longer than `deadline` in all.
///
/// # Errors
/// The connection is cut or the deadline passes.
pub fn read_to_end(stream: &mut TcpStream, deadline: Duration) -> Result<Vec<u8>> {
    let until = Instant::now() + deadline;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 65_536];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no complete answer within {deadline:?}, {} bytes so far", bytes.len());
        stream.set_read_timeout(Some(left)).context("set the read deadline")?;
        match stream.read(&mut chunk).with_context(|| format!("after {} bytes", bytes.len()))? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Reads one response from a connection that stays open, no longer than `deadline` in all. `None`
/// if the server closed the connection before it sent anything.
///
/// # Errors
/// The connection is cut within the response, or the deadline passes.
pub fn read_one(stream: &mut TcpStream, deadline: Duration) -> Result<Option<Response>> {
    let until = Instant::now() + deadline;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 16_384];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no complete answer within {deadline:?}, {} bytes so far", bytes.len());
        stream.set_read_timeout(Some(left)).context("set the read deadline")?;
        match stream.read(&mut chunk) {
            Ok(0) if bytes.is_empty() => return Ok(None),
            Ok(0) => return parse(&bytes).map(Some),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if bytes.is_empty() && error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("after {} bytes", bytes.len())),
        }
        if announced_end(&bytes).is_some_and(|end| bytes.len() >= end) {
            return parse(&bytes).map(Some);
        }
    }
}

/// Where a response ends by its `Content-Length`, once its head is there.
pub fn announced_end(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut headers = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    let (_, length) = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    Some(end + 4 + length.trim().parse::<usize>().ok()?)
}

/// Parses a response that was read to its end.
///
/// # Errors
/// It is not HTTP, or shorter or longer than announced.
pub fn parse(bytes: &[u8]) -> Result<Response> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").context("no end of the headers")?;
    let head = std::str::from_utf8(&bytes[..end]).context("headers are not text")?;
    let body = bytes[end + 4..].to_vec();
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| anyhow!("no status in `{status_line}`"))?;
    let header = |wanted: &str| {
        head.split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned()))
    };
    if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return Ok(Response { status, body: unchunk(&body)? });
    }
    if let Some(announced) = header("content-length") {
        let announced: usize = announced.parse().context("content-length is not a number")?;
        ensure!(body.len() == announced, "cut: {} of {announced} bytes came", body.len());
    }
    Ok(Response { status, body })
}

/// Joins a chunked body (RFC 9112, section 7.1).
fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end =
            rest.windows(2).position(|window| window == b"\r\n").context("cut before a chunk's size")?;
        let size = std::str::from_utf8(&rest[..end]).context("a chunk's size is not text")?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
            .context("a chunk's size is not a number")?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Ok(body);
        }
        ensure!(rest.len() >= size + 2, "cut within a chunk: {} of {size} bytes came", rest.len());
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_answer_is_an_error() {
        let whole = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap();
        assert_eq!((whole.status, whole.text().as_str()), (200, "hi"));
        let cut = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi").unwrap_err().to_string();
        assert!(cut.contains("2 of 3"), "expected how much came, saw: {cut}");
        assert!(parse(b"HTTP/1.1 200 OK\r\nConte").is_err(), "headers without an end were taken");
    }

    #[test]
    fn the_end_of_an_answer_is_known_from_its_head() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(announced_end(answer), Some(answer.len()));
        assert_eq!(announced_end(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"), None, "half a head");
    }

    #[test]
    fn chunks_are_joined() {
        let answer =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(answer).unwrap().text(), "abcde");
        let cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
        assert!(parse(cut).is_err(), "a body without its last chunk was taken");
    }
}

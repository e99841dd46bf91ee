//! One GET request over a unix socket or TCP, with deadlines. Blocks.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The deadline of connecting, and of each read.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The most bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Status and body of `GET path` from the server behind a unix socket.
///
/// # Errors
/// The server can't be reached, or its answer is no HTTP.
pub fn get_unix(socket: &Path, path: &str) -> io::Result<(u16, String)> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    exchange(stream, path)
}

/// Status and body of `GET path` from a TCP server.
///
/// # Errors
/// The server can't be reached, or its answer is no HTTP.
pub fn get_tcp(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    exchange(stream, path)
}

/// By HTTP/1.0, so that the answer comes whole and without chunks.
fn exchange(mut stream: impl Read + Write, path: &str) -> io::Result<(u16, String)> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| unreadable("it has no end of its head"))?;
    let status = head.split_ascii_whitespace().nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| unreadable("it has no status"))?;
    Ok((status, body.to_owned()))
}

fn unreadable(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the answer is no HTTP: {reason}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn status_and_body_are_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let server = thread::spawn(move || {
            for answer in ["HTTP/1.0 503 Not now\r\nA: b\r\n\r\nbusy\n", "nonsense"] {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut asked = [0; 36];
                stream.read_exact(&mut asked).expect("a request");
                assert!(asked.starts_with(b"GET /info HTTP/1.0\r\n"), "{asked:?}");
                stream.write_all(answer.as_bytes()).expect("it is sent");
            }
        });
        assert_eq!(get_unix(&socket, "/info").expect("an answer"), (503, "busy\n".to_owned()));
        assert!(get_unix(&socket, "/info").is_err(), "no HTTP");
        server.join().expect("the server ends");
        assert!(get_unix(&directory.path().join("absent"), "/").is_err());
    }
}

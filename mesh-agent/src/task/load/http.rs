//! Asks a task for its own load: a GET over HTTP/1.0, answered with a number from 0 to 1.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A task that takes longer has no load this time.
const TIMEOUT: Duration = Duration::from_millis(300);
/// The most bytes of an answer that are read.
const ANSWER_MAX: u64 = 4096;

/// Asks a task for its load.
///
/// # Errors
/// It doesn't answer in time, or not with a number.
pub(super) async fn ask(address: SocketAddr, path: &str) -> io::Result<f64> {
    let answer = tokio::time::timeout(TIMEOUT, get(address, path)).await;
    let answer = answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    read(&answer).ok_or_else(|| io::Error::other("the answer is no number from 0 to 1"))
}

async fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Parses the number in a successful answer.
fn read(answer: &str) -> Option<f64> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?;
    if status != "200" {
        return None;
    }
    let number: f64 = body.trim().parse().ok()?;
    (0.0..=1.0).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_numbers_are_read_and_nothing_else() {
        let answer = |status: &str, body: &str| read(&format!("HTTP/1.1 {status}\r\nA: b\r\n\r\n{body}"));
        assert_eq!(answer("200 OK", "0.25\n"), Some(0.25));
        assert_eq!(answer("503 No", "0.25"), None);
        assert_eq!(answer("200 OK", "1.5"), None);
        assert_eq!(answer("200 OK", "NaN"), None);
        assert_eq!(read("0.5"), None);
    }

    #[tokio::test]
    async fn a_task_is_asked() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("its address");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 256];
            let count = stream.read(&mut request).await.expect("a request");
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n0.75").await.expect("an answer");
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let answer = ask(address, "/load").await.expect("an answer");
        assert!((answer - 0.75).abs() < f64::EPSILON, "0.75 expected, {answer} seen");
        assert!(server.await.expect("the server ends").starts_with("GET /load HTTP/1.0\r\n"));
    }
}

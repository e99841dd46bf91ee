//! Traffic between the client and the task.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::netlab::{Netlab, TASK};
use crate::node::{PUBLISHED, TARGET};

/// Answers each connection with the client's address in a line, then with whatever it gets.
pub(crate) fn serve(lab: &Netlab) {
    lab.task.call(|| {
        let listener = TcpListener::bind((TASK, TARGET)).expect("the task listens");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                std::thread::spawn(move || {
                    let Ok(peer) = stream.peer_addr() else { return };
                    if writeln!(stream, "{}", peer.ip()).is_err() {
                        return;
                    }
                    let mut buffer = [0; 16_384];
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..count]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
}

/// Connects, and reads which client address the task sees.
pub(crate) fn connect(node: Ipv4Addr) -> std::io::Result<(TcpStream, String)> {
    let address = SocketAddr::from((node, PUBLISHED));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok((stream, String::from_utf8_lossy(&line).trim().to_owned()))
}

/// Sends bytes and expects the same back.
pub(crate) fn echo(stream: &mut TcpStream, bytes: usize) {
    let sent: Vec<u8> = (0..bytes).map(|i| u8::try_from(i % 251).unwrap_or_default()).collect();
    let mut writer = stream.try_clone().expect("a second handle");
    let to_send = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&to_send));
    let mut seen = vec![0; bytes];
    stream.read_exact(&mut seen).expect("the bytes come back");
    writing.join().expect("the writer ends").expect("the bytes are sent");
    assert!(seen == sent, "the bytes came back changed");
}

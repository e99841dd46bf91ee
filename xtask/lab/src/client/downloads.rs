//! Long downloads at a steady pace, or for as long as a test lasts; each is complete or counts as
//! cut.
//!
//! Invariant: every download that was begun is counted, as complete or as cut.

use std::io::Read as _;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::http;
use crate::netns::Netns;

/// The bytes of one download: far more than the sockets on the way can buffer.
const BYTES: usize = 24_000_000;
/// The reads of one download.
const PIECES: u32 = 60;
/// How long a download may take beyond its planned time.
const SLACK: Duration = Duration::from_secs(20);
/// The bytes of a download that lasts until it is stopped, of which it reads so many at a time,
/// with this pause: enough for a quarter of an hour.
const LASTING_BYTES: usize = 32_000_000;
const LASTING_PIECE: usize = 16_384;
const LASTING_PAUSE: Duration = Duration::from_millis(500);

/// How fast a download is read.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// In this time, steadily.
    Within(Duration),
    /// Slowly until the test ends, then as fast as it comes.
    UntilStopped,
}

/// Downloads of `whoami`'s `/bytes`, one after the other on each of several threads.
#[derive(Debug)]
pub struct Downloads {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Seen>>>,
}

/// The results of the downloads.
#[derive(Debug, Default)]
pub struct Seen {
    /// The number of complete downloads.
    pub whole: u64,
    /// The errors of the others.
    pub cut: Vec<String>,
}

impl Downloads {
    /// Starts `count` downloads at a time from `client`, each planned to take `lasting`, from the
    /// `servers` in turn.
    pub fn start(client: &Netns, servers: &[SocketAddrV4], count: usize, lasting: Duration) -> Self {
        Self::start_paced(client, servers, count, Pace::Within(lasting))
    }

    /// Starts `count` downloads at a time that last until [`Downloads::finish`] is called.
    pub fn start_lasting(client: &Netns, servers: &[SocketAddrV4], count: usize) -> Self {
        Self::start_paced(client, servers, count, Pace::UntilStopped)
    }

    fn start_paced(client: &Netns, servers: &[SocketAddrV4], count: usize, pace: Pace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |number: usize| {
            let (client, servers, stop) = (client.clone(), servers.to_vec(), Arc::clone(&stop));
            std::thread::spawn(move || {
                client.run(|| {
                    let mut seen = Seen::default();
                    for server in servers.iter().cycle().skip(number) {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        match download((*server).into(), pace, &stop) {
                            Ok(()) => seen.whole += 1,
                            Err(error) => seen.cut.push(format!("{server}: {error:#}")),
                        }
                    }
                    Ok(seen)
                })
            })
        };
        Self { threads: (0..count).map(thread).collect(), stop }
    }

    /// Begins no more downloads, waits for the running ones and returns the results.
    ///
    /// # Errors
    /// The client's namespace could not be entered.
    pub fn finish(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for thread in self.threads {
            let seen = thread.join().map_err(|_| anyhow!("a download panicked"))??;
            all.whole += seen.whole;
            all.cut.extend(seen.cut);
        }
        Ok(all)
    }
}

/// One download.
fn download(server: SocketAddr, pace: Pace, stop: &AtomicBool) -> Result<()> {
    let begun = Instant::now();
    let (bytes, piece) = match pace {
        Pace::Within(_) => (BYTES, BYTES / PIECES as usize),
        Pace::UntilStopped => (LASTING_BYTES, LASTING_PIECE),
    };
    let mut stream = http::open(server, &format!("/bytes?n={bytes}"), http::DEADLINE)?;
    stream.set_read_timeout(Some(SLACK)).context("set the read deadline")?;
    let mut piece = vec![0; piece];
    // Only the head is kept: the bodies of many downloads would fill the memory.
    let (mut head, mut end, mut length) = (Vec::new(), None, 0);
    loop {
        let read = stream.read(&mut piece).with_context(|| format!("after {length} bytes"))?;
        if read == 0 {
            break;
        }
        length += read;
        if end.is_none() {
            head.extend_from_slice(&piece[..read]);
            end = http::announced_end(&head);
        }
        match pace {
            Pace::Within(lasting) => {
                let pieces = u32::try_from(length * PIECES as usize / BYTES).unwrap_or(PIECES).min(PIECES);
                let due = begun + lasting * pieces / PIECES;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Pace::UntilStopped if stop.load(Ordering::Relaxed) => piece.resize(BYTES / PIECES as usize, 0),
            Pace::UntilStopped => std::thread::sleep(LASTING_PAUSE),
        }
    }
    ensure!(head.starts_with(b"HTTP/1.1 200"), "the answer is no success");
    ensure!(end == Some(length), "cut: {length} bytes came, the answer's end was announced as {end:?}");
    Ok(())
}

//! Long downloads at a steady pace; each is complete or counts as cut.
//!
//! Invariant: every download that was begun is counted, as complete or as cut.

use std::io::Read as _;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::http;
use crate::netns::Netns;

/// The bytes of one download: far more than the sockets on the way can buffer.
const BYTES: usize = 24_000_000;
/// The reads of one download.
const PIECES: u32 = 60;
/// How long a download may take beyond its planned time.
const SLACK: Duration = Duration::from_secs(20);

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
                        match download((*server).into(), lasting) {
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

/// One download at a steady pace.
fn download(server: SocketAddr, lasting: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut stream = http::open(server, &format!("/bytes?n={BYTES}"), http::DEADLINE)?;
    stream.set_read_timeout(Some(SLACK)).context("set the read deadline")?;
    let mut answer = Vec::with_capacity(BYTES + 512);
    let mut piece = vec![0; BYTES / PIECES as usize];
    loop {
        let length = stream.read(&mut piece).with_context(|| format!("after {} bytes", answer.len()))?;
        if length == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..length]);
        let pieces = u32::try_from(answer.len() * PIECES as usize / BYTES).unwrap_or(PIECES).min(PIECES);
        std::thread::sleep((begun + lasting * pieces / PIECES).saturating_duration_since(Instant::now()));
    }
    http::parse(&answer).map(drop)
}

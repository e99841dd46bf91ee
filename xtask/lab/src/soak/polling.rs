//! Reads of several managers' APIs again and again, and the longest time that each of them did not
//! answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use super::managers::api::Api;
use crate::client::unix;

/// The path that is read.
const PATH: &str = "/v1.41/services";
/// The deadline of a read.
const DEADLINE: Duration = Duration::from_secs(10);

/// The outcomes of the reads of one manager's API.
#[derive(Debug)]
pub(super) struct Polled {
    pub(super) manager: String,
    pub(super) answered: u64,
    /// Reads without a successful answer: when, since the polls began, and why.
    pub(super) failures: Vec<String>,
    /// The longest time from one successful answer to the next.
    pub(super) gap: Duration,
}

/// Polls that run until they are stopped.
#[derive(Debug)]
pub(super) struct Polling {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Polled>>,
}

impl Polling {
    /// Reads each manager's API, by its name and socket, once every `pause`.
    pub(super) fn start(managers: Vec<(String, PathBuf)>, pause: Duration) -> Self {
        Self::start_checked(managers, pause, answers)
    }

    /// The same, where an answer counts only if the manager knows a leader.
    pub(super) fn start_for_a_leader(managers: Vec<(String, PathBuf)>, pause: Duration) -> Self {
        Self::start_checked(managers, pause, knows_a_leader)
    }

    fn start_checked(
        managers: Vec<(String, PathBuf)>,
        pause: Duration,
        check: fn(&Path) -> Result<()>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let poll = |(manager, socket): (String, PathBuf)| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let begun = Instant::now();
                let mut polled = Polled { manager, answered: 0, failures: Vec::new(), gap: Duration::ZERO };
                let mut last = begun;
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    match check(&socket) {
                        Ok(()) => {
                            polled.answered += 1;
                            polled.gap = polled.gap.max(last.elapsed());
                            last = Instant::now();
                        }
                        Err(error) => {
                            polled.failures.push(format!("after {:.1?}: {error:#}", begun.elapsed()));
                        }
                    }
                    thread::sleep(pause.saturating_sub(asked.elapsed()));
                }
                polled.gap = polled.gap.max(last.elapsed());
                polled
            })
        };
        Self { threads: managers.into_iter().map(poll).collect(), stop }
    }

    /// Stops the polls and returns their outcomes.
    ///
    /// # Errors
    /// A poll panicked.
    pub(super) fn stop(self) -> Result<Vec<Polled>> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.threads.into_iter().map(|one| one.join().map_err(|_| anyhow!("a poll panicked")));
        joined.collect()
    }
}

fn answers(socket: &Path) -> Result<()> {
    let answer = unix::get(socket, PATH, DEADLINE)?;
    ensure!(answer.status == 200, "{PATH} answered {}: {}", answer.status, answer.text().trim());
    Ok(())
}

fn knows_a_leader(socket: &Path) -> Result<()> {
    let leader = Api::at(socket.to_owned()).leader()?;
    ensure!(leader.is_some(), "no node leads");
    Ok(())
}

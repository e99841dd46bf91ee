//! Polls until a cluster has reached a state.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The pause between two polls.
const PAUSE: Duration = Duration::from_millis(50);

/// Polls until `look` succeeds.
///
/// # Errors
/// It doesn't within `within`; the message has `what` and the last poll's error.
pub fn eventually<T>(what: &str, within: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let until = Instant::now() + within;
    loop {
        match look() {
            Ok(seen) => return Ok(seen),
            Err(error) if Instant::now() >= until => {
                return Err(error).with_context(|| format!("expected {what} within {within:?}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_has_the_last_polls_error() {
        let mut looks = 0;
        let seen = eventually("a third look", Duration::from_secs(5), || {
            looks += 1;
            anyhow::ensure!(looks == 3, "look {looks}");
            Ok(looks)
        });
        assert_eq!(seen.unwrap(), 3);
        let failed =
            eventually::<()>("the moon", Duration::ZERO, || anyhow::bail!("only stars")).unwrap_err();
        let text = format!("{failed:#}");
        assert!(text.contains("the moon") && text.contains("only stars"), "saw: {text}");
    }
}

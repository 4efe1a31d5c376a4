//! Waiting for a condition with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `probe` every `every` until it gives a value, and returns that value.
///
/// `Ok(None)` means "not yet". The last `Err` of a probe is quoted when the deadline passes; an error alone does not
/// end the wait, because a server that is starting answers with errors.
///
/// # Errors
/// When `deadline` has passed, saying what was awaited and what the last probe said.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    every: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= deadline {
            let seconds = deadline.as_secs_f64();
            match last {
                Some(error) => {
                    return Err(error.context(format!("{what}: not there after {seconds:.0} s")));
                }
                None => bail!("{what}: not there after {seconds:.0} s"),
            }
        }
        std::thread::sleep(every);
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn returns_the_first_value() {
        let mut calls = 0;
        let value = until("three", Duration::from_secs(5), Duration::ZERO, || {
            calls += 1;
            match calls {
                1 => Err(anyhow!("refused")),
                2 => Ok(None),
                _ => Ok(Some(calls)),
            }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn names_what_was_awaited_and_the_last_error() {
        let error =
            until::<()>("the node", Duration::ZERO, Duration::ZERO, || Err(anyhow!("refused"))).unwrap_err();
        assert_eq!(format!("{error:#}"), "the node: not there after 0 s: refused");
    }
}

//! Waiting on a condition with a deadline.
//!
//! Invariant: whoever gives up says what it waited for and what it saw last, so that a failed test needs no second run
//! to be understood.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long to leave the machine alone between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// What one look at the world showed.
#[derive(Debug)]
pub enum Look<T> {
    /// The condition holds.
    Done(T),
    /// It does not hold yet; what was seen instead.
    NotYet(String),
}

/// Looks again and again until the condition holds. An error from `look` ends the wait at once: it is for what can no
/// longer come right, such as a process that died.
pub fn until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<Look<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        let last = match look()? {
            Look::Done(value) => return Ok(value),
            Look::NotYet(seen) => seen,
        };
        if began.elapsed() >= deadline {
            bail!("gave up after {deadline:?} waiting for {what}; last seen: {last}");
        }
        watch(PAUSE);
    }
}

/// As [`until`], where any error only means "not yet".
pub fn until_ok<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    until(what, deadline, || {
        Ok(match look() {
            Ok(value) => Look::Done(value),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })
}

/// Waits until `holds` is true; `seen` says what is there when it is not.
pub fn until_true(
    what: &str,
    deadline: Duration,
    mut holds: impl FnMut() -> bool,
    seen: impl Fn() -> String,
) -> Result<()> {
    until(what, deadline, || Ok(if holds() { Look::Done(()) } else { Look::NotYet(seen()) }))
}

/// Lets time pass, to see how much happens in it. Never to hope that something will have happened.
pub fn watch(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_up_with_the_last_sight_after_the_deadline() {
        let mut count = 0;
        let error = until("the moon", Duration::from_millis(50), || {
            count += 1;
            Ok(Look::<()>::NotYet(format!("cloud {count}")))
        })
        .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("the moon") && text.contains(&format!("cloud {count}")), "{text}");
    }

    #[test]
    fn stops_at_once_when_the_condition_can_no_longer_hold() {
        let began = Instant::now();
        let error = until("a pulse", Duration::from_mins(1), || -> Result<Look<()>> { bail!("it died") });
        assert_eq!(error.unwrap_err().to_string(), "it died");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

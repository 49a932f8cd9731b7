//! How long to wait after a failure.
//!
//! The first retry comes at once: most failures are a version that another write has overtaken, and the retry starts from
//! a fresh look. After that, one second, doubled each time (as upstream's endpointslice controllers), but never given up,
//! where upstream drops a Service after 15 attempts.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(5);
const SECOND: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(2);

/// The delay after so many failures in a row (at least one).
pub fn delay(failures: u32) -> Duration {
    match failures {
        0 | 1 => FIRST,
        more => SECOND.saturating_mul(2_u32.saturating_pow(more - 2)).min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_start_short_double_and_end_at_a_limit() {
        let delays: Vec<f64> = [1, 2, 3, 4, 9, 1000].map(|failures| delay(failures).as_secs_f64()).to_vec();
        assert_eq!(delays, [0.005, 1.0, 2.0, 4.0, 120.0, 120.0]);
    }
}

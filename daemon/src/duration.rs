//! Durations as Kubernetes' flags write them: Go's notation (`1m30s`, `500ms`, `0`).
//!
//! Invariant: what is printed parses to the same value.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Serialize, Serializer};

/// A duration that reads and prints in Go's notation; never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

/// Text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration such as 30s, 1m30s, 500ms or 0")]
pub struct ParseDurationError(String);

/// Units and their length in nanoseconds, longest first, as printed.
const UNITS: [(&str, u64); 7] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("ns", 1),
];

impl GoDuration {
    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for GoDuration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseDurationError(text.to_owned());
        if text == "0" {
            return Ok(Self::default());
        }
        let mut rest = text;
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
            let (number, tail) = rest.split_at(digits);
            let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let length = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?.1;
            total = total.checked_add(scaled(number, length).ok_or_else(error)?).ok_or_else(error)?;
            rest = tail;
        }
        if text.is_empty() { Err(error()) } else { Ok(Self(total)) }
    }
}

/// `number` (perhaps with a fraction) times `unit` nanoseconds, without going through floating point.
fn scaled(number: &str, unit: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u64>().ok() };
    let mut nanoseconds = parse(whole)?.checked_mul(unit)?;
    let mut digit_value = unit;
    for digit in fraction.chars() {
        digit_value /= 10;
        nanoseconds = nanoseconds.checked_add(digit_value.checked_mul(u64::from(digit.to_digit(10)?))?)?;
    }
    Some(Duration::from_nanos(nanoseconds))
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_nanos();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, length) in UNITS.iter().filter(|(unit, _)| *unit != "µs") {
            let count = rest / u128::from(*length);
            if count > 0 {
                write!(f, "{count}{unit}")?;
                rest %= u128::from(*length);
            }
        }
        Ok(())
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_parse_as_go_does() {
        for (text, milliseconds) in
            [("0", 0), ("15s", 15_000), ("1m30s", 90_000), ("500ms", 500), ("1.5s", 1500), ("0.25h", 900_000)]
        {
            assert_eq!(text.parse(), Ok(GoDuration(Duration::from_millis(milliseconds))), "{text}");
        }
    }

    #[test]
    fn text_that_is_no_duration_is_refused() {
        for text in ["", "15", "s", "-1s", "1 s", "1d", ".s", "99999999999999h"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
    }

    #[test]
    fn printing_and_parsing_give_the_same_duration() {
        for text in ["0s", "1m30s", "1h", "500ms", "1s1ms1us1ns"] {
            assert_eq!(text.parse::<GoDuration>().unwrap().to_string(), text);
        }
    }
}

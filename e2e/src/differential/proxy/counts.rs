//! How often each endpoint gets a connection: packets are counted, where the tracer only says how often it should.
//!
//! Invariant: chance alone makes no difference: what is complained of comes once in 500 million times.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Result, ensure};
use fairlead_compiler::{Fate, Outcome, Share};

use super::packets::Question;
use crate::tun::{self, Harness, Kind};

/// Packets to each: enough to tell a half from a third.
const PACKETS: usize = 400;
/// Of more endpoints, each gets too few packets to say much.
const ENDPOINTS: std::ops::RangeInclusive<usize> = 2..=8;
/// Natural logarithm of how seldom chance goes further, on each side.
const SELDOM: f64 = 20.7;

/// Whether a question is one to count: it is up to chance which endpoint gets it, and to nothing else.
pub(super) fn is_chance(question: &Question, traced: &Fate) -> bool {
    question.kind == Kind::First
        && ENDPOINTS.contains(&traced.targets.len())
        && traced.affinity.is_empty()
        && traced.outcomes.get(&Outcome::Accepted) == Some(&Share::ALL)
}

/// Sends many packets, and fails if an endpoint gets more or fewer of them than by these shares.
pub(super) fn count(harness: &mut Harness, question: &Question, traced: &Fate) -> Result<()> {
    let probes: Vec<_> = std::iter::repeat_n(question.probe(), PACKETS).collect();
    let mut shares: BTreeMap<SocketAddr, f64> = BTreeMap::new();
    for ((target, _), share) in &traced.targets {
        *shares.entry(*target).or_default() += share.as_f64();
    }
    let mut counts: BTreeMap<Option<SocketAddr>, u32> = BTreeMap::new();
    for fate in harness.send_all(&probes)? {
        *counts.entry(tun::Fate::destination(&fate)).or_default() += 1;
    }
    let total: u32 = counts.values().sum();
    for (target, share) in shares {
        let seen = counts.get(&Some(target)).copied().unwrap_or(0);
        let bits = surprise(f64::from(seen) / f64::from(total), share) * f64::from(total);
        ensure!(bits <= SELDOM, "of {total} packets, {question}, went\n{counts:?}\ntracer: {traced}");
    }
    Ok(())
}

/// Chernoff's bound: of `n` packets, a part of `seen` or further off comes less often than `exp(-n * surprise)`.
fn surprise(seen: f64, expected: f64) -> f64 {
    let part = |seen: f64, expected: f64| if seen > 0.0 { seen * (seen / expected).ln() } else { 0.0 };
    part(seen, expected) + part(1.0 - seen, 1.0 - expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_chance_does_is_no_surprise_and_what_a_wrong_rule_does_is_one() {
        let of = |seen: f64, expected: f64| surprise(seen, expected) * 400.0;
        for (seen, expected) in [(0.25, 0.25), (0.35, 0.25), (0.42, 0.5), (0.0, 0.02), (1.0, 1.0)] {
            assert!(of(seen, expected) < SELDOM, "{seen} {expected}: {}", of(seen, expected));
        }
        // Two of three endpoints share what three should; one is left out; one gets what two should.
        for (seen, expected) in [(0.5, 1.0 / 3.0), (0.0, 0.125), (0.5, 0.25), (0.25, 0.5)] {
            assert!(of(seen, expected) > SELDOM, "{seen} {expected}: {}", of(seen, expected));
        }
    }
}

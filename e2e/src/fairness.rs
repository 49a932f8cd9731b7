//! Are the shares that the Pods of a Service got those of a fair draw?
//!
//! Pearson's chi-square test. A fair draw fails it once in a million runs ([`LIMIT`]), a Pod that is never chosen or
//! chosen twice as often as the others is found with a few hundred requests.

use std::collections::BTreeMap;

/// A draw as unlikely as this is not taken for chance.
pub const LIMIT: f64 = 1e-6;

/// Fails unless exactly `expected` were drawn, in shares that a fair draw would give.
pub fn check(shares: &BTreeMap<String, u64>, expected: &[&str]) -> anyhow::Result<()> {
    let drawn: Vec<&str> = shares.keys().map(String::as_str).collect();
    let mut wanted = expected.to_vec();
    wanted.sort_unstable();
    anyhow::ensure!(drawn == wanted, "answers came from {drawn:?}, not from {wanted:?}: {shares:?}");
    let counts: Vec<u64> = shares.values().copied().collect();
    let p = p_value(&counts);
    anyhow::ensure!(p >= LIMIT, "shares are not those of a fair draw (p = {p:.1e}): {shares:?}");
    Ok(())
}

/// The probability that a fair draw gives shares at least as uneven as these.
#[expect(clippy::cast_precision_loss, reason = "a few servers")]
pub fn p_value(counts: &[u64]) -> f64 {
    let share = 1.0 / counts.len() as f64;
    p_value_of(&counts.iter().map(|&count| (count, share)).collect::<Vec<_>>())
}

/// The probability that a draw in which each end has a known share (above 0, 1 in all) gives counts at least as far
/// from these shares. Meaningful from about five expected hits for each.
#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
pub fn p_value_of(counts_and_shares: &[(u64, f64)]) -> f64 {
    let total: u64 = counts_and_shares.iter().map(|(count, _)| count).sum();
    if counts_and_shares.len() < 2 || total == 0 {
        return 1.0;
    }
    let distance = |&(count, share): &(u64, f64)| {
        let expected = total as f64 * share;
        (count as f64 - expected).powi(2) / expected
    };
    let statistic: f64 = counts_and_shares.iter().map(distance).sum();
    upper_gamma((counts_and_shares.len() - 1) as f64 / 2.0, statistic / 2.0)
}

/// The regularised upper incomplete gamma function Q(a, x) for a = k/2, by the recurrence
/// Q(a + 1, x) = Q(a, x) + x^a e^-x / Γ(a + 1) from Q(1, x) = e^-x or Q(1/2, x) = erfc(√x).
fn upper_gamma(a: f64, x: f64) -> f64 {
    let half = (a * 2.0) % 2.0 > 0.5;
    let (mut at, mut q) = if half { (0.5, erfc(x.sqrt())) } else { (1.0, (-x).exp()) };
    // ln Γ(at + 1), kept up as `at` grows: Γ(3/2) = √π / 2, Γ(2) = 1.
    let mut ln_gamma = if half { (std::f64::consts::PI.sqrt() / 2.0).ln() } else { 0.0 };
    while at + 0.25 < a {
        if x > 0.0 {
            q += (at * x.ln() - x - ln_gamma).exp();
        }
        at += 1.0;
        ln_gamma += at.ln();
    }
    q.clamp(0.0, 1.0)
}

/// The complementary error function for x >= 0: Abramowitz and Stegun 7.1.26 is too coarse in the tail, so the series
/// serves below 2 and the continued fraction (evaluated from its 60th term) above.
fn erfc(x: f64) -> f64 {
    let root_pi = std::f64::consts::PI.sqrt();
    if x < 2.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..60 {
            let n = f64::from(n);
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return 1.0 - 2.0 / root_pi * sum;
    }
    let mut fraction = x;
    for n in (1..60).rev() {
        fraction = x + f64::from(n) / 2.0 / fraction;
    }
    (-x * x).exp() / root_pi / fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, wanted: f64) {
        assert!((got - wanted).abs() <= wanted * 1e-4, "{got} is not {wanted}");
    }

    /// Upper critical values of the chi-square distribution from the usual tables.
    #[test]
    fn p_value_matches_the_tables_for_known_statistics() {
        close(upper_gamma(0.5, 3.841_458_821 / 2.0), 0.05);
        close(upper_gamma(0.5, 10.827_566_17 / 2.0), 0.001);
        close(upper_gamma(1.0, 5.991_464_547 / 2.0), 0.05);
        close(upper_gamma(1.5, 16.266_236_2 / 2.0), 0.001);
        close(upper_gamma(5.0, 18.307_038_05 / 2.0), 0.05);
        close(upper_gamma(0.5, 23.928_126_98 / 2.0), 1e-6);
    }

    #[test]
    fn even_shares_pass_and_lopsided_ones_fail_for_two_pods() {
        let shares = |a, b| BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)]);
        assert!(check(&shares(210, 190), &["b", "a"]).is_ok());
        assert!(check(&shares(270, 130), &["b", "a"]).is_err());
        assert!(check(&shares(400, 0), &["a", "b"]).is_err());
    }

    #[test]
    fn a_stranger_fails_the_check_however_even_the_shares() {
        let shares = BTreeMap::from([("a".to_owned(), 200), ("stranger".to_owned(), 200)]);
        assert!(check(&shares, &["a", "b"]).unwrap_err().to_string().contains("stranger"));
    }
}

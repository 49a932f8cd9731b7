//! Probabilities: as the kernel stores them, and as exact fractions.
//!
//! Invariant: two probabilities are equal iff the kernel cannot tell them apart.

use std::fmt;

/// One, in the kernel's units.
const UNIT: u32 = 1 << 31;

/// Probability of a `statistic` match in units of 2⁻³¹, which is all that the kernel keeps of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probability(u32);

impl Probability {
    /// The probability that `iptables-restore` makes of 1/n in ten decimals, as kube-proxy writes it. Zero counts as 1.
    pub fn one_in(n: u32) -> Self {
        Self::of_text(&ten_decimals(n)).unwrap_or(Self(UNIT))
    }

    /// Reads the text of `--probability`.
    pub fn of_text(text: &str) -> Option<Self> {
        let value: f64 = text.parse().ok()?;
        if !(0.0..=1.0).contains(&value) {
            return None;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= value <= 1")]
        Some(Self((value * f64::from(UNIT)).round() as u32))
    }

    /// The exact fraction that was meant: 1/n if this is how 1/n is stored.
    pub fn share(self) -> Share {
        match self.denominator() {
            Some(n) => Share::new(1, n.into()),
            None => Share::new(self.0.into(), UNIT.into()),
        }
    }

    fn denominator(self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let n = (UNIT + self.0 / 2) / self.0;
        (Self::one_in(n) == self).then_some(n)
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator() {
            Some(n) => f.write_str(&ten_decimals(n)),
            None => write!(f, "{:.11}", f64::from(self.0) / f64::from(UNIT)),
        }
    }
}

fn ten_decimals(n: u32) -> String {
    format!("{:.10}", 1.0 / f64::from(n.max(1)))
}

/// An exact fraction in lowest terms, between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// Numerator.
    pub numerator: u64,
    /// Denominator; never 0.
    pub denominator: u64,
}

impl Share {
    /// Everything.
    pub const ALL: Self = Self { numerator: 1, denominator: 1 };
    /// Nothing.
    pub const NONE: Self = Self { numerator: 0, denominator: 1 };

    /// `numerator / denominator` in lowest terms; a zero denominator counts as 1.
    pub fn new(numerator: u64, denominator: u64) -> Self {
        Self::reduced(numerator.into(), denominator.max(1).into())
    }

    /// Both happen.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::reduced(
            u128::from(self.numerator) * u128::from(other.numerator),
            u128::from(self.denominator) * u128::from(other.denominator),
        )
    }

    /// It does not happen.
    #[must_use]
    pub fn complement(self) -> Self {
        Self::new(self.denominator.saturating_sub(self.numerator), self.denominator)
    }

    /// Either happens, if both cannot.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let (a, b) = (u128::from(self.numerator), u128::from(other.numerator));
        let (c, d) = (u128::from(self.denominator), u128::from(other.denominator));
        let common = gcd(c, d);
        match (a.checked_mul(d / common), b.checked_mul(c / common)) {
            (Some(left), Some(right)) => {
                Self::reduced(left.saturating_add(right), (c / common).saturating_mul(d))
            }
            _ => self,
        }
    }

    /// As a number.
    #[allow(clippy::cast_precision_loss, reason = "only for display")]
    pub fn as_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }

    /// Fractions that no ruleset of ours leads to lose low bits rather than overflow.
    fn reduced(numerator: u128, denominator: u128) -> Self {
        let divisor = gcd(numerator, denominator).max(1);
        let (mut numerator, mut denominator) = (numerator / divisor, denominator / divisor);
        while denominator > u64::MAX.into() {
            numerator >>= 1;
            denominator >>= 1;
        }
        let clamp = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
        Self { numerator: clamp(numerator), denominator: clamp(denominator).max(1) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.numerator, self.denominator)
    }
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reprinted_probability_is_the_one_that_was_written() {
        for n in (1..2_000).chain([9_999, 40_000]) {
            let written = Probability::one_in(n);
            let reprinted = format!("{:.11}", f64::from(written.0) / f64::from(UNIT));
            assert_eq!(Probability::of_text(&reprinted), Some(written));
            assert_eq!(written.to_string(), ten_decimals(n));
            assert_eq!(written.share(), Share::new(1, n.into()));
        }
    }

    #[test]
    fn save_of_a_third_is_understood() {
        assert_eq!(Probability::of_text("0.33333333349"), Some(Probability::one_in(3)));
        assert_eq!(Probability::one_in(3).to_string(), "0.3333333333");
    }

    #[test]
    fn foreign_probability_keeps_its_value() {
        let odd = Probability::of_text("0.30000000000").unwrap();
        assert_eq!(Probability::of_text(&odd.to_string()), Some(odd));
        assert_eq!(Probability::of_text("1.5"), None);
        assert_eq!(Probability::of_text("x"), None);
    }

    #[test]
    fn shares_of_a_random_chain_are_equal() {
        let mut left = Share::ALL;
        let mut total = Share::NONE;
        for i in (1..=100_u64).rev() {
            let here = Share::new(1, i);
            let share = left.and(here);
            assert_eq!(share, Share::new(1, 100));
            total = total.or(share);
            left = left.and(here.complement());
        }
        assert_eq!((total, left), (Share::ALL, Share::NONE));
    }
}

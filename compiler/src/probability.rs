//! Probabilities: as the kernel stores them, and as exact fractions.
//!
//! Invariant: two probabilities are equal iff the kernel cannot tell them apart.

use std::fmt;

/// One, in the kernel's units.
const UNIT: u32 = 1 << 31;
/// Fractions with denominators up to this are further apart than the kernel's units and ten decimals blur them.
const SMALL: u32 = 1 << 14;

/// Probability of a `statistic` match in units of 2⁻³¹, which is all that the kernel keeps of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probability(u32);

impl Probability {
    /// The probability that `iptables-restore` makes of 1/n in ten decimals, as kube-proxy writes it. Zero counts as 1.
    pub fn one_in(n: u32) -> Self {
        Self::of(1, n)
    }

    /// The same for another fraction. More than 1 counts as 1.
    pub fn of(numerator: u32, denominator: u32) -> Self {
        Self::of_text(&ten_decimals(numerator, denominator)).unwrap_or(Self(UNIT))
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

    /// The exact fraction that was meant: that with a small denominator which is stored like this, if there is one.
    pub fn share(self) -> Share {
        let (numerator, denominator) = self.fraction().unwrap_or((self.0, UNIT));
        Share::new(numerator.into(), denominator.into())
    }

    fn fraction(self) -> Option<(u32, u32)> {
        if self.0 == 0 {
            return None;
        }
        let n = (UNIT + self.0 / 2) / self.0;
        if Self::one_in(n) == self { Some((1, n)) } else { self.simplest() }
    }

    /// The fraction with a denominator up to [`SMALL`] that is stored like this. Two such are never stored alike, and a
    /// fraction as near as that is one of the convergents of the continued fraction.
    fn simplest(self) -> Option<(u32, u32)> {
        let (mut dividend, mut divisor) = (self.0, UNIT);
        let (mut before, mut last) = ((0_u32, 1_u32), (1_u32, 0_u32));
        while divisor != 0 {
            let quotient = dividend / divisor;
            let next = |last: u32, before: u32| last.checked_mul(quotient)?.checked_add(before);
            let convergent = (next(last.0, before.0)?, next(last.1, before.1)?);
            if convergent.1 > SMALL {
                return None;
            }
            if Self::of(convergent.0, convergent.1) == self {
                return Some(convergent);
            }
            (before, last) = (last, convergent);
            (dividend, divisor) = (divisor, dividend % divisor);
        }
        None
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fraction() {
            Some((numerator, denominator)) => f.write_str(&ten_decimals(numerator, denominator)),
            None => write!(f, "{:.11}", f64::from(self.0) / f64::from(UNIT)),
        }
    }
}

fn ten_decimals(numerator: u32, denominator: u32) -> String {
    format!("{:.10}", f64::from(numerator) / f64::from(denominator.max(1)))
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
            assert_eq!(written.to_string(), ten_decimals(1, n));
            assert_eq!(written.share(), Share::new(1, n.into()));
        }
    }

    #[test]
    fn fractions_of_groups_are_understood_exactly() {
        for (numerator, denominator) in
            [(2, 3), (31, 1000), (78, 5000), (4999, 5000), (7919, 16_384), (1, 16_381)]
        {
            let written = Probability::of(numerator, denominator);
            assert_eq!(written.share(), Share::new(numerator.into(), denominator.into()));
            assert_eq!(written.to_string(), ten_decimals(numerator, denominator));
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

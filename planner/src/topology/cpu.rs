//! Quantities of CPU, as Kubernetes writes them: `2`, `1500m`, `0.5`, `1e3`, `1Ki`.
//!
//! Invariant: as upstream's Quantity, what is finer than a billionth is rounded up.

/// Billionths per thousandth.
const NANO_PER_MILLI: u128 = 1_000_000;

/// Billionths of a CPU; `None` if the text is no quantity, is negative or is beyond all measure.
pub(super) fn nano(text: &str) -> Option<u128> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mantissa: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (binary, decimal) = factor(suffix)?;
    let mantissa = mantissa.checked_mul(1_u128.checked_shl(binary)?)?;
    scaled(mantissa, 9 + decimal - i32::try_from(fraction.len()).ok()?)
}

/// Thousandths, rounded up.
pub(super) fn milli(nano: u128) -> u128 {
    nano.div_ceil(NANO_PER_MILLI)
}

/// What a suffix multiplies by: a power of two and a power of ten.
fn factor(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        exponent => (0, i32::from(exponent.strip_prefix(['e', 'E'])?.parse::<i8>().ok()?)),
    })
}

/// `mantissa` times ten to the power of `exponent`, rounded up.
fn scaled(mantissa: u128, exponent: i32) -> Option<u128> {
    let power = 10_u128.checked_pow(exponent.unsigned_abs());
    match power {
        Some(power) if exponent >= 0 => mantissa.checked_mul(power),
        Some(power) => Some(mantissa.div_ceil(power)),
        None if exponent < 0 => Some(mantissa.min(1)),
        None => (mantissa == 0).then_some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("2", Some(2000)),
            ("+2", Some(2000)),
            ("1500m", Some(1500)),
            ("0.5", Some(500)),
            (".5", Some(500)),
            ("3.", Some(3000)),
            ("1e3", Some(1_000_000)),
            ("1E-3", Some(1)),
            ("1k", Some(1_000_000)),
            ("1Ki", Some(1_024_000)),
            ("0.5Ki", Some(512_000)),
            ("1E", Some(1_000_000_000_000_000_000_000)),
            ("0", Some(0)),
            ("0e99", Some(0)),
            ("1u", Some(1)),
            ("1500u", Some(2)),
            ("1n", Some(1)),
            ("1e-120", Some(1)),
            ("0.0000000000001", Some(1)),
            ("-1", None),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("m", None),
            ("1x", None),
            ("1 ", None),
            ("1e", None),
            ("1e99", None),
            ("340282366920938463463374607431768211456", None),
        ] {
            assert_eq!(nano(text).map(milli), expected, "{text:?}");
        }
    }
}

//! Addresses as Kubernetes reads them: leniently in, canonically out.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// IP family of an address, a Service or a ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// 32-bit addresses.
    #[serde(rename = "IPv4")]
    V4,
    /// 128-bit addresses.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The name used in API fields: `IPv4` or `IPv6`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that is not an IP address, or not a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseAddressError {
    text: String,
}

impl fmt::Display for ParseAddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an IP address or network", self.text)
    }
}

impl std::error::Error for ParseAddressError {}

/// Parses an address as Kubernetes' "sloppy" parser does: leading zeros in IPv4 octets are decimal, IPv4-mapped IPv6
/// becomes IPv4, zones are refused.
pub fn parse_address(text: &str) -> Result<IpAddr, ParseAddressError> {
    let error = || ParseAddressError { text: text.to_owned() };
    if text.contains(':') {
        let address: Ipv6Addr = strip_embedded_zeros(text).parse().map_err(|_| error())?;
        return Ok(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4));
    }
    sloppy_v4(text).map(IpAddr::V4).ok_or_else(error)
}

/// Parses `ADDRESS/LENGTH` with the same leniency, and clears the host bits.
pub fn parse_network(text: &str) -> Result<IpNet, ParseAddressError> {
    let error = || ParseAddressError { text: text.to_owned() };
    let (address, length) = text.trim().split_once('/').ok_or_else(error)?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return Err(error());
    }
    let address = parse_address(address)?;
    let length = length.parse().map_err(|_| error())?;
    Ok(IpNet::new(address, length).map_err(|_| error())?.trunc())
}

fn sloppy_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// `::ffff:010.0.0.1` may carry leading zeros in its dotted tail, too.
fn strip_embedded_zeros(text: &str) -> String {
    match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => {
            sloppy_v4(tail).map_or_else(|| text.to_owned(), |v4| format!("{head}:{v4}"))
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_leniently_and_printed_canonically() {
        for (text, canonical) in [
            ("010.001.000.1", "10.1.0.1"),
            ("2001:DB8:0:0::1", "2001:db8::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("::ffff:001.2.3.4", "1.2.3.4"),
            ("172.30.0.041", "172.30.0.41"),
        ] {
            assert_eq!(parse_address(text).unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn text_that_is_no_address_is_refused() {
        for text in ["", "1.2.3", "1.2.3.4.5", "256.1.1.1", "fe80::1%eth0", "1.2.3.x", "+1.2.3.4", "host"] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_lose_their_host_bits() {
        assert_eq!(parse_network("203.0.113.000/025").unwrap().to_string(), "203.0.113.0/25");
        assert_eq!(parse_network(" 10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(parse_network("10.0.0.0/33").is_err());
        assert!(parse_network("10.0.0.0").is_err());
        assert!(parse_network("10.0.0.0/+8").is_err());
    }
}

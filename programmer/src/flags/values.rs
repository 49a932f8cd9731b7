//! Values of flags as Go's flag packages read them.

use std::{collections::BTreeMap, net::IpAddr};

/// Feature gates that were set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates(pub BTreeMap<String, bool>);

/// What Go takes for a boolean.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// `A=true,B=false`.
pub(super) fn gates(text: &str) -> Result<Gates, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let gates = pairs.map(|pair| {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| format!("{pair:?}: expected NAME=true or NAME=false"))?;
        let value = boolean(value.trim()).map_err(|error| format!("{}: {error}", name.trim()))?;
        Ok((name.trim().to_owned(), value))
    });
    gates.collect::<Result<_, String>>().map(Gates)
}

/// `address`, with `port` if it has none; empty if the port is 0, which disables what listens there.
pub(super) fn with_port(address: Option<&str>, port: Option<u16>) -> Option<String> {
    match (address.map(str::parse::<IpAddr>), port) {
        (_, Some(0)) => Some(String::new()),
        (Some(Ok(IpAddr::V4(address))), Some(port)) => Some(format!("{address}:{port}")),
        (Some(Ok(IpAddr::V6(address))), Some(port)) => Some(format!("[{address}]:{port}")),
        _ => address.map(str::to_owned),
    }
}

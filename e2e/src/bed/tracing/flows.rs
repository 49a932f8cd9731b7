//! Connections and flows that a node's conntrack knows: their packets meet no nat rule any more.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context, Result};
use fairlead_objects::Family;

use crate::{netns::Netns, servers::Protocol};

/// What a node made of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bed) struct Flow {
    /// Who is to answer.
    pub(in crate::bed) answerer: SocketAddr,
    /// Whom that one sees.
    pub(in crate::bed) client: IpAddr,
}

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) source: SocketAddr,
    pub(super) flow: Flow,
}

/// The entries of a node about packets to a target.
pub(super) fn read(namespace: &Netns, protocol: Protocol, target: SocketAddr) -> Result<Vec<Entry>> {
    let family = match Family::of(target.ip()) {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let (ip, port) = (target.ip().to_string(), target.port().to_string());
    let protocol = protocol.to_string().to_lowercase();
    let words = ["-L", "-f", family, "-p", &protocol, "-d", &ip, "--dport", &port];
    let listed = namespace.output(Command::new("conntrack").args(words))?;
    listed.lines().map(|line| entry(line).with_context(|| format!("a strange flow: {line}"))).collect()
}

/// `tcp 6 86399 ESTABLISHED src=A dst=T sport=1 dport=80 src=E dst=C sport=8080 dport=1 [ASSURED] mark=0 use=1`
fn entry(line: &str) -> Option<Entry> {
    let all = |name: &str| -> Vec<&str> {
        line.split(' ').filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).collect()
    };
    let (sources, destinations, ports) = (all("src"), all("dst"), all("sport"));
    let address = |place: usize| {
        Some(SocketAddr::new(sources.get(place)?.parse().ok()?, ports.get(place)?.parse().ok()?))
    };
    let client = destinations.get(1)?.parse().ok()?;
    Some(Entry { source: address(0)?, flow: Flow { answerer: address(1)?, client } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_the_tool_prints_them() {
        let line = "tcp      6 86399 ESTABLISHED src=10.244.1.2 dst=10.96.0.1 sport=40000 dport=443 \
                    src=172.30.0.10 dst=172.30.0.11 sport=6443 dport=40000 [ASSURED] mark=0 use=1";
        let flow = Flow { answerer: ([172, 30, 0, 10], 6443).into(), client: [172, 30, 0, 11].into() };
        assert_eq!(entry(line), Some(Entry { source: ([10, 244, 1, 2], 40_000).into(), flow }));
    }
}

//! Counters of the kernel (nfacct) that rules count packets in: made at start, read at each scrape.
//!
//! Two rules use them, for kube-proxy's metrics of invalid packets and of node ports on localhost. The kernel keeps their
//! values when rules are written again, and does not let them be deleted while a rule uses them.
//!
//! Invariant: a kernel without nfacct is an error of [`ensure`], and no metric; a counter of others is never touched.

use std::{fmt, io};

use fairlead_compiler::counters as names;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use crate::netlink::{Request, Socket, find};

/// linux/netfilter/nfnetlink.h and nfnetlink_acct.h: subsystem and message, attributes.
const NEW: u16 = 0x700;
const GET: u16 = 0x701;
const DELETE: u16 = 0x703;
const NAME: u16 = 1;
const PACKETS: u16 = 2;
/// `struct nfgenmsg`: no family, version 0, no resource.
const FIXED: [u8; 4] = [0; 4];

/// Ours, and kube-proxy's metrics of them.
const METRICS: [(&str, &str, &str); 2] = [
    (
        names::INVALID,
        "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
        "packets dropped by iptables to work around conntrack problems",
    ),
    (
        names::LOCALHOST,
        "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
        "Number of packets accepted on nodeports of loopback interface",
    ),
];

/// Makes the counters that are missing. Whether there were any.
pub fn ensure() -> io::Result<bool> {
    let mut socket = Socket::netfilter()?;
    let mut made = false;
    for (name, ..) in METRICS {
        match socket.command(&request(NEW, name)) {
            // It is there, and keeps its value.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
            Ok(()) => made = true,
        }
    }
    Ok(made)
}

/// Deletes the counters that no rule uses any more. Whether there were any.
pub fn remove() -> io::Result<bool> {
    let mut socket = Socket::netfilter()?;
    let mut any = false;
    for (name, ..) in METRICS {
        match socket.command(&request(DELETE, name)) {
            Ok(()) => any = true,
            Err(error) => match error.raw_os_error() {
                // Gone, or never there; in use by another; no nfacct at all.
                Some(libc::ENOENT | libc::EBUSY | libc::EINVAL | libc::EOPNOTSUPP) => {}
                _ => return Err(error),
            },
        }
    }
    Ok(any)
}

/// How many packets each of our counters has counted.
pub fn packets() -> io::Result<Vec<(&'static str, u64)>> {
    let mut counted = Vec::new();
    Socket::netfilter()?.dump(&Request::new(GET, &FIXED), |message| counted.extend(decode(message.body)))?;
    Ok(counted)
}

fn request(kind: u16, name: &str) -> Request {
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    Request::new(kind, &FIXED).with(NAME, &text)
}

/// Name and packets of one of ours, from what the kernel sends.
fn decode(body: &[u8]) -> Option<(&'static str, u64)> {
    let attributes = body.get(FIXED.len()..)?;
    let name = find(attributes, NAME)?.strip_suffix(&[0])?;
    let packets = u64::from_be_bytes(*find(attributes, PACKETS)?.first_chunk()?);
    let (ours, ..) = METRICS.into_iter().find(|(ours, ..)| ours.as_bytes() == name)?;
    Some((ours, packets))
}

/// Reads the counters on each scrape.
#[derive(Debug)]
pub struct PacketCounts;

impl Collector for PacketCounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counted = packets().unwrap_or_default();
        for (counter, name, help) in METRICS {
            if let Some((_, packets)) = counted.iter().find(|(name, _)| *name == counter) {
                // As a gauge is written, so that the name stays as it is.
                let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                ConstGauge::new(*packets).encode(metric)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel's headers lay it out, and as kube-proxy sends it (but for the flag that asks to create, which the kernel
    /// does not look at).
    #[test]
    fn messages_are_those_of_the_kernel() {
        let bytes = request(NEW, "localhost_nps_accepted_pkts").bytes(0x5);
        let header = [52, 0, 0, 0, 0, 7, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let expected = [&header[..], &[0; 4], &[32, 0, 1, 0], b"localhost_nps_accepted_pkts\0"].concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn counters_of_others_are_not_ours() {
        let of = |name: &[u8]| {
            let counters = [12, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 12, 0, 3, 0, 0, 0, 0, 0, 0, 0, 9, 9];
            let length = u8::try_from(4 + name.len()).unwrap();
            let padding = vec![0; name.len().next_multiple_of(4) - name.len()];
            decode(&[&[0, 0, 0, 0, length, 0, 1, 0], name, &padding, &counters].concat())
        };
        assert_eq!(of(b"ct_state_invalid_dropped_pkts\0"), Some((names::INVALID, 258)));
        assert_eq!(of(b"somebody_elses\0"), None);
        assert_eq!(decode(&[0, 0, 0, 0, 60, 0, 1, 0, 1]), None);
    }
}

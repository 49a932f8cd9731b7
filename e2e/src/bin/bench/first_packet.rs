//! What the first packet of a flow costs: the time from sending a datagram in the client to having it in the server.
//!
//! Sender and receiver are the same thread, and veth hands packets on within the sender's system call, so the time is
//! that of the kernel's path and of two system calls, without any wake-up. Every datagram leaves from a new port and so
//! is a new flow.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Instant,
};

use anyhow::Result;
use fairlead_compiler::{Delta, compile};

use crate::{
    SIZES,
    report::{Samples, heading, row},
    router::{Router, Variant},
    workload::{ENDPOINT_PORT, ENDPOINTS, cluster_ip, config, facts, state},
};

const PACKETS: usize = 2_000;

/// Measures the floor (a flow that is tracked and routed, without rules of ours), then a Service and no Service.
pub(crate) fn measure() -> Result<()> {
    heading(
        "First packet of a flow",
        &["iptables", "Services", "Service p50", "Service p99", "no Service p50", "no Service p99"],
    );
    for variant in Variant::ALL {
        floor(variant)?;
        for count in SIZES {
            let router = Router::build(variant)?;
            router.load(Delta::everything(&compile(&state(count), &config(), &facts())))?;
            let through_service = send(&router, |i| (cluster_ip(i * 37 % count, count), 80))?;
            let [p50, p99] = through_service.cells();
            let [other_p50, other_p99] = send(&router, |_| (ENDPOINTS[0], ENDPOINT_PORT))?.cells();
            row(&[variant.name().to_owned(), count.to_string(), p50, p99, other_p50, other_p99]);
        }
    }
    Ok(())
}

/// One rule each that makes the kernel track connections and pass the nat hooks, and nothing else.
fn floor(variant: Variant) -> Result<()> {
    let router = Router::build(variant)?;
    let document = "*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n\
                    *nat\n-A PREROUTING -d 203.0.113.1/32 -j ACCEPT\nCOMMIT\n";
    router.restore(document)?;
    let [p50, p99] = send(&router, |_| (ENDPOINTS[0], ENDPOINT_PORT))?.cells();
    row(&[variant.name().to_owned(), "no rules".to_owned(), "-".to_owned(), "-".to_owned(), p50, p99]);
    Ok(())
}

fn send(router: &Router, target: impl Fn(usize) -> (Ipv4Addr, u16)) -> Result<Samples> {
    let receiver = router.server.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ENDPOINT_PORT)))??;
    receiver.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
    let mut samples = Samples::default();
    for batch in 0..PACKETS / 100 {
        let senders: Vec<UdpSocket> = router.client.run(|| {
            (0..100).map(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).collect::<Result<_, _>>()
        })??;
        for (n, sender) in senders.iter().enumerate() {
            let (address, port) = target(batch * 100 + n);
            let target = SocketAddr::new(IpAddr::V4(address), port);
            let mut buffer = [0; 16];
            let began = Instant::now();
            sender.send_to(b"ping", target)?;
            receiver.recv(&mut buffer)?;
            samples.push(began.elapsed());
        }
    }
    Ok(samples)
}

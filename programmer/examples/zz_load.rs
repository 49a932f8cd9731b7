//! Temporary.
#![allow(warnings, clippy::all, clippy::pedantic)]
use fairlead_objects::{Family, Protocol, builders};
use fairlead_programmer::{feed::Change, netfilter::Variant};
use serde_json::json;
use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};
#[path = "../tests/node/mod.rs"]
mod node;
use node::Node;

fn service(i: usize) -> Change {
    let ip = format!("10.96.{}.{}", i / 250, i % 250 + 1);
    Change::Service(Arc::new(builders::service(
        &format!("service-{i}"),
        json!({"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "UDP"}]}),
    )))
}
fn slice(i: usize, a: &[&str]) -> Change {
    let e: Vec<_> = a.iter().map(|ip| (*ip, "node-a", true)).collect();
    let mut s = builders::slice(&format!("service-{i}"), &format!("service-{i}"), 8080, &e);
    for p in &mut s.ports {
        p.protocol = Some(Protocol::Udp);
    }
    Change::Slice(Arc::new(s))
}
fn mem(what: &str) {
    let s = fs::read_to_string("/proc/self/status").unwrap();
    let g = |k: &str| {
        s.lines().find(|l| l.starts_with(k)).unwrap_or("").split_whitespace().nth(1).unwrap_or("").to_owned()
    };
    eprintln!("{what}: rss {} hwm {}", g("VmRSS:"), g("VmHWM:"));
}
#[cfg(feature_none)]
static A: u8 = 0;
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let variant =
        if std::env::args().nth(2).as_deref() == Some("legacy") { Variant::Legacy } else { Variant::Nft };
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(
        async move {
            mem("begin");
            let t = Instant::now();
            let node = Node::start(
                Family::V4,
                variant,
                (0..n).flat_map(|i| [service(i), slice(i, &["10.0.0.1", "10.0.0.2"])]),
            )
            .await;
            mem(&format!("loaded in {:?}", t.elapsed()));
            let sum = |node: &Node| node.metric("kubeproxy_sync_proxy_rules_duration_seconds_count");
            tokio::time::sleep(Duration::from_millis(1500)).await;
            mem("settled");
            let mut times = vec![];
            for k in 0..40 {
                let before = node.metric("kubeproxy_sync_partial_proxy_rules_duration_seconds_count");
                let t = Instant::now();
                node.tell(slice((k * 61 + 7) % n, &["10.0.0.3", "10.0.0.4"])).await;
                while node.metric("kubeproxy_sync_partial_proxy_rules_duration_seconds_count") == before {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                times.push(t.elapsed());
            }
            times.sort();
            mem(&format!("changes p50 {:?} p90 {:?} max {:?}", times[20], times[36], times[39]));
            tokio::time::sleep(Duration::from_secs(
                std::env::args().nth(3).and_then(|s| s.parse().ok()).unwrap_or(0),
            ))
            .await;
            mem("end");
            node.stop().await;
        },
    );
}

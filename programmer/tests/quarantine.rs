//! A Service whose rules the real programs refuse does not stop the others.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fairlead_objects::builders;
use fairlead_programmer::{feed::Change, netfilter::Variant};
use serde_json::json;

mod namespace;
mod node;

use namespace::{in_namespace, shell};
use node::Node;

/// A time that the match `recent` refuses; the API server would, too.
fn sticky(seconds: u32) -> Change {
    let affinity = json!({"clientIP": {"timeoutSeconds": seconds}});
    let spec = json!({"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"], "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": affinity});
    Change::Service(Arc::new(builders::service("sticky", spec)))
}

fn service(number: u32) -> Change {
    let ip = format!("10.96.1.{number}");
    let spec = json!({"clusterIP": ip, "clusterIPs": [ip]});
    Change::Service(Arc::new(builders::service(&format!("svc-{number}"), spec)))
}

fn slice(service: &str, address: &str) -> Change {
    let endpoints = [(address, "node-a", true)];
    Change::Slice(Arc::new(builders::slice(service, service, 8080, &endpoints)))
}

async fn until(tool: &str, text: &str) -> Duration {
    let start = Instant::now();
    while !shell(&format!("{tool}-save -t nat")).contains(text) {
        assert!(start.elapsed() < Duration::from_secs(30), "{tool}: no {text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

#[test]
fn refused_service_is_left_out_and_comes_back_when_it_is_right() {
    in_namespace("refused_service_is_left_out_and_comes_back_when_it_is_right", async || {
        for (variant, tool) in [(Variant::Nft, "iptables-nft"), (Variant::Legacy, "iptables-legacy")] {
            let mut changes = vec![sticky(0), slice("sticky", "10.0.0.2")];
            for number in 1..20 {
                changes
                    .extend([service(number), slice(&format!("svc-{number}"), &format!("10.0.1.{number}"))]);
            }
            let mut node = Node::start(variant, changes).await;
            for number in 1..20 {
                until(tool, &format!("10.0.1.{number}:8080")).await;
            }
            assert!(!shell(&format!("{tool}-save -t nat")).contains("10.0.0.2:8080"));
            assert_eq!(node.metric("fairlead_quarantined_services{ip_family=\"IPv4\"}"), 1.0);
            let notice = node.notices.recv().await.unwrap();
            assert_eq!((&*notice.service.name, notice.reason), ("sticky", "FailedToProgram"));

            node.tell(slice("svc-1", "10.0.3.1")).await;
            let took = until(tool, "10.0.3.1:8080").await;
            assert!(took < Duration::from_secs(1), "{variant}: others do not wait: {took:?}");
            node.tell(sticky(60)).await;
            until(tool, "10.0.0.2:8080").await;
            assert_eq!(node.metric("fairlead_quarantined_services{ip_family=\"IPv4\"}"), 0.0);
            node.remove(variant).await;
        }
    });
}

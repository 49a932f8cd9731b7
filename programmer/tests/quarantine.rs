//! A Service whose rules the real programs refuse does not stop the others.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    sync::Arc,
    time::{Duration, Instant},
};

use fairlead_objects::{ServiceKey, builders};
use fairlead_programmer::{events::Subject, feed::Change, netfilter::Variant};
use serde_json::json;

mod namespace;
mod node;

use namespace::{in_namespace_with_path, shell};
use node::Node;

/// What the programs are made to refuse, by its line, as they would refuse a match that the kernel lacks.
const REFUSED: &str = "10.0.0.2:8080";

/// Puts programs that refuse one rule before the real ones.
fn refusing_programs() -> String {
    let directory = env::temp_dir().join(format!("fairlead-refusing-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    for variant in ["nft", "legacy"] {
        let name = format!("iptables-{variant}-restore");
        let real = shell(&format!("command -v {name}"));
        let script = format!(
            "#!/bin/sh\ndocument=$(cat)\nline=$(printf '%s\\n' \"$document\" | grep -nF '{REFUSED}' | head -n 1 | \
             cut -d: -f1)\n[ -z \"$line\" ] || {{ echo \"iptables-restore: line $line failed\" >&2; exit 1; }}\n\
             printf '%s\\n' \"$document\" | exec {} \"$@\"\n",
            real.trim()
        );
        fs::write(directory.join(&name), script).unwrap();
        fs::set_permissions(directory.join(&name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:{}", directory.display(), env::var("PATH").unwrap())
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

/// The metric follows the rules when the sync has ended.
async fn until_left_out(node: &Node, services: u64) {
    let start = Instant::now();
    while node.metric("fairlead_quarantined_services{ip_family=\"IPv4\"}") != services {
        assert!(start.elapsed() < Duration::from_secs(30), "not {services} Services are left out");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn refused_service_is_left_out_and_comes_back_when_it_is_right() {
    let test = "refused_service_is_left_out_and_comes_back_when_it_is_right";
    let path = refusing_programs();
    in_namespace_with_path(test, &path, async || {
        for (variant, tool) in [(Variant::Nft, "iptables-nft"), (Variant::Legacy, "iptables-legacy")] {
            let mut changes = vec![service(77), slice("svc-77", "10.0.0.2")];
            for number in 1..20 {
                changes
                    .extend([service(number), slice(&format!("svc-{number}"), &format!("10.0.1.{number}"))]);
            }
            let mut node = Node::start(variant, changes).await;
            for number in 1..20 {
                until(tool, &format!("10.0.1.{number}:8080")).await;
            }
            assert!(!shell(&format!("{tool}-save -t nat")).contains(REFUSED));
            until_left_out(&node, 1).await;
            let notice = node.notices.recv().await.unwrap();
            let service = Subject::Service(ServiceKey::new("default", "svc-77"));
            assert_eq!((notice.subject, notice.reason), (service, "FailedToProgram"));

            node.tell(slice("svc-1", "10.0.3.1")).await;
            let took = until(tool, "10.0.3.1:8080").await;
            assert!(took < Duration::from_secs(5), "{variant}: others do not wait: {took:?}");
            node.tell(slice("svc-77", "10.0.0.9")).await;
            until(tool, "10.0.0.9:8080").await;
            until_left_out(&node, 0).await;
            node.remove(variant).await;
        }
    });
    drop(fs::remove_dir_all(path.split(':').next().unwrap()));
}

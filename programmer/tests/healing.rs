//! What other programs do to our rules is noticed and repaired, against a real kernel and the whole sync loop.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests, too")]

use std::{
    env,
    process::{Child, Command},
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

/// What is promised.
const PROMISE: Duration = Duration::from_secs(2);

/// Services of every shape that has chains of its own: affinity, node ports, source ranges, no endpoints.
fn services() -> Vec<Change> {
    let service = |name: &str, spec| Change::Service(Arc::new(builders::service(name, spec)));
    let slice = |name: &str, addresses: &[&str]| {
        let endpoints: Vec<_> = addresses.iter().map(|ip| (*ip, "node-a", true)).collect();
        Change::Slice(Arc::new(builders::slice(name, name, 8080, &endpoints)))
    };
    let ports = json!([{"port": 80, "protocol": "TCP", "nodePort": 30080}]);
    vec![
        service("plain", json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]})),
        slice("plain", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        service(
            "sticky",
            json!({"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"], "sessionAffinity": "ClientIP",
                   "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}),
        ),
        slice("sticky", &["10.0.1.1", "10.0.1.2"]),
        service(
            "balanced",
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.3", "clusterIPs": ["10.96.0.3"], "ports": ports,
                   "externalIPs": ["198.51.100.3"], "loadBalancerSourceRanges": ["203.0.113.0/24"]}),
        ),
        slice("balanced", &["10.0.2.1", "10.0.2.2"]),
        service("empty", json!({"clusterIP": "10.96.0.4", "clusterIPs": ["10.96.0.4"]})),
    ]
}

/// Chains and rules of filter and nat, without what changes by itself.
fn saved(tool: &str) -> Vec<String> {
    let text = shell(&format!("{tool}-save -t filter; {tool}-save -t nat; {tool}-save -t mangle"));
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut lines: Vec<_> = lines.map(|line| line.split(" [").next().unwrap().to_owned()).collect();
    // Tables print in the order in which they were made.
    lines.sort();
    lines
}

/// Waits until the rules are `before` again; returns after how long.
async fn healed(tool: &str, before: &[String], what: &str) -> Duration {
    let start = Instant::now();
    loop {
        let now = saved(tool);
        if now == before {
            return start.elapsed();
        }
        if start.elapsed() > Duration::from_secs(40) {
            let lost: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
            let new: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
            panic!("{what}: still lost {lost:#?}, still there {new:#?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn tool(variant: Variant) -> &'static str {
    match variant {
        Variant::Nft => "iptables-nft",
        Variant::Legacy => "iptables-legacy",
    }
}

/// Places of our rules, the jumps to us among them: table, chain and number in it.
fn places(tool: &str) -> Vec<(String, String, usize)> {
    let mut places = Vec::new();
    for table in ["filter", "nat"] {
        let mut numbers = std::collections::BTreeMap::<String, usize>::new();
        for line in shell(&format!("{tool}-save -t {table}")).lines() {
            let Some(rule) = line.strip_prefix("-A ") else { continue };
            let chain = rule.split(' ').next().unwrap().to_owned();
            let number = numbers.entry(chain.clone()).or_default();
            *number += 1;
            // Its content is shared with kubelet and not compared; see the compiler.
            if chain != "KUBE-FIREWALL" {
                places.push((table.to_owned(), chain, *number));
            }
        }
    }
    places
}

/// Deletes and edits every rule in turn, or every n-th.
async fn damage_each(variant: Variant, every: usize) -> (Vec<Duration>, Vec<Duration>) {
    let tool = tool(variant);
    let node = Node::start(variant, services()).await;
    let before = saved(tool);
    let (mut times, mut edits) = (Vec::new(), Vec::new());
    for (table, chain, number) in places(tool).into_iter().step_by(every) {
        let what = format!("{table} {chain} {number}");
        shell(&format!("{tool} -w 5 -t {table} -D {chain} {number}"));
        times.push(healed(tool, &before, &format!("{what} deleted")).await);
        if chain.starts_with("KUBE-") {
            shell(&format!("{tool} -w 5 -t {table} -R {chain} {number} -j RETURN"));
            edits.push(healed(tool, &before, &format!("{what} edited")).await);
            shell(&format!("{tool} -w 5 -t {table} -I {chain} -s 192.0.2.1 -j RETURN"));
            times.push(healed(tool, &before, &format!("{what} inserted before")).await);
        }
    }
    let repairs = ["chain_changed", "jump_missing"]
        .map(|kind| node.metric(&format!("fairlead_drift_total{{ip_family=\"IPv4\",reason=\"{kind}\"}}")));
    let least = u64::try_from(times.len()).unwrap();
    assert!(repairs.iter().sum::<u64>() >= least, "{repairs:?} of {}", times.len());
    node.remove(variant).await;
    (times, edits)
}

fn report(what: &str, mut times: Vec<Duration>, promise: Duration) {
    times.sort();
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("{what}: {} repairs, p50 {median:?}, most {most:?}", times.len());
    assert!(most < promise, "{what}: {most:?}");
}

#[test]
fn every_rule_deleted_or_edited_is_repaired_nft() {
    in_namespace("every_rule_deleted_or_edited_is_repaired_nft", async || {
        let (others, edits) = damage_each(Variant::Nft, 1).await;
        report("nft", others, PROMISE);
        report("nft, edits", edits, PROMISE);
    });
}

#[test]
fn rules_deleted_or_edited_are_repaired_legacy() {
    in_namespace("rules_deleted_or_edited_are_repaired_legacy", async || {
        let (others, edits) = damage_each(Variant::Legacy, 3).await;
        report("legacy", others, PROMISE);
        // All keep the number of rules; some keep the size of the table, too.
        report("legacy, edits", edits, Duration::from_secs(30));
    });
}

#[test]
fn edit_that_keeps_all_counts_is_repaired_within_half_a_minute_legacy() {
    in_namespace("edit_that_keeps_all_counts_is_repaired_within_half_a_minute_legacy", async || {
        let tool = "iptables-legacy";
        let node = Node::start(Variant::Legacy, services()).await;
        let before = saved(tool);
        let line = before.iter().find(|line| line.contains("--to-destination 10.0.0.1:8080")).unwrap();
        let chain = line.split(' ').nth(1).unwrap().to_owned();
        let edited = line.replace("10.0.0.1:8080", "10.0.9.9:8080").replace(&format!("-A {chain}"), "");
        let of_chain = |line: &&String| line.starts_with(&format!("-A {chain} "));
        let place = shell(&format!("{tool}-save -t nat"));
        let place = place.lines().filter(|line| line.starts_with(&format!("-A {chain} ")));
        let number = place.take_while(|line| !line.contains("10.0.0.1:8080")).count() + 1;
        assert!(before.iter().filter(of_chain).count() >= number);
        shell(&format!("{tool} -w 5 -t nat -R {chain} {number} {edited}"));
        assert_ne!(saved(tool), before);
        let duration = healed(tool, &before, "edited").await;
        eprintln!("legacy, equal counts: {duration:?}");
        assert!(duration < Duration::from_secs(30), "{duration:?}");
        node.remove(Variant::Legacy).await;
    });
}

#[test]
fn deleted_chains_flushed_tables_and_foreign_restores_are_repaired() {
    in_namespace("deleted_chains_flushed_tables_and_foreign_restores_are_repaired", async || {
        for variant in [Variant::Nft, Variant::Legacy] {
            let tool = tool(variant);
            let node = Node::start(variant, services()).await;
            let before = saved(tool);
            let unhook =
                "printf '*nat\\n-F POSTROUTING\\n-F KUBE-POSTROUTING\\n-X KUBE-POSTROUTING\\nCOMMIT\\n'";
            let empty = "printf '*nat\\n:PREROUTING ACCEPT\\n:OUTPUT ACCEPT\\nCOMMIT\\n*filter\\n:INPUT ACCEPT\\nCOMMIT\\n'";
            for (what, damage) in [
                ("chain deleted", format!("{unhook} | {tool}-restore -w 5 --noflush")),
                ("table flushed", format!("{tool} -w 5 -t nat -F")),
                ("table flushed and emptied", format!("{tool} -w 5 -t nat -F; {tool} -w 5 -t nat -X")),
                ("canary deleted", format!("{tool} -w 5 -t mangle -X KUBE-PROXY-CANARY")),
                ("restore without --noflush", format!("{empty} | {tool}-restore -w 5")),
            ] {
                shell(&damage);
                let duration = healed(tool, &before, what).await;
                eprintln!("{variant}, {what}: {duration:?}");
                assert!(duration < PROMISE, "{variant}, {what}: {duration:?}");
            }
            node.remove(variant).await;
        }
    });
}

#[test]
fn what_others_do_to_their_own_chains_costs_nothing() {
    in_namespace("what_others_do_to_their_own_chains_costs_nothing", async || {
        let node = Node::start(Variant::Nft, services()).await;
        for number in 0..20 {
            shell(&format!(
                "iptables-nft -t nat -N DOCKER-{number}; iptables-nft -t nat -A DOCKER-{number} -j RETURN"
            ));
        }
        node.tell(Change::Slice(Arc::new(builders::slice(
            "plain",
            "plain",
            8080,
            &[("10.0.0.9", "node-a", true)],
        ))))
        .await;
        let before = Instant::now();
        while !saved("iptables-nft").iter().any(|line| line.contains("10.0.0.9:8080")) {
            assert!(before.elapsed() < Duration::from_secs(20));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let name = "fairlead_verification_duration_seconds_count{ip_family=\"IPv4\"}";
        assert_eq!(node.metric(name), 0, "neither their changes nor our own are read back");
        // A foreign rule in a chain that leads to ours is looked at, and stays.
        shell("iptables-nft -t nat -I PREROUTING -j DOCKER-1");
        let start = Instant::now();
        while node.metric(name) == 0 {
            assert!(start.elapsed() < PROMISE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(saved("iptables-nft").contains(&"-A PREROUTING -j DOCKER-1".to_owned()));
        node.stop().await;
    });
}

/// Ends its process when it goes.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn repair_waits_for_the_lock_and_comes_right_after_it_legacy() {
    in_namespace("repair_waits_for_the_lock_and_comes_right_after_it_legacy", async || {
        let tool = "iptables-legacy";
        let node = Node::start(Variant::Legacy, services()).await;
        let before = saved(tool);
        let lock = env::var("XTABLES_LOCKFILE").unwrap();
        let holder = Command::new("flock").args([&lock, "-c", "exec sleep 10"]).spawn().unwrap();
        let mut holder = Holder(holder);
        tokio::time::sleep(Duration::from_millis(300)).await;
        shell(&format!(
            "XTABLES_LOCKFILE={lock}.other {tool} -t nat -F KUBE-POSTROUTING; rm -f {lock}.other"
        ));
        tokio::task::spawn_blocking(move || holder.0.wait().unwrap()).await.unwrap();
        let duration = healed(tool, &before, "lock held").await;
        eprintln!("legacy, after the lock: {duration:?}");
        assert!(duration < PROMISE, "{duration:?}");
        assert!(node.metric("fairlead_sync_failures_total{ip_family=\"IPv4\",reason=\"busy\"}") >= 1);
        node.stop().await;
    });
}

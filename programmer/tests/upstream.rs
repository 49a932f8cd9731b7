//! What goes wrong in kube-proxy 1.36, and not here: against a real kernel, with programs that fail when they should; both
//! families, both variants of iptables. docs/differences.md names the test for each.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{sync::Arc, time::Duration};

use fairlead_objects::{Family, ServiceKey, builders};
use fairlead_programmer::{
    events::Subject,
    feed::Change,
    netfilter::Variant,
};
use serde_json::json;

mod namespace;
mod node;
mod programs;

use namespace::shell;
use node::{FAMILIES, Node, VARIANTS, program, until};
use programs::{Programs, with_programs};

/// Runs `body` for each family and variant, in one namespace.
fn everywhere(test: &str, body: impl AsyncFn(&Programs, Family, Variant)) {
    with_programs(test, async |programs| {
        shell("ip link set lo up");
        for family in FAMILIES {
            for variant in VARIANTS {
                body(programs, family, variant).await;
            }
        }
    });
}

fn endpoint(family: Family, number: u32) -> String {
    match family {
        Family::V4 => format!("10.0.1.{number}"),
        Family::V6 => format!("fd00:10::{number}"),
    }
}

/// An address and port, as rules write it.
fn target(family: Family, number: u32) -> String {
    let ip = endpoint(family, number);
    if family == Family::V4 { format!("{ip}:8080") } else { format!("[{ip}]:8080") }
}

fn service(family: Family, number: u32) -> Change {
    let ip = if family == Family::V4 { format!("10.96.1.{number}") } else { format!("fd00:96::{number}") };
    let spec = json!({"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [family.as_str()]});
    Change::Service(Arc::new(builders::service(&format!("svc-{number}"), spec)))
}

fn gone(number: u32) -> Change {
    Change::ServiceGone(ServiceKey::new("default", format!("svc-{number}")))
}

/// The only slice of a Service.
fn slice(family: Family, service: u32, numbers: &[u32]) -> Change {
    let name = format!("svc-{service}");
    let endpoints: Vec<_> = numbers.iter().map(|number| endpoint(family, *number)).collect();
    let endpoints: Vec<_> = endpoints.iter().map(|ip| (ip.as_str(), "node-a", true)).collect();
    let mut slice = builders::slice(&name, &name, 8080, &endpoints);
    slice.address_type = serde_json::from_value(family.as_str().into()).unwrap();
    Change::Slice(Arc::new(slice))
}

/// Services 1 to `count`, with the endpoint of the same number.
fn services(family: Family, count: u32) -> Vec<Change> {
    (1..=count).flat_map(|number| [service(family, number), slice(family, number, &[number])]).collect()
}

fn nat(family: Family, variant: Variant) -> String {
    shell(&format!("{}-save -t nat", program(family, variant)))
}

async fn until_programmed(family: Family, variant: Variant, number: u32) {
    let target = target(family, number);
    until(&format!("{target} is programmed"), || nat(family, variant).contains(&target)).await;
}

const FULL: &str = "fairlead_full_syncs_total";
const SHORT: Duration = Duration::from_millis(100);

#[test]
fn taken_lock_is_no_flush() {
    everywhere("taken_lock_is_no_flush", async |programs, family, variant| {
        let node = Node::begin(family, variant, SHORT, services(family, 3)).await;
        node.is_ready().await;
        let save = format!("{}-save", program(family, variant));
        programs.busy(true);
        let calls = programs.calls(&save);
        until("the canary was looked for, in vain", || programs.calls(&save) >= calls + 5).await;
        programs.busy(false);
        let calls = programs.calls(&save);
        until("the canary was found", || programs.calls(&save) >= calls + 2).await;
        for cause in ["flush", "failure", "drift"] {
            assert_eq!(node.metric_of(FULL, cause), 0, "{cause}");
        }
        node.remove(variant).await;
    });
}

/// kube-proxy waits for an event, or an hour.
#[test]
fn first_sync_that_fails_is_repeated() {
    everywhere("first_sync_that_fails_is_repeated", async |programs, family, variant| {
        programs.broken(true);
        let node = Node::begin(family, variant, Duration::from_secs(30), services(family, 3)).await;
        until("it fails", || node.failures() >= 3).await;
        programs.broken(false);
        node.is_ready().await;
        until_programmed(family, variant, 3).await;
        node.remove(variant).await;
    });
}

/// kube-proxy waits for an event, or an hour.
#[test]
fn sync_after_a_flush_that_fails_is_repeated() {
    everywhere("sync_after_a_flush_that_fails_is_repeated", async |programs, family, variant| {
        let node = Node::start(family, variant, services(family, 3)).await;
        programs.broken(true);
        let tool = program(family, variant);
        shell(&format!("for table in mangle nat filter; do {tool} -w 5 -t $table -F; {tool} -w 5 -t $table -X; done"));
        until("it fails", || node.failures() >= 3).await;
        programs.broken(false);
        until_programmed(family, variant, 3).await;
        node.remove(variant).await;
    });
}

/// In kube-proxy, the deletion of that chain fails, and with it every sync from then on.
#[test]
fn stale_chain_that_others_lead_to_holds_up_nothing() {
    everywhere("stale_chain_that_others_lead_to_holds_up_nothing", async |_, family, variant| {
        let tool = program(family, variant);
        let lead = |chain: &str| {
            shell(&format!("{tool} -w 5 -t nat -N TO-{chain}; {tool} -w 5 -t nat -A TO-{chain} -j {chain}"));
        };
        shell(&format!("{tool} -w 5 -t nat -N KUBE-SVC-STALE; {tool} -w 5 -t nat -A KUBE-SVC-STALE -j RETURN"));
        lead("KUBE-SVC-STALE");
        // With three endpoints, a Service has a chain.
        let three = [service(family, 1), slice(family, 1, &[1, 2, 3])];
        let node = Node::start(family, variant, services(family, 3).into_iter().chain(three)).await;
        let saved = nat(family, variant);
        assert!(saved.contains(":KUBE-SVC-STALE ") && !saved.contains("-A KUBE-SVC-STALE "), "emptied: {saved}");
        let chain = saved.lines().find(|line| line.contains(&target(family, 1))).unwrap();
        let chain = chain.split(' ').nth(1).unwrap();
        assert!(chain.starts_with("KUBE-SVC-"), "{chain}");
        lead(chain);

        node.tell(gone(1)).await;
        until("emptied", || !nat(family, variant).contains(&format!("-A {chain} "))).await;
        node.tell(slice(family, 2, &[7])).await;
        until_programmed(family, variant, 7).await;
        for chain in ["KUBE-SVC-STALE", chain] {
            shell(&format!("{tool} -w 5 -t nat -F TO-{chain}; {tool} -w 5 -t nat -X TO-{chain}"));
        }
        node.stop().await;
        // Nobody leads there any more.
        let state = [service(family, 2), slice(family, 2, &[7])];
        let node = Node::start(family, variant, state).await;
        let saved = nat(family, variant);
        assert!(!saved.contains("KUBE-SVC-STALE") && !saved.contains(chain), "{saved}");
        node.remove(variant).await;
    });
}

/// In kube-proxy, nothing is programmed any more until that Service is right. Here, neither now nor at a start.
#[test]
fn one_bad_rule_blocks_its_service_only() {
    everywhere("one_bad_rule_blocks_its_service_only", async |programs, family, variant| {
        let mut node = Node::start(family, variant, services(family, 20)).await;
        let bad = target(family, 99);
        programs.refuse(&bad);
        node.tell(slice(family, 7, &[99])).await;
        node.tell(slice(family, 8, &[88])).await;
        until_programmed(family, variant, 88).await;
        until_left_out(&mut node, 7).await;
        node.stop().await;

        let changes = services(family, 20).into_iter().chain([slice(family, 7, &[99])]);
        let mut node = Node::start(family, variant, changes).await;
        until_programmed(family, variant, 8).await;
        until_left_out(&mut node, 7).await;
        assert_eq!(node.metric("fairlead_quarantines_total"), 1);
        assert!(!nat(family, variant).contains(&bad));
        // It is tried again when it changes, and others do not wait for that.
        node.tell(slice(family, 9, &[89])).await;
        until_programmed(family, variant, 89).await;
        node.tell(slice(family, 7, &[77])).await;
        until_programmed(family, variant, 77).await;
        until("it is let in", || node.metric("fairlead_quarantined_services") == 0).await;
        node.remove(variant).await;
    });
}

/// Waits until that Service, and no other, is left out, and its Event says so.
async fn until_left_out(node: &mut Node, number: u32) {
    until("it is left out", || node.metric("fairlead_quarantined_services") == 1).await;
    let notice = node.notices.recv().await.unwrap();
    let service = Subject::Service(ServiceKey::new("default", format!("svc-{number}")));
    assert_eq!((notice.subject, notice.reason), (service, "FailedToProgram"));
}

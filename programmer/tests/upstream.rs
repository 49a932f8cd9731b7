//! What goes wrong in kube-proxy 1.36, and not here: against a real kernel, with programs that fail when they should; both
//! families, both variants of iptables. docs/differences.md names the test for each.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::time::Duration;

use fairlead_objects::Family;
use fairlead_programmer::netfilter::Variant;

mod namespace;
mod node;
mod programs;
mod services;

use namespace::shell;
use node::{FAMILIES, Node, VARIANTS, program, until};
use programs::{Programs, with_programs};
use services::{gone, nat, service, services, slice, target, until_programmed};

/// Runs `body` for each family and variant, in one namespace.
fn everywhere(test: &str, body: &impl AsyncFn(&Programs, Family, Variant)) {
    with_programs(test, async |programs| {
        shell("ip link set lo up");
        for family in FAMILIES {
            for variant in VARIANTS {
                body(programs, family, variant).await;
            }
        }
    });
}

const FULL: &str = "fairlead_full_syncs_total";
const SHORT: Duration = Duration::from_millis(100);

#[test]
fn taken_lock_is_no_flush() {
    everywhere("taken_lock_is_no_flush", &async |programs, family, variant| {
        let node = Node::begin(family, variant, SHORT, services(family, 3)).await;
        node.is_ready().await;
        let save = format!("{}-save", program(family, variant));
        if variant == Variant::Legacy {
            // What a sync wrote is looked at once more.
            let name = "fairlead_verification_duration_seconds_count";
            until("everything was looked at", || node.metric(name) > 0).await;
        }
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
    everywhere("first_sync_that_fails_is_repeated", &async |programs, family, variant| {
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
    everywhere("sync_after_a_flush_that_fails_is_repeated", &async |programs, family, variant| {
        let node = Node::start(family, variant, services(family, 3)).await;
        programs.broken(true);
        let tool = program(family, variant);
        shell(&format!(
            "for table in mangle nat filter; do {tool} -w 5 -t $table -F; {tool} -w 5 -t $table -X; done"
        ));
        until("it fails", || node.failures() >= 3).await;
        programs.broken(false);
        until_programmed(family, variant, 3).await;
        node.remove(variant).await;
    });
}

/// In kube-proxy, the deletion of that chain fails, and with it every sync from then on.
#[test]
fn stale_chain_that_others_lead_to_holds_up_nothing() {
    everywhere("stale_chain_that_others_lead_to_holds_up_nothing", &async |_, family, variant| {
        let tool = program(family, variant);
        let lead = |chain: &str| {
            shell(&format!("{tool} -w 5 -t nat -N TO-{chain}; {tool} -w 5 -t nat -A TO-{chain} -j {chain}"));
        };
        shell(&format!(
            "{tool} -w 5 -t nat -N KUBE-SVC-STALE; {tool} -w 5 -t nat -A KUBE-SVC-STALE -j RETURN"
        ));
        lead("KUBE-SVC-STALE");
        // With three endpoints, a Service has a chain.
        let three = [service(family, 1), slice(family, 1, &[1, 2, 3])];
        let node = Node::start(family, variant, services(family, 3).into_iter().chain(three)).await;
        let saved = nat(family, variant);
        assert!(
            saved.contains(":KUBE-SVC-STALE ") && !saved.contains("-A KUBE-SVC-STALE "),
            "emptied: {saved}"
        );
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

//! A Service whose rules the real programs refuse does not stop the others: in kube-proxy, nothing is programmed any more
//! until that Service is right. Both families, both variants of iptables, all at once.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use fairlead_objects::{Family, ServiceKey};
use fairlead_programmer::{events::Subject, netfilter::Variant};
use futures::future::join_all;

mod namespace;
mod node;
mod programs;
mod services;

use node::{FAMILIES, Node, VARIANTS, until};
use programs::with_programs;
use services::{nat, services, slice, target, until_programmed};

/// Waits until that Service, and no other, is left out, and its Event says so.
async fn until_left_out(node: &mut Node, number: u32) {
    until("it is left out", || node.metric("fairlead_quarantined_services") == 1).await;
    let notice = node.notices.recv().await.unwrap();
    let service = Subject::Service(ServiceKey::new("default", format!("svc-{number}")));
    assert_eq!((notice.subject, notice.reason), (service, "FailedToProgram"));
    assert_eq!(node.metric("fairlead_quarantines_total"), 1);
}

/// What no program accepts, though nothing is wrong with it that the compiler could know.
fn bad(family: Family) -> String {
    target(family, 99)
}

async fn leaves_out_one_service(family: Family, variant: Variant) {
    let mut node = Node::start(family, variant, services(family, 20)).await;
    // A change that makes a Service bad, with a change of another.
    node.tell(slice(family, 7, &[99])).await;
    node.tell(slice(family, 8, &[88])).await;
    until_programmed(family, variant, 88).await;
    until_left_out(&mut node, 7).await;
    node.stop().await;

    // A start with a bad Service.
    let changes = services(family, 20).into_iter().chain([slice(family, 7, &[99])]);
    let mut node = Node::start(family, variant, changes).await;
    for number in (1..=20).filter(|number| *number != 7) {
        until_programmed(family, variant, number).await;
    }
    until_left_out(&mut node, 7).await;
    assert!(!nat(family, variant).contains(&bad(family)));

    // It is tried again when it changes, and others do not wait for that.
    node.tell(slice(family, 9, &[89])).await;
    until_programmed(family, variant, 89).await;
    assert_eq!(node.metric("fairlead_quarantined_services"), 1);
    node.tell(slice(family, 7, &[77])).await;
    until_programmed(family, variant, 77).await;
    until("it is let in", || node.metric("fairlead_quarantined_services") == 0).await;
    node.remove(variant).await;
}

fn in_all_places(test: &str, names_line: bool) {
    with_programs(test, async |programs| {
        programs.refuse(&FAMILIES.map(bad), names_line);
        let places = FAMILIES.into_iter().flat_map(|family| VARIANTS.map(|variant| (family, variant)));
        join_all(places.map(|(family, variant)| leaves_out_one_service(family, variant))).await;
    });
}

#[test]
fn service_of_a_refused_line_is_left_out_and_comes_back_when_it_is_right() {
    in_all_places("service_of_a_refused_line_is_left_out_and_comes_back_when_it_is_right", true);
}

#[test]
fn service_that_no_line_names_is_found_by_halves() {
    in_all_places("service_that_no_line_names_is_found_by_halves", false);
}

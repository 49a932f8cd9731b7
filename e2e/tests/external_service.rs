//! `external-service.yaml`: no selector, Endpoints written by hand, servers outside the cluster.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use fairlead_e2e::{Bed, From, Outcome, PodSpec, Port, Protocol, bed::SETTLE, cases, suite, wait};
use serde_json::{Value, json};

const BOTH: [&str; 2] = ["11.11.11.11", "22.22.22.22"];
const OF_SERVICE: &str = "kubernetes.io/service-name=external-service";

fn main() -> ExitCode {
    suite::run_traced(
        |bed| {
            bed.start_programs()?;
            bed.add_external(Ipv4Addr::new(11, 11, 11, 11), &[80])?;
            bed.add_external(Ipv4Addr::new(22, 22, 22, 22), &[80])
        },
        cases![
            both_servers_answer_in_fair_shares_and_see_who_asks,
            the_mirrored_slice_says_where_it_comes_from,
            an_address_taken_from_the_endpoints_gets_nothing,
            deleted_endpoints_refuse_and_take_their_slices_along,
            a_selector_replaces_the_mirrored_slices,
            deleting_the_service_removes_slices_and_endpoints,
        ],
    )
}

fn up(bed: &mut Bed) -> Result<SocketAddr> {
    bed.apply_example("external-service.yaml")?;
    bed.add_pod(PodSpec::new("client", "client").on(2))?;
    let target = SocketAddr::new(bed.cluster_ip("external-service")?, 80);
    for from in [From::Pod("client"), From::Node(1)] {
        bed.await_servers(from, Protocol::Tcp, target, &BOTH)?;
    }
    Ok(target)
}

fn slices(bed: &Bed) -> Result<Vec<Value>> {
    bed.kubernetes().list("EndpointSlice", "default", OF_SERVICE)
}

fn both_servers_answer_in_fair_shares_and_see_who_asks(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    let tally = bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, target, 400)?;
    tally.check_fair(&BOTH)?;
    assert_eq!(tally.clients(), BTreeSet::from([bed.pod("client")?.addresses.v4.into()]));
    let tally = bed.client(From::Node(1))?.ask_many(Protocol::Tcp, target, 400)?;
    tally.check_fair(&BOTH)?;
    assert_eq!(tally.clients(), BTreeSet::from([bed.node(1)?.addresses.v4.into()]));
    Ok(())
}

fn the_mirrored_slice_says_where_it_comes_from(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let slices = slices(bed)?;
    assert_eq!(slices.len(), 1, "{slices:?}");
    let labels = &slices[0]["metadata"]["labels"];
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "endpointslicemirroring-controller.k8s.io");
    assert_eq!(slices[0]["metadata"]["ownerReferences"][0]["kind"], "Endpoints");
    Ok(())
}

fn an_address_taken_from_the_endpoints_gets_nothing(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    let one = json!({"subsets": [{"addresses": [{"ip": "22.22.22.22"}], "ports": [{"port": 80}]}]});
    bed.kubernetes().merge("Endpoints", "default", "external-service", one)?;
    for from in [From::Pod("client"), From::Node(1)] {
        bed.await_servers(from, Protocol::Tcp, target, &["22.22.22.22"])?;
    }
    Ok(())
}

fn deleted_endpoints_refuse_and_take_their_slices_along(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    bed.kubernetes().delete("Endpoints", "default", "external-service", 0)?;
    for from in [From::Pod("client"), From::Node(1)] {
        bed.await_outcome(from, Protocol::Tcp, target, &Outcome::Refused)?;
    }
    assert_eq!(slices(bed)?, Vec::<Value>::new());
    Ok(())
}

fn a_selector_replaces_the_mirrored_slices(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    bed.add_pod(PodSpec::new("inside", "inside").port(Port::tcp(80)))?;
    let select = json!({"spec": {"selector": {"app": "inside"}}});
    bed.kubernetes().merge("Service", "default", "external-service", select)?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &["inside"])?;
    wait::until_ok("the mirrored slices to go", SETTLE, || {
        let managers: Vec<Value> = slices(bed)?
            .iter()
            .map(|slice| slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"].clone())
            .collect();
        ensure!(managers == ["endpointslice-controller.k8s.io"], "{managers:?}");
        Ok(())
    })?;
    bed.await_endpoints("external-service", &["inside"]).map(drop)
}

fn deleting_the_service_removes_slices_and_endpoints(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    bed.kubernetes().delete("Service", "default", "external-service", 0)?;
    wait::until_ok("slices and Endpoints of external-service to go", SETTLE, || {
        let left = [bed.names("Endpoints")?, bed.names("EndpointSlice")?].concat();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    bed.await_outcome(From::Node(1), Protocol::Tcp, target, &Outcome::TimedOut)?;
    for node in 1..=2 {
        wait::until_ok("the rules to go", SETTLE, || {
            let rules =
                [bed.rules_about(node, "11.11.11.11")?, bed.rules_about(node, "22.22.22.22")?].concat();
            ensure!(rules.is_empty(), "{rules:?}");
            Ok(())
        })?;
    }
    Ok(())
}

//! `namespaces.yaml`, `headless.yaml`, `external-name.yaml`, the API server's own Service, and a Service whose Pods go.

use std::{collections::BTreeSet, net::SocketAddr, process::ExitCode};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed, From, Outcome, PodSpec, Protocol,
    bed::SETTLE,
    cases, suite,
    wait::{self, Look},
};
use serde_json::Value;

const BOTH: [&str; 2] = ["my-app-1", "my-app-2"];

fn main() -> ExitCode {
    suite::run_traced(
        Bed::start_programs,
        cases![
            services_of_one_name_in_two_namespaces_lead_to_their_own_pods,
            the_api_server_is_reached_over_tls_through_its_own_service,
            a_headless_service_has_slices_and_no_rules,
            an_external_name_has_neither_endpoints_nor_slices_nor_rules,
            a_service_stays_and_refuses_when_its_pods_go,
        ],
    )
}

fn services_of_one_name_in_two_namespaces_lead_to_their_own_pods(bed: &mut Bed) -> Result<()> {
    bed.apply_example("namespaces.yaml")?;
    bed.add_pod(PodSpec::new("client", "client").namespace("green"))?;
    let [blue, green] = ["blue/shop", "green/shop"].map(|shop| bed.cluster_ip(shop));
    let (blue, green) = (SocketAddr::new(blue?, 80), SocketAddr::new(green?, 80));
    assert_ne!(blue, green);
    for (target, pod) in [(blue, "blue/shop-1"), (green, "green/shop-1")] {
        for from in [From::Pod("green/client"), From::Node(2)] {
            bed.await_servers(from, Protocol::Tcp, target, &[pod])?;
            bed.client(from)?.ask_many(Protocol::Tcp, target, 50)?.check_fair(&[pod])?;
        }
    }
    // One goes, the other does not notice.
    bed.kubernetes().delete("Service", "blue", "shop", 0)?;
    bed.await_outcome(From::Node(2), Protocol::Tcp, blue, &Outcome::TimedOut)?;
    bed.client(From::Node(2))?.ask_many(Protocol::Tcp, green, 50)?.check_fair(&["green/shop-1"])
}

fn the_api_server_is_reached_over_tls_through_its_own_service(bed: &mut Bed) -> Result<()> {
    bed.add_pod(PodSpec::new("client", "client"))?;
    // Its certificate is for this address; the client trusts the bed's authority only.
    let target = SocketAddr::new(bed.cluster_ip("kubernetes")?, 443);
    let server = format!("--server=https://{target}");
    for from in [From::Pod("client"), From::Node(1), From::Node(2)] {
        // What goes over the connection says nothing about its way: conntrack does.
        let client = bed.client(from)?;
        let ask = |what: &[&str]| {
            client.connecting(target, || bed.kubectl_from(from, &[&[server.as_str(), "get"], what].concat()))
        };
        wait::until("the API server to answer at its cluster IP", SETTLE, || {
            Ok(match ask(&["--raw=/version"])? {
                Ok(version) if version.contains("gitVersion") => Look::Done(()),
                Ok(other) => Look::NotYet(other),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })?;
        assert_eq!(ask(&["nodes", "--output=name"])??, "node/node1\nnode/node2\n");
    }
    Ok(())
}

fn slices(bed: &Bed, service: &str) -> Result<Vec<Value>> {
    bed.kubernetes().list("EndpointSlice", "default", &format!("kubernetes.io/service-name={service}"))
}

/// When a Service that was made later works, the programs have seen what was made before.
fn await_later(bed: &mut Bed) -> Result<()> {
    bed.apply_example("my-service.yaml")?;
    let later = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    for node in 1..=2 {
        bed.await_servers(From::Node(node), Protocol::Tcp, later, &BOTH)?;
    }
    bed.await_endpoints("my-service", &BOTH).map(drop)
}

fn check_no_rules(bed: &Bed, service: &str) -> Result<()> {
    for node in 1..=2 {
        let rules = bed.rules_about(node, service)?;
        ensure!(rules.is_empty(), "rules about {service} on node {node}: {rules:?}");
    }
    Ok(())
}

fn a_headless_service_has_slices_and_no_rules(bed: &mut Bed) -> Result<()> {
    bed.apply_example("headless.yaml")?;
    await_later(bed)?;
    wait::until_ok("a slice with both Pods", SETTLE, || {
        let slices = slices(bed, "my-service-headless")?;
        let endpoints = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
        let names: BTreeSet<&str> = endpoints.filter_map(|one| one["targetRef"]["name"].as_str()).collect();
        ensure!(names == BTreeSet::from(BOTH), "{slices:?}");
        let headless = &slices[0]["metadata"]["labels"]["service.kubernetes.io/headless"];
        ensure!(headless == "", "the label of headless slices is {headless}");
        Ok(())
    })?;
    check_no_rules(bed, "my-service-headless")
}

fn an_external_name_has_neither_endpoints_nor_slices_nor_rules(bed: &mut Bed) -> Result<()> {
    bed.apply_example("external-name.yaml")?;
    await_later(bed)?;
    assert_eq!(slices(bed, "my-alias")?, Vec::<Value>::new());
    assert_eq!(bed.names("Endpoints")?, ["my-service"]);
    check_no_rules(bed, "my-alias")
}

fn a_service_stays_and_refuses_when_its_pods_go(bed: &mut Bed) -> Result<()> {
    await_later(bed)?;
    bed.add_pod(PodSpec::new("client", "client"))?;
    let target = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    for pod in BOTH {
        bed.delete_pod(pod)?;
    }
    for from in [From::Pod("client"), From::Node(1), From::Node(2)] {
        bed.await_outcome(from, Protocol::Tcp, target, &Outcome::Refused)?;
        bed.client(from)?.ask_many(Protocol::Tcp, target, 10)?.check_all(&Outcome::Refused)?;
    }
    wait::until_ok("Endpoints and slice without addresses", SETTLE, || {
        let endpoints: Option<Value> = bed.kubernetes().get("Endpoints", "default", "my-service")?;
        let endpoints = endpoints.context("no Endpoints")?;
        ensure!(endpoints["subsets"].as_array().is_none_or(Vec::is_empty), "{endpoints}");
        let slices = slices(bed, "my-service")?;
        let empty = |slice: &Value| slice["endpoints"].as_array().is_none_or(Vec::is_empty);
        ensure!(slices.len() == 1 && slices.iter().all(empty), "{slices:?}");
        Ok(())
    })
}

//! Objects that the API server takes although something is odd about them: what becomes of them, and who is told.

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{Bed, bed::SETTLE, wait};
use serde_json::{Value, json};

use crate::fixtures::{
    addresses, await_addresses, await_endpoints, await_event, await_idle, metric, pod, service, slices,
    start_ours, text,
};

/// Most addresses that Endpoints hold.
const CAPACITY: usize = 1000;

pub(crate) fn pods_without_a_usable_address_keep_nobody_else_out(bed: &mut Bed) -> Result<()> {
    start_ours(bed, &[])?;
    let kubernetes = bed.kubernetes();
    kubernetes.apply(&service("web", json!({})))?;
    let none = json!({"status": {"phase": "Pending", "podIP": null, "podIPs": null}});
    for pod in [
        pod("web-1", "web", "10.0.0.1", json!({})),
        pod("web-2", "web", "10.0.0.2", none),
        pod("loopback", "web", "127.0.0.1", json!({})),
        pod("link-local", "web", "169.254.0.1", json!({})),
        pod("other-family", "web", "fd00::1", json!({})),
    ] {
        kubernetes.apply(&pod)?;
    }
    await_addresses(bed, "web", &["10.0.0.1"])?;
    await_endpoints(bed, "web", &["10.0.0.1"])?;
    await_idle(bed)?;
    for reason in ["PodWithoutAddress", "SpecialAddress", "WrongFamily"] {
        assert!(metric(bed, "fairlead_notes_total", &[("reason", reason)])? > 0, "{reason}");
    }
    let address = json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]});
    kubernetes.merge_status("Pod", "default", "web-2", address)?;
    await_addresses(bed, "web", &["10.0.0.1", "10.0.0.2"])?;
    await_endpoints(bed, "web", &["10.0.0.1", "10.0.0.2"])?;
    bed.stop_controller()
}

fn by_hand(name: &str, subsets: &Value) -> [Value; 2] {
    let endpoints =
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name}, "subsets": subsets});
    [service(name, json!({"spec": {"selector": null}})), endpoints]
}

pub(crate) fn hand_made_endpoints_are_mirrored_as_far_as_slices_can_hold_them(bed: &mut Bed) -> Result<()> {
    start_ours(bed, &[])?;
    // A slice cannot hold two ports of one name; Endpoints can.
    let ports =
        json!([{"name": "http", "port": 80}, {"name": "http", "port": 81}, {"name": "dns", "port": 53}]);
    let doubled = json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": ports},
                         {"addresses": [{"ip": "10.0.0.2"}], "ports": [{"name": "other", "port": 82}]}]);
    let many: Vec<Value> =
        (0..=CAPACITY).map(|i| json!({"ip": format!("10.1.{}.{}", i / 250, i % 250 + 1)})).collect();
    let many = json!([{"addresses": many, "ports": [{"name": "http", "port": 80}]}]);
    for object in by_hand("doubled", &doubled).into_iter().chain(by_hand("many", &many)) {
        bed.kubernetes().apply(&object)?;
    }
    let mirrored = await_addresses(bed, "doubled", &["10.0.0.1", "10.0.0.1", "10.0.0.2"])?;
    let ports = mirrored.iter().flat_map(|slice| slice["ports"].as_array().into_iter().flatten());
    let mut numbers: Vec<u64> = ports.filter_map(|port| port["port"].as_u64()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [53, 80, 81, 82]);
    let said = await_event(bed, "TooManyAddressesToMirror", "Endpoints", "many")?;
    assert!(said.contains("1 addresses were skipped"), "{said}");
    // It is said while it is written.
    wait::until_ok("as many addresses as fit", SETTLE, || {
        let mirrored = addresses(&slices(bed, "many")?).len();
        ensure!(mirrored == CAPACITY, "{mirrored}");
        Ok(())
    })?;
    await_idle(bed)?;
    bed.stop_controller()
}

pub(crate) fn hand_edits_of_slices_are_repaired(bed: &mut Bed) -> Result<()> {
    start_ours(bed, &[])?;
    bed.kubernetes().apply(&service("web", json!({})))?;
    bed.kubernetes().apply(&pod("web-1", "web", "10.0.0.1", json!({})))?;
    let bogus =
        json!([{"addresses": ["192.0.2.1"]}, {"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]);
    for edit in [
        json!({"endpoints": bogus}),
        json!({"ports": [{"name": "http", "port": 1, "protocol": "UDP"}]}),
        json!({"metadata": {"ownerReferences": null}}),
        json!({"metadata": {"labels": {"service.kubernetes.io/headless": "", "more": "x"}}}),
    ] {
        let slices = await_addresses(bed, "web", &["10.0.0.1"])?;
        bed.kubernetes().merge(
            "EndpointSlice",
            "default",
            &text(&slices[0], "/metadata/name"),
            edit.clone(),
        )?;
        wait::until_ok(&format!("{edit} to be repaired"), SETTLE, || right(bed))?;
    }
    await_idle(bed)?;
    // Somebody does not leave it alone: the next repair waits longer.
    assert_eq!(metric(bed, "fairlead_contested_services", &[("part", "slices")])?, 1);
    assert_eq!(metric(bed, "fairlead_contested_services", &[])?, 1);
    bed.stop_controller()
}

/// Whether the Service `web` has the one slice that it should have.
fn right(bed: &Bed) -> Result<()> {
    let slices = slices(bed, "web")?;
    let [slice] = &slices[..] else { anyhow::bail!("{} slices", slices.len()) };
    ensure!(addresses(&slices) == ["10.0.0.1"], "{slice}");
    ensure!(slice["endpoints"][0]["conditions"]["serving"] == true, "{slice}");
    ensure!(slice["ports"] == json!([{"name": "http", "port": 8080, "protocol": "TCP"}]), "{slice}");
    ensure!(slice["metadata"]["labels"].as_object().is_some_and(|labels| labels.len() == 2), "{slice}");
    let service: Value = bed.kubernetes().get("Service", "default", "web")?.context("no Service")?;
    ensure!(owner(slice) == text(&service, "/metadata/uid"), "{slice}");
    Ok(())
}

fn owner(slice: &Value) -> String {
    text(slice, "/metadata/ownerReferences/0/uid")
}

/// kube-controller-manager may take a slice of the Service before for one that it still waits to see, for ever.
pub(crate) fn service_recreated_under_its_name_gets_slices_of_its_own(bed: &mut Bed) -> Result<()> {
    start_ours(bed, &[])?;
    bed.kubernetes().apply(&pod("web-1", "web", "10.0.0.1", json!({})))?;
    for _ in 0..10 {
        bed.kubernetes().apply(&service("web", json!({})))?;
        bed.kubernetes().delete("Service", "default", "web", 0)?;
    }
    let service = bed.kubernetes().apply(&service("web", json!({})))?;
    wait::until_ok("one slice of the last Service", SETTLE, || {
        let slices = await_addresses(bed, "web", &["10.0.0.1"])?;
        ensure!(owner(&slices[0]) == text(&service, "/metadata/uid"), "{slices:?}");
        Ok(())
    })?;
    await_endpoints(bed, "web", &["10.0.0.1"])?;
    await_idle(bed)?;
    bed.stop_controller()
}

/// A Service whose 300 ports each lead to another four of 12 Pods: Endpoints need a subset for each, and 1200 addresses. Cut
/// in proportion, the last subsets get none, and without addresses the API server does not take a subset.
pub(crate) fn crowd(bed: &Bed, name: &str) -> Result<()> {
    const PODS: usize = 12;
    const PORTS: usize = 300;
    let chosen = |set: &u32| set.count_ones() == 4;
    let sets: Vec<u32> = (0..1 << PODS).filter(chosen).take(PORTS).collect();
    let ports: Vec<Value> = (0..PORTS)
        .map(
            |port| json!({"name": format!("p{port}"), "port": 1000 + port, "targetPort": format!("p{port}")}),
        )
        .collect();
    bed.kubernetes().apply(&service(name, json!({"spec": {"ports": ports}})))?;
    let pods = (0..PODS).map(|number| {
        let serves = sets.iter().enumerate().filter(|(_, set)| **set >> number & 1 == 1);
        let ports: Vec<Value> = serves
            .map(|(port, _)| json!({"name": format!("p{port}"), "containerPort": 2000 + port}))
            .collect();
        let containers = json!({"spec": {"containers": [{"name": "c", "image": "none", "ports": ports}]}});
        pod(&format!("{name}-{number}"), name, &format!("10.2.0.{}", number + 1), containers)
    });
    bed.kubernetes().apply_all(&pods.collect::<Vec<_>>())?;
    wait::until_ok("truncated Endpoints", SETTLE, || {
        let endpoints: Value = bed.kubernetes().get("Endpoints", "default", name)?.context("not there")?;
        let mark = &endpoints["metadata"]["annotations"]["endpoints.kubernetes.io/over-capacity"];
        let subsets = endpoints["subsets"].as_array().context("no subsets")?;
        let count = |subset: &Value| subset["addresses"].as_array().map_or(0, Vec::len);
        let total: usize = subsets.iter().map(count).sum();
        ensure!(mark == "truncated" && total == CAPACITY, "{total} addresses, {mark}");
        Ok(())
    })
}

pub(crate) fn truncated_endpoints_with_many_ports_are_accepted_and_written_once(bed: &mut Bed) -> Result<()> {
    start_ours(bed, &[])?;
    crowd(bed, "crowd")?;
    await_idle(bed)?;
    assert_eq!(slices(bed, "crowd")?.len(), 12, "each Pod has a port set of its own");
    assert!(metric(bed, "fairlead_notes_total", &[("reason", "OverCapacity")])? > 0);
    let before = crate::fixtures::writes(bed)?;
    let syncs = metric(bed, "fairlead_syncs_total", &[])?;
    let touch = json!({"metadata": {"annotations": {"service.kubernetes.io/touched": "1"}}});
    bed.kubernetes().merge("Service", "default", "crowd", touch)?;
    wait::until_ok("another look", SETTLE, || {
        ensure!(metric(bed, "fairlead_syncs_total", &[])? > syncs, "none yet");
        Ok(())
    })?;
    await_idle(bed)?;
    assert_eq!(crate::fixtures::writes(bed)?, before);
    bed.stop_controller()
}

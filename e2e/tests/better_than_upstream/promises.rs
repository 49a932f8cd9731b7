//! Known defects of kube-controller-manager that are not ours.

use anyhow::{Result, ensure};
use fairlead_e2e::{Bed, bed::SETTLE, wait};
use serde_json::{Value, json};

use crate::{
    coexistence::ECHO,
    fixtures::{
        addresses, await_addresses, await_endpoints, await_event, await_idle, metric, node, pod, service,
        slices, start_ours, text, versions, writes,
    },
    odd_objects::crowd,
};

/// A Service with one Pod, in its slices.
fn serving(bed: &Bed, name: &str, ip: &str) -> Result<Vec<Value>> {
    bed.kubernetes().apply(&service(name, json!({})))?;
    bed.kubernetes().apply(&pod(&format!("{name}-1"), name, ip, json!({})))?;
    await_addresses(bed, name, &[ip])
}

/// None of the changes here is an event to kube-controller-manager but the first, for which it waits before it tries again.
pub(crate) fn changes_of_nodes_and_phases_show_at_once(bed: &mut Bed) -> Result<()> {
    start_ours(bed, &[])?;
    let kubernetes = bed.kubernetes();
    kubernetes.apply(&service("web", json!({})))?;
    kubernetes.apply(&pod("web-1", "web", "10.0.0.1", json!({"spec": {"nodeName": "late"}})))?;
    let said = await_event(bed, "FailedToUpdateEndpointSlices", "Service", "web")?;
    let sentence = "skipping Pod web-1 for Service default/web: Node late Not Found";
    assert!(said.contains(sentence), "{said}");
    await_addresses(bed, "web", &[])?;
    kubernetes.apply(&node("late", "z1"))?;
    let slices = await_addresses(bed, "web", &["10.0.0.1"])?;
    assert_eq!(slices[0]["endpoints"][0]["zone"], "z1");
    let waiting = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    kubernetes.apply(&pod("web-2", "web", "10.0.0.2", waiting))?;
    await_addresses(bed, "web", &["10.0.0.1", "10.0.0.2?"])?;
    // What is seen from here on is not the second look that a controller may take at what it wrote.
    wait::watch(ECHO);

    kubernetes.apply(&node("late", "z2"))?;
    wait::until_ok("the other zone", SETTLE, || {
        let slices = await_addresses(bed, "web", &["10.0.0.1", "10.0.0.2?"])?;
        let zones = slices[0]["endpoints"].as_array().into_iter().flatten().map(|endpoint| &endpoint["zone"]);
        ensure!(zones.clone().any(|zone| zone == "z2"), "{slices:?}");
        Ok(())
    })?;
    wait::watch(ECHO);
    kubernetes.merge_status("Pod", "default", "web-2", json!({"phase": "Failed"}))?;
    await_addresses(bed, "web", &["10.0.0.1"])?;
    kubernetes.delete("Node", "", "late", 0)?;
    await_addresses(bed, "web", &[])?;
    bed.stop_controller()
}

/// Each of these is the end of all updates in kube-controller-manager, until the Service is deleted or it is restarted.
pub(crate) fn nothing_that_happens_to_a_slice_wedges_its_service(bed: &mut Bed) -> Result<()> {
    start_ours(bed, &[])?;
    let kubernetes = bed.kubernetes();
    let names = ["moved", "given-away", "held", "deleted"];
    let mut found = Vec::new();
    for (name, number) in names.into_iter().zip(1..) {
        found.push(text(&serving(bed, name, &format!("10.0.{number}.1"))?[0], "/metadata/name"));
    }
    let label = |name: &str, value: &str| json!({"metadata": {"labels": {name: value}}});
    let merge = |slice: &str, patch| kubernetes.merge("EndpointSlice", "default", slice, patch);
    merge(&found[0], label("kubernetes.io/service-name", "held"))?;
    merge(&found[1], label("endpointslice.kubernetes.io/managed-by", "somebody-else"))?;
    merge(&found[2], json!({"metadata": {"finalizers": ["example.com/hold"]}}))?;
    kubernetes.delete("EndpointSlice", "default", &found[2], 0)?;
    kubernetes.delete("EndpointSlice", "default", &found[3], 0)?;
    for (name, number) in names.into_iter().zip(1..) {
        let (first, second) = (format!("10.0.{number}.1"), format!("10.0.{number}.2"));
        await_addresses(bed, name, &[&first])?;
        kubernetes.apply(&pod(&format!("{name}-2"), name, &second, json!({})))?;
        await_addresses(bed, name, &[&first, &second])?;
    }
    let given: Option<Value> = kubernetes.get("EndpointSlice", "default", &found[1])?;
    assert_eq!(
        addresses(&given.into_iter().collect::<Vec<_>>()),
        ["10.0.2.1"],
        "another's slice was changed"
    );
    merge(&found[2], json!({"metadata": {"finalizers": null}}))?;
    await_idle(bed)?;
    bed.stop_controller()
}

/// kube-controller-manager deletes all four Endpoints but the election record when it starts.
pub(crate) fn orphans_go_and_what_was_made_by_hand_stays(bed: &mut Bed) -> Result<()> {
    drop(bed.stop_controller());
    let ours = "endpoint-controller";
    let slice = |name: &str, manager: &str| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "gone",
                                                  "endpointslice.kubernetes.io/managed-by": manager}}})
    };
    let endpoints = |name: &str, labels: Value, annotations: Value| {
        json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
            "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]})
    };
    let leader = json!({"control-plane.alpha.kubernetes.io/leader": "{}"});
    let managed = json!({"endpoints.kubernetes.io/managed-by": ours});
    for object in [
        endpoints("by-hand", json!({}), json!({})),
        endpoints("by-another", json!({"endpoints.kubernetes.io/managed-by": "somebody-else"}), json!({})),
        endpoints("election", managed.clone(), leader),
        endpoints("orphan", managed, json!({})),
        slice("by-another", "somebody-else"),
        slice("orphan", "endpointslice-controller.k8s.io"),
        slice("mirrored", "endpointslicemirroring-controller.k8s.io"),
    ] {
        bed.kubernetes().apply(&object)?;
    }
    let kept =
        ["Endpoints by-another", "Endpoints by-hand", "Endpoints election", "EndpointSlice by-another"];
    let mut before = versions(bed)?;
    before.retain(|name, _| kept.contains(&name.as_str()) || name.ends_with(" kubernetes"));
    start_ours(bed, &[])?;
    wait::until_ok("the orphans to go", SETTLE, || {
        let now = versions(bed)?;
        ensure!(now == before, "{now:?}");
        Ok(())
    })?;
    await_idle(bed)?;
    assert_eq!(versions(bed)?, before);
    bed.stop_controller()
}

/// Among them what kube-controller-manager writes again with every sync: truncated Endpoints, and Endpoints of a Service that
/// has labels of its own by the names of those that a controller sets.
pub(crate) fn start_syncs_each_service_once_and_writes_nothing_that_is_right(bed: &mut Bed) -> Result<()> {
    start_ours(bed, &[])?;
    let special = json!({"service.kubernetes.io/headless": "x", "endpoints.kubernetes.io/managed-by": "x"});
    bed.kubernetes().apply(&service("special", json!({"metadata": {"labels": special}})))?;
    bed.kubernetes().apply(&service("portless", json!({"spec": {"clusterIP": "None", "ports": null}})))?;
    for name in ["special", "portless"] {
        bed.kubernetes().apply(&pod(&format!("{name}-1"), name, "10.0.0.1", json!({})))?;
        await_endpoints(bed, name, &["10.0.0.1"])?;
    }
    for number in 1..=10 {
        serving(bed, &format!("web-{number}"), &format!("10.0.1.{number}"))?;
    }
    crowd(bed, "crowd")?;
    await_idle(bed)?;
    // These, and the API server's own.
    let services = 13 + 1;
    let (before, written) = (versions(bed)?, writes(bed)?);
    start_ours(bed, &[])?;
    let syncs = || {
        ["endpoints", "slices", "mirror"].map(|part| metric(bed, "fairlead_syncs_total", &[("part", part)]))
    };
    wait::until_ok("all Services to be looked at", SETTLE, || {
        for syncs in syncs() {
            let syncs = syncs?;
            ensure!(syncs >= services, "{syncs} of {services}");
        }
        Ok(())
    })?;
    // Longer than changes by others' hands wait: an echo of the start would come then.
    wait::watch(ECHO);
    for syncs in syncs() {
        assert_eq!(syncs?, services);
    }
    assert_eq!(versions(bed)?, before);
    assert_eq!(writes(bed)?, written, "something was written that was right already");
    bed.stop_controller()
}

pub(crate) fn any_subset_of_the_parts_runs(bed: &mut Bed) -> Result<()> {
    drop(bed.stop_controller());
    let parts = [
        ("endpoints-controller", "Endpoints"),
        ("endpointslice-controller", "EndpointSlice"),
        ("endpointslice-mirroring-controller", "EndpointSlice"),
    ];
    for (number, (part, _)) in parts.into_iter().enumerate() {
        let (selecting, plain) = (format!("selecting-{number}"), format!("plain-{number}"));
        let ip = format!("10.0.0.{}", number + 1);
        bed.kubernetes().apply(&service(&selecting, json!({})))?;
        bed.kubernetes().apply(&pod(&format!("pod-{number}"), &selecting, &ip, json!({})))?;
        bed.kubernetes().apply(&service(&plain, json!({"spec": {"selector": null}})))?;
        let by_hand = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": plain},
            "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "http", "port": 8080}]}]});
        bed.kubernetes().apply(&by_hand)?;
        start_ours(bed, &[&format!("--controllers={part}")])?;
        match number {
            0 => await_endpoints(bed, &selecting, &[&ip])?,
            1 => drop(await_addresses(bed, &selecting, &[&ip])?),
            _ => drop(await_addresses(bed, &plain, &[&ip])?),
        }
        await_idle(bed)?;
        let endpoints: Option<Value> = bed.kubernetes().get("Endpoints", "default", &selecting)?;
        let made =
            [endpoints.is_some(), !slices(bed, &selecting)?.is_empty(), !slices(bed, &plain)?.is_empty()];
        assert_eq!(made, std::array::from_fn(|part| part == number), "{part}");
        bed.stop_controller()?;
        bed.reset()?;
    }
    Ok(())
}

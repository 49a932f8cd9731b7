//! Objects, and looks at what became of them.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{Bed, From, bed::SETTLE, probe, wait};
use fairlead_objects::{builders::merge, labels};
use serde_json::{Value, json};

/// A Node in a zone.
pub(crate) fn node(name: &str, zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"allocatable": {"cpu": "2"}, "capacity": {"cpu": "2"},
                   "conditions": [{"type": "Ready", "status": "True", "reason": "Test"}]}})
}

/// A Service of both families that selects Pods labelled with its own name.
pub(crate) fn service(name: &str, patch: Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ipFamilyPolicy": "SingleStack",
                 "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    merge(&mut object, patch);
    object
}

/// A ready Pod of the Service `app`.
pub(crate) fn pod(name: &str, app: &str, ip: &str, patch: Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "none"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                   "conditions": [{"type": "Ready", "status": "True"}]}});
    merge(&mut object, patch);
    object
}

/// Starts our controller anew, without leader election.
pub(crate) fn start_ours(bed: &mut Bed, flags: &[&str]) -> Result<()> {
    drop(bed.stop_controller());
    let flags: Vec<&str> = ["--leader-elect=false"].iter().chain(flags).copied().collect();
    bed.start_controller(&flags)
}

/// The slices of a Service that one of the controllers manages and nobody is deleting, by name.
pub(crate) fn slices(bed: &Bed, service: &str) -> Result<Vec<Value>> {
    let managers = format!("{},{}", labels::SLICE_CONTROLLER, labels::MIRRORING_CONTROLLER);
    let ours = format!("{}={service},{} in ({managers})", labels::SERVICE_NAME, labels::SLICE_MANAGED_BY);
    let mut slices: Vec<Value> = bed.kubernetes().list("EndpointSlice", "default", &ours)?;
    slices.retain(|slice| slice["metadata"]["deletionTimestamp"].is_null());
    slices.sort_by_key(|slice| text(slice, "/metadata/name"));
    Ok(slices)
}

/// The addresses in slices, sorted; those that are not ready are followed by a question mark.
pub(crate) fn addresses(slices: &[Value]) -> Vec<String> {
    let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let mut addresses: Vec<String> = endpoints
        .map(|endpoint| {
            let mark = if endpoint["conditions"]["ready"] == true { "" } else { "?" };
            text(endpoint, "/addresses/0") + mark
        })
        .collect();
    addresses.sort();
    addresses
}

/// Waits until a Service's slices hold exactly these addresses, sorted; returns the slices.
pub(crate) fn await_addresses(bed: &Bed, service: &str, expected: &[&str]) -> Result<Vec<Value>> {
    wait::until_ok(&format!("{expected:?} in the slices of {service}"), SETTLE, || {
        let slices = slices(bed, service)?;
        let found = addresses(&slices);
        ensure!(found == expected, "{found:?} in {slices:?}");
        Ok(slices)
    })
}

/// Waits until a Service's Endpoints list exactly these ready addresses, in this order.
pub(crate) fn await_endpoints(bed: &Bed, service: &str, expected: &[&str]) -> Result<()> {
    wait::until_ok(&format!("{expected:?} in the Endpoints {service}"), SETTLE, || {
        let endpoints: Option<Value> = bed.kubernetes().get("Endpoints", "default", service)?;
        let endpoints = endpoints.context("not there")?;
        let subsets = endpoints["subsets"].as_array().cloned().unwrap_or_default();
        let listed = subsets.iter().flat_map(|subset| subset["addresses"].as_array().into_iter().flatten());
        let found: Vec<String> = listed.map(|address| text(address, "/ip")).collect();
        ensure!(found == expected, "{found:?}");
        Ok(())
    })
}

/// Versions of everything that the controllers write in the namespace `default`.
pub(crate) fn versions(bed: &Bed) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for kind in ["Endpoints", "EndpointSlice"] {
        for object in bed.kubernetes().list::<Value>(kind, "default", "")? {
            let name = text(&object, "/metadata/name");
            found.insert(format!("{kind} {name}"), text(&object, "/metadata/resourceVersion"));
        }
    }
    Ok(found)
}

/// How many requests to write Endpoints and slices the API server has had, those that changed nothing included.
pub(crate) fn writes(bed: &Bed) -> Result<u64> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let page = bed.kubernetes().run(async move |client| Ok(client.request_text(request).await?))?;
    let counted = |line: &&str| {
        ["\"endpoints\"", "\"endpointslices\""].iter().any(|kind| line.contains(&format!("resource={kind}")))
            && ["POST", "PUT", "PATCH", "APPLY", "DELETE"]
                .iter()
                .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    };
    Ok(whole(sum(&page, "apiserver_request_total", counted)))
}

/// The sum of our controller's metric of that name over all that have these labels.
pub(crate) fn metric(bed: &Bed, name: &str, labels: &[(&str, &str)]) -> Result<u64> {
    let labelled =
        |line: &&str| labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")));
    Ok(whole(sum(&page(bed)?, name, labelled)))
}

fn page(bed: &Bed) -> Result<String> {
    let namespace = bed.client(From::ControlPlane)?.namespace();
    let (status, page) = probe::http_get(namespace, SocketAddr::from(([127, 0, 0, 1], 8080)), "/metrics")?;
    ensure!(status == 200, "{status}");
    Ok(page)
}

fn sum(page: &str, name: &str, counts: impl Fn(&&str) -> bool) -> f64 {
    let lines = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(name)).filter(counts);
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small counts")]
fn whole(count: f64) -> u64 {
    count as u64
}

/// Waits until our controller has dealt with all it knows of, and nothing is under way.
pub(crate) fn await_idle(bed: &Bed) -> Result<()> {
    wait::until_ok("an empty queue", SETTLE, || {
        let page = page(bed)?;
        for name in ["fairlead_queue_depth", "workqueue_unfinished_work_seconds"] {
            let left = sum(&page, name, |_| true);
            ensure!(left <= 0.0, "{name} is {left}");
        }
        Ok(())
    })
}

/// Waits for an Event with that reason about an object of that kind and name; returns what it says.
pub(crate) fn await_event(bed: &Bed, reason: &str, kind: &str, name: &str) -> Result<String> {
    wait::until_ok(&format!("the Event {reason} about {kind} {name}"), SETTLE, || {
        let events: Vec<Value> = bed.kubernetes().list("Event", "default", "")?;
        let regards = |event: &&Value| {
            event["reason"] == reason
                && event["involvedObject"]["kind"] == kind
                && event["involvedObject"]["name"] == name
        };
        let found = events.iter().find(regards).map(|event| text(event, "/message"));
        found.with_context(|| format!("{} other Events", events.len()))
    })
}

/// Text at a JSON pointer; empty if there is none.
pub(crate) fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

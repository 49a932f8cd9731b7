//! The report for readers: the answer first, then tables, then what stands in the way and what to do about it.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use super::{
    gates::{Gate, GateName, Passage},
    report::{Change, Report, Standing},
};
use crate::table::Columns;

/// Near misses that are shown; JSON has all.
const NEAR_MISSES: usize = 10;
/// Values of a label that are shown.
const VALUES: usize = 5;

/// The report as text, with a line break at the end.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    _ = write(report, &mut text);
    text
}

fn write(report: &Report, text: &mut String) -> fmt::Result {
    headline(report, text)?;
    summary(report, text)?;
    if !report.ports.is_empty() {
        ports(report, text)?;
    }
    if !report.pods.is_empty() {
        pods(report, text)?;
        obstacles(report, text)?;
    }
    if report.service.selector.is_some() {
        near_misses(report, text)?;
    }
    objects(report, text)?;
    divergences(report, text)?;
    notes(report, text)
}

fn headline(report: &Report, text: &mut String) -> fmt::Result {
    let service = &report.service;
    write!(text, "Service {}/{}, {}", service.namespace, service.name, service.kind)?;
    if !service.cluster_ips.is_empty() {
        write!(text, " {}", service.cluster_ips.join(" "))?;
    }
    if let Some(selector) = &service.selector {
        let pairs: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        write!(text, ", selector {}", pairs.join(","))?;
    } else {
        write!(text, ", no selector")?;
    }
    for setting in &service.settings {
        write!(text, ", {setting}")?;
    }
    writeln!(text)
}

fn summary(report: &Report, text: &mut String) -> fmt::Result {
    let serving = report.count(Standing::Serves);
    let last_resort = report.count(Standing::LastResort);
    if !report.has_endpoint {
        writeln!(text, "It has no endpoint that gets traffic.")?;
    } else if serving > 0 {
        writeln!(text, "It has {} that get{} traffic.", endpoints(serving), verb(serving))?;
    } else {
        writeln!(
            text,
            "It has no ready endpoint; traffic goes to {} that {} terminating but still serving.",
            endpoints(last_resort),
            if last_resort == 1 { "is" } else { "are" }
        )?;
    }
    if let Some(selector) = &report.service.selector
        && report.pods.is_empty()
        && report.planned
    {
        writeln!(text, "No Pod of namespace {} has the labels that it selects.", report.service.namespace)?;
        for key in selector.keys() {
            label_values(report, key, text)?;
        }
    }
    if !report.planned {
        let missing = if report.service.selector.is_some() { "Pods" } else { "Endpoints" };
        writeln!(
            text,
            "There are no {missing} in {} to plan from: EndpointSlices count as they are.",
            report.place
        )?;
    }
    for (gate, pods) in obstacles_by_gate(report) {
        writeln!(
            text,
            "{} {} kept from serving by the gate {gate}.",
            counted(pods, "Pod"),
            if pods == 1 { "is" } else { "are" }
        )?;
    }
    Ok(())
}

fn label_values(report: &Report, key: &str, text: &mut String) -> fmt::Result {
    let Some(values) = report.label_values.get(key) else {
        return writeln!(text, "No Pod there has a label {key}.");
    };
    let shown: Vec<String> = values
        .iter()
        .take(VALUES)
        .map(|(value, pods)| format!("{key}={value} ({})", counted(*pods, "Pod")))
        .collect();
    let more =
        if values.len() > VALUES { format!(" and {} more", values.len() - VALUES) } else { String::new() };
    writeln!(text, "There is {}{more}.", shown.join(", "))
}

/// Pods that do not serve, by the first gate that keeps them from it.
fn obstacles_by_gate(report: &Report) -> BTreeMap<String, usize> {
    let mut pods = BTreeMap::new();
    let kept = report.pods.iter().filter(|pod| pod.result != Standing::Serves);
    for gate in kept.filter_map(|pod| pod.first_obstacle()) {
        *pods.entry(name(gate.name).to_lowercase()).or_default() += 1;
    }
    pods
}

fn ports(report: &Report, text: &mut String) -> fmt::Result {
    writeln!(text, "\nPorts")?;
    let mut columns = Columns::new(&["NAME", "PORT", "NODE PORT", "TARGET", "AT ENDPOINTS"]);
    for port in &report.ports {
        let mut at: Vec<String> =
            port.numbers.iter().map(|(number, count)| format!("{number} ({})", endpoints(*count))).collect();
        if port.missing > 0 {
            at.push(format!("not found in {}", counted(port.missing, "Pod")));
        }
        let node_port = if port.node_port == 0 { String::new() } else { port.node_port.to_string() };
        columns.row([
            port.name.clone(),
            format!("{}/{}", port.port, port.protocol),
            node_port,
            port.target_port.clone(),
            at.join(", "),
        ]);
    }
    columns.write(text, "  ");
    Ok(())
}

/// The gates in the order of the columns.
const GATES: [GateName; 8] = [
    GateName::Selector,
    GateName::Phase,
    GateName::Address,
    GateName::Port,
    GateName::Readiness,
    GateName::Termination,
    GateName::Node,
    GateName::Slice,
];

fn name(gate: GateName) -> &'static str {
    match gate {
        GateName::Selector => "SELECTOR",
        GateName::Phase => "PHASE",
        GateName::Address => "ADDRESS",
        GateName::Port => "PORT",
        GateName::Readiness => "READINESS",
        GateName::Termination => "TERMINATION",
        GateName::Node => "NODE",
        GateName::Slice => "SLICE",
    }
}

fn pods(report: &Report, text: &mut String) -> fmt::Result {
    writeln!(text, "\nPods that it selects, and the gates that they passed")?;
    let headings = GATES.map(name);
    let mut columns = Columns::new(&[&["POD"][..], &headings, &["RESULT"]].concat());
    for pod in &report.pods {
        let found = |gate: &GateName| pod.gates.iter().find(|other| other.name == *gate);
        let cells = GATES.iter().map(|gate| found(gate).map(cell).unwrap_or_default());
        let result = result(pod.result).to_owned();
        columns.row([pod.name.clone()].into_iter().chain(cells).chain([result]));
    }
    columns.write(text, "  ");
    Ok(())
}

fn cell(gate: &Gate) -> String {
    match gate.passage {
        Passage::Passed => gate.found.clone(),
        Passage::Limited => format!("in part: {}", gate.found),
        Passage::Failed => format!("no: {}", gate.found),
        Passage::NotReached => String::new(),
    }
}

fn result(standing: Standing) -> &'static str {
    match standing {
        Standing::Serves => "serves",
        Standing::LastResort => "last resort",
        Standing::NoTraffic => "no traffic",
        Standing::Out => "out",
    }
}

fn obstacles(report: &Report, text: &mut String) -> fmt::Result {
    let mut heading = "\nWhat stands in the way\n";
    for pod in &report.pods {
        for gate in pod.gates.iter().filter(|gate| matches!(gate.passage, Passage::Failed | Passage::Limited))
        {
            write!(text, "{}", std::mem::take(&mut heading))?;
            writeln!(text, "  {}, {}", pod.name, name(gate.name).to_lowercase())?;
            for reason in &gate.reasons {
                writeln!(text, "    {reason}")?;
            }
            advice(text, gate.field.as_deref(), gate.remedy.as_deref())?;
        }
    }
    Ok(())
}

fn advice(text: &mut String, field: Option<&str>, remedy: Option<&str>) -> fmt::Result {
    if let Some(field) = field {
        writeln!(text, "    field:  {field}")?;
    }
    if let Some(remedy) = remedy {
        writeln!(text, "    remedy: {remedy}")?;
    }
    Ok(())
}

fn near_misses(report: &Report, text: &mut String) -> fmt::Result {
    if !report.near_misses.is_empty() {
        writeln!(text, "\nPods that it nearly selects")?;
        for near_miss in report.near_misses.iter().take(NEAR_MISSES) {
            writeln!(text, "  {}", near_miss.pod)?;
            for difference in &near_miss.differences {
                writeln!(text, "    {difference}")?;
            }
            advice(text, Some(&near_miss.field), Some(&near_miss.remedy))?;
        }
        let more = report.near_misses.len().saturating_sub(NEAR_MISSES);
        if more > 0 {
            writeln!(text, "  and {more} more")?;
        }
    }
    if report.other_pods > 0 {
        let (noun, verb) = if report.other_pods == 1 { ("Pod", "has") } else { ("Pods", "have") };
        writeln!(
            text,
            "\n{} other {noun} of the namespace {verb} quite different labels.",
            report.other_pods
        )?;
    }
    Ok(())
}

fn objects(report: &Report, text: &mut String) -> fmt::Result {
    if report.slices.is_empty() && report.endpoints.is_none() {
        return Ok(());
    }
    writeln!(text, "\nObjects, and what the controller would do with them")?;
    let mut columns =
        Columns::new(&["OBJECT", "ADDRESSES", "PORTS", "ENDPOINTS", "READY", "MANAGED BY", "CHANGE"]);
    for slice in &report.slices {
        columns.row([
            format!("EndpointSlice {}", slice.name),
            slice.address_type.clone(),
            slice.ports.join(","),
            slice.endpoints.to_string(),
            slice.ready.to_string(),
            slice.managed_by.clone(),
            slice.change.as_str().to_owned(),
        ]);
    }
    if let Some(endpoints) = &report.endpoints {
        columns.row([
            format!("Endpoints {}", report.service.name),
            String::new(),
            String::new(),
            (endpoints.ready + endpoints.not_ready).to_string(),
            endpoints.ready.to_string(),
            String::new(),
            endpoints.change.as_str().to_owned(),
        ]);
    }
    columns.write(text, "  ");
    Ok(())
}

/// What is there now, if it is not what it should be.
fn divergences(report: &Report, text: &mut String) -> fmt::Result {
    let creates = |change| report.slices.iter().all(|slice| slice.change == change);
    if report.complete && !report.slices.is_empty() && creates(Change::Create) {
        return writeln!(text, "\n{} has no EndpointSlice of it yet.", capitalised(report.place));
    }
    if report.divergences.is_empty() {
        return Ok(());
    }
    writeln!(text, "\nWhere {} differs from what the controller would leave", report.place)?;
    let mut columns = Columns::new(&["OBJECT", "ADDRESS", "OF", "THERE NOW", "PLANNED"]);
    for divergence in &report.divergences {
        columns.row([
            divergence.object.to_owned(),
            divergence.address.clone(),
            divergence.target.clone(),
            divergence.present.join("; "),
            divergence.planned.join("; "),
        ]);
    }
    columns.write(text, "  ");
    Ok(())
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Notes on Pods were shown as obstacles.
fn notes(report: &Report, text: &mut String) -> fmt::Result {
    let mut heading = "\nNotes\n";
    for note in report.notes.iter().filter(|note| !note.of_pod) {
        writeln!(text, "{}  {}", std::mem::take(&mut heading), note.text)?;
    }
    Ok(())
}

fn endpoints(count: usize) -> String {
    counted(count, "endpoint")
}

fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

fn verb(count: usize) -> &'static str {
    if count == 1 { "s" } else { "" }
}

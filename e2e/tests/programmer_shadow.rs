//! The programmer as a shadow of the genuine kube-proxy: silent where packets fare the same, clear where they do not, and
//! without a trace of its own.
//!
//! Services have no selectors and slices are written by hand: no packet is sent, so nobody needs to be there.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed, From, Options,
    bed::SETTLE,
    cases,
    plan::Families,
    probe,
    processes::Process,
    programs::{Make, Variant},
    suite, wait,
};
use fairlead_objects::Family;
use serde_json::{Value, json};

const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10356);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10349);
const HEALTH_CHECK: u16 = 31_111;
/// kube-proxy is told to be quick, so that not much grace is needed.
const GRACE: &str = "--shadow-grace=3s";
const QUICK: &str = "--iptables-min-sync-period=10ms";

fn main() -> ExitCode {
    let nft = suite::run_on(
        || options(Variant::Nft, Families::DualStack),
        |_| Ok(()),
        cases![
            nothing_is_written_and_nothing_is_listened_on,
            services_of_every_kind_come_and_go_in_silence,
            edited_rules_are_told_and_forgotten_when_they_are_mended,
            a_node_without_a_proxy_and_one_with_other_settings_are_told,
            a_shadow_is_promoted_and_another_agrees_with_it,
        ],
    );
    let legacy = suite::run_on(
        || options(Variant::Legacy, Families::V4),
        |_| Ok(()),
        cases![edited_rules_are_told_and_forgotten_when_they_are_mended],
    );
    if [nft, legacy] == [ExitCode::SUCCESS; 2] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn options(variant: Variant, families: Families) -> Result<Options> {
    Ok(Options { programmer: Make::Genuine, variant, families, ..Options::from_env()? })
}

/// kube-proxy on the first node, whatever a case before left there.
fn start_proxy(bed: &mut Bed) -> Result<()> {
    drop(bed.stop_programmer(1));
    bed.start_programmer(1, &[QUICK])
}

/// A shadow on one node.
struct Shadow<'a> {
    bed: &'a Bed,
    node: u8,
    process: Process,
    /// Length of the log, which is that of the whole node, before it started.
    past: usize,
}

impl<'a> Shadow<'a> {
    fn launch(bed: &'a Bed, node: u8, extra: &[&str]) -> Result<Self> {
        let log = bed.log(&format!("programmer-{}", bed.node(node)?.name));
        let past = fs::read_to_string(log).map_or(0, |text| text.len());
        let process = bed.launch_programmer(node, Make::Ours, &[&["--shadow", GRACE], extra].concat())?;
        Ok(Self { bed, node, process, past })
    }

    fn start(bed: &'a Bed, node: u8, extra: &[&str]) -> Result<Self> {
        let shadow = Self::launch(bed, node, extra)?;
        wait::until_ok("the shadow to be ready", SETTLE, || {
            let (status, body) = shadow.get(HEALTH, "/readyz")?;
            ensure!(status == 200, "{status} {body}");
            Ok(())
        })
        .with_context(|| shadow.process.log_tail(40))?;
        Ok(shadow)
    }

    /// What it has printed.
    fn log(&self) -> String {
        self.process.log().get(self.past..).unwrap_or_default().to_owned()
    }

    fn get(&self, address: SocketAddr, path: &str) -> Result<(u16, String)> {
        probe::http_get(self.bed.node_netns(self.node)?, address, path)
    }

    fn report(&self) -> Result<Value> {
        let (status, body) = self.get(METRICS, "/debug/divergence")?;
        ensure!(status == 200, "{status} {body}");
        serde_json::from_str(&body).with_context(|| body.clone())
    }

    /// What it reports once `right` says so, and it has nothing left to look at.
    fn until(&self, what: &str, right: impl Fn(&Value) -> Result<()>) -> Result<Value> {
        wait::until_ok(what, SETTLE * 2, || {
            let report = self.report()?;
            ensure!(report["pending"] == false && report["waiting"] == 0, "{report:#}");
            right(&report).with_context(|| format!("{report:#}"))?;
            Ok(report)
        })
        .with_context(|| self.process.log_tail(40))
    }

    /// Waits until it has compared so many Services, by at least so many packets (endpoints call themselves, so that their
    /// number tells whether slices have arrived), and finds nothing to complain of.
    fn agrees(&self, services: usize, packets: u64) -> Result<Value> {
        self.until("agreement", |report| {
            ensure!(report["families"]["IPv4"]["services"] == services, "expected {services} Services");
            ensure!(
                report["families"]["IPv4"]["packets"].as_u64() >= Some(packets),
                "expected {packets} packets"
            );
            ensure!(divergences(report).is_empty(), "divergences");
            Ok(())
        })
    }

    /// The sum of a metric over its labels.
    fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = self.get(METRICS, "/metrics")?;
        let prefix = format!("fairlead_programmer_shadow_{name}{{");
        let values = text.lines().filter(|line| line.starts_with(&prefix));
        Ok(values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    fn stop(mut self) -> Result<()> {
        ensure!(self.process.stop(SETTLE)?.success(), "{}", self.process.log_tail(30));
        Ok(())
    }
}

fn divergences(report: &Value) -> Vec<&Value> {
    report["divergences"].as_array().into_iter().flatten().collect()
}

fn service(name: &str, spec: Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"name": "http", "port": 80}]}});
    fairlead_objects::builders::merge(&mut object["spec"], spec);
    object
}

/// Endpoints of port `http`, as address and node.
fn slice(service: &str, endpoints: &[(&str, &str)]) -> Value {
    let six = endpoints.iter().any(|(address, _)| address.contains(':'));
    let endpoint = |(address, node): &(&str, &str)| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}});
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-{}", if six { 6 } else { 4 }), "labels": {"kubernetes.io/service-name": service}},
        "addressType": if six { "IPv6" } else { "IPv4" },
        "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>()})
}

const HERE: &str = "node1";
const THERE: &str = "node2";

/// Services of every kind, and who is behind them.
fn every_kind() -> Vec<Value> {
    let pair = [("10.244.1.21", HERE), ("10.244.2.21", THERE)];
    let six = [("fd00:244:0:1::21", HERE), ("fd00:244:0:2::21", THERE)];
    let dual = json!({"ipFamilyPolicy": "PreferDualStack"});
    let balanced = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH_CHECK,
        "loadBalancerSourceRanges": ["203.0.113.0/24"], "ipFamilyPolicy": "PreferDualStack"});
    let many =
        json!({"ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]});
    vec![
        service("plain", dual.clone()),
        slice("plain", &pair),
        slice("plain", &six),
        service("empty", dual),
        service(
            "ports",
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ipFamilyPolicy": "PreferDualStack"}),
        ),
        slice("ports", &pair),
        slice("ports", &six),
        service(
            "away",
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}),
        ),
        slice("away", &[("10.244.2.22", THERE)]),
        service("balanced", balanced),
        slice("balanced", &pair),
        slice("balanced", &six),
        service("external", json!({"externalIPs": ["198.51.100.7"], "sessionAffinity": "ClientIP"})),
        slice("external", &pair),
        service("many", many),
        slice("many", &[("10.244.1.23", HERE), ("10.244.2.23", THERE), ("10.244.2.24", THERE)]),
    ]
}

fn services_of_every_kind_come_and_go_in_silence(bed: &mut Bed) -> Result<()> {
    start_proxy(bed)?;
    let shadow = Shadow::start(bed, 1, &[])?;
    // The API server's own Service is there from the start.
    shadow.agrees(1, 4)?;
    bed.kubernetes().apply_all(&every_kind())?;
    bed.set_ingress("balanced", &["192.0.2.77".parse()?])?;
    let report = shadow.agrees(8, 70)?;
    ensure!(report["families"]["IPv6"]["services"] == 4, "{report:#}");

    for name in ["plain", "away"] {
        bed.kubernetes().delete("Service", "default", name, 0)?;
    }
    bed.kubernetes().apply_all(&[
        slice("ports", &[("10.244.2.31", THERE)]),
        slice("many", &[("10.244.1.23", HERE)]),
        slice("empty", &[("10.244.1.32", HERE)]),
        service("external", json!({"externalIPs": ["198.51.100.8"], "type": "NodePort"})),
    ])?;
    shadow.agrees(6, 40)?;
    ensure!(shadow.metric("divergences_total")? == 0.0, "{}", shadow.log());
    ensure!(shadow.metric("comparisons_total")? > 2.0, "no comparisons");
    shadow.stop()
}

fn shell(bed: &Bed, script: &str) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).env("XTABLES_LOCKFILE", bed.dir().join("xtables-by-hand.lock"));
    bed.node_netns(1)?.output(&mut command).with_context(|| script.to_owned())
}

/// The rule of the first node that holds all of this, behind its `-A`.
fn rule(bed: &Bed, parts: &[&str]) -> Result<String> {
    let save = bed.save(1, Family::V4)?;
    let found = save.lines().find(|line| parts.iter().all(|part| line.contains(part)));
    let rule =
        found.and_then(|line| line.strip_prefix("-A ")).with_context(|| format!("{parts:?} in {save}"))?;
    Ok(rule.to_owned())
}

/// Whether the report tells of this, with these clients among those who see it.
fn told(report: &Value, service: &str, kind: &str, client: &str) -> Result<()> {
    let fits = |divergence: &&&Value| {
        let clients: Vec<String> = serde_json::from_value(divergence["clients"].clone()).unwrap_or_default();
        divergence["service"] == service
            && divergence["kind"] == kind
            && divergence["frontend"].as_str().is_some_and(|frontend| frontend.starts_with("cluster IP 10."))
            && clients.iter().any(|one| one.starts_with(client))
    };
    let found = divergences(report);
    let divergence =
        found.iter().find(fits).with_context(|| format!("no {kind} of {service} from {client}"))?;
    ensure!(divergence["installed"] != divergence["ours"], "{divergence:#}");
    Ok(())
}

fn edited_rules_are_told_and_forgotten_when_they_are_mended(bed: &mut Bed) -> Result<()> {
    start_proxy(bed)?;
    let names = ["moved", "unmarked", "flushed", "remembered"];
    for (number, name) in names.into_iter().enumerate() {
        let endpoint = format!("10.244.2.4{number}");
        let affinity = if name == "remembered" { "ClientIP" } else { "None" };
        let service = service(name, json!({"sessionAffinity": affinity}));
        bed.kubernetes().apply_all(&[service, slice(name, &[(&endpoint, THERE)])])?;
    }
    let at = |name: &str| -> Result<String> { Ok(format!("-d {}/32", bed.cluster_ip(name)?)) };
    let (unmarked, flushed) = (at("unmarked")?, at("flushed")?);
    let rules = wait::until_ok("kube-proxy's rules", SETTLE, || {
        // The cases before had Services of IPv6, to which it comes in its own time.
        let stale =
            bed.options.families == Families::DualStack && bed.save(1, Family::V6)?.contains("default/");
        ensure!(!stale, "rules of the cases before");
        Ok([
            rule(bed, &["--to-destination 10.244.2.40:8080"])?,
            rule(bed, &[&unmarked, "-j KUBE-MARK-MASQ"])?,
            rule(bed, &["-A KUBE-SERVICES", &flushed, "-j KUBE-SVC-"])?,
            rule(bed, &["default/remembered:", "--rcheck --seconds 10800"])?,
        ])
    })?;
    // It would mend a chain when it writes it the next time.
    bed.stop_programmer(1)?;
    let shadow = Shadow::start(bed, 1, &[])?;
    shadow.agrees(5, 19)?;

    let [moved, unmarked, flushed, remembered] = rules;
    let iptables = format!("{} -t nat", bed.options.variant.program("iptables"));
    let elsewhere = moved.replace(":8080", ":8081");
    let chain = flushed.rsplit(' ').next().unwrap_or_default();
    // Legacy does not know this rule again by its words. Before it is the mark for masquerading.
    let remembering = remembered.split(' ').next().unwrap_or_default();
    shell(
        bed,
        &format!(
            "{iptables} -D {moved}\n{iptables} -A {elsewhere}\n{iptables} -D {unmarked}\n{iptables} -F {chain}\n\
             {iptables} -D {remembering} 2"
        ),
    )?;
    let report = shadow.until("the edits to be told", |report| {
        for (service, kind, client) in [
            ("moved", "targets", "a Pod here"),
            ("moved", "targets", "this node"),
            ("moved", "targets", "the endpoint itself (10.244.2.40)"),
            ("unmarked", "masquerade", "this node"),
            ("unmarked", "masquerade", "outside"),
            ("flushed", "outcome", "a Pod here"),
            ("flushed", "outcome", "outside"),
            ("remembered", "affinity", "a Pod here"),
            ("remembered", "affinity", "this node"),
        ] {
            told(report, service, kind, client)?;
        }
        Ok(())
    })?;
    let found = divergences(&report);
    let concerned: BTreeSet<&str> = found.iter().filter_map(|one| one["service"].as_str()).collect();
    ensure!(concerned == names.into(), "{report:#}");
    let moved = found.iter().find(|one| one["service"] == "moved").context("moved")?;
    ensure!(moved["installed"]["targets"][0]["address"] == "10.244.2.40:8081", "{moved:#}");
    ensure!(moved["ours"]["targets"][0]["address"] == "10.244.2.40:8080", "{moved:#}");
    let gauge = shadow.metric("divergences")?;
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let listed = found.len() as f64;
    ensure!((gauge - listed).abs() < 0.5, "{gauge} in the metric, {listed} in the report");

    let log = shadow.log();
    let told = log.lines().filter(|line| line.contains("divergence: default/")).count();
    ensure!(told == found.len(), "{told} lines for {} divergences:\n{log}", found.len());
    // It compares everything when it starts.
    let kube_proxy = bed.launch_programmer(1, Make::Genuine, &[QUICK])?;
    shadow.agrees(5, 19)?;
    ensure!(shadow.metric("divergences")? == 0.0, "the gauge has not followed");
    ensure!(shadow.log().contains("divergence is over: default/moved"), "{}", shadow.log());
    drop(kube_proxy);
    shadow.stop()
}

/// What of a node a proxy could have changed.
fn footprint(bed: &Bed) -> Result<[String; 4]> {
    let kernel = "sysctl net.ipv4.conf.all.route_localnet net.netfilter.nf_conntrack_tcp_timeout_close_wait \
        net.netfilter.nf_conntrack_tcp_be_liberal; conntrack -L -p udp 2>/dev/null | grep -c src=10.244.1.99";
    let listening = "ss -Hlntu | awk '{print $1, $5}' | grep -v -e ':10356$' -e ':10349$' | sort";
    Ok([bed.save(1, Family::V4)?, bed.save(1, Family::V6)?, shell(bed, kernel)?, shell(bed, listening)?])
}

fn nothing_is_written_and_nothing_is_listened_on(bed: &mut Bed) -> Result<()> {
    start_proxy(bed)?;
    bed.kubernetes().apply_all(&every_kind())?;
    bed.set_ingress("balanced", &["192.0.2.77".parse()?])?;
    // By then, it has written all of them.
    Shadow::start(bed, 1, &[])?.agrees(8, 70)?;
    bed.stop_programmer(1)?;
    // A flow that no rule leads to any more, and a setting that we would change.
    shell(
        bed,
        &format!(
            "conntrack -I -p udp -s 10.244.1.99 -d {} --sport 1000 --dport 53 -t 600 --reply-src 10.244.2.99 \
             --reply-dst 10.244.1.99 --reply-port-src 5353 --reply-port-dst 1000 2>&1\n\
             sysctl -q net.ipv4.conf.all.route_localnet=0",
            bed.cluster_ip("many")?
        ),
    )?;
    let before = footprint(bed)?;
    let args = ["monitor".to_owned()];
    let monitor = bed.start_process(From::Node(1), "nft-monitor", "/usr/sbin/nft".as_ref(), &args, &[])?;

    let shadow = Shadow::start(bed, 1, &[])?;
    shadow.agrees(8, 70)?;
    // Changes that the other proxy does not follow: they are told, and that is all.
    bed.kubernetes().apply(&slice("plain", &[("10.244.2.55", THERE)]))?;
    bed.kubernetes().delete("Service", "default", "many", 0)?;
    shadow.until("the changes to be told", |report| told(report, "plain", "targets", "a Pod here"))?;
    let report = shadow.report()?;
    let left = divergences(&report).into_iter().find(|one| one["service"] == "many").context("many")?;
    ensure!(
        left["frontend"].as_str().is_some_and(|place| place.starts_with("place of no Service")),
        "{left:#}"
    );

    for port in [10256, 10249, HEALTH_CHECK] {
        let address = SocketAddr::new(HEALTH.ip(), port);
        ensure!(shadow.get(address, "/healthz").is_err(), "somebody listens on {address}");
    }
    shadow.stop()?;
    let after = footprint(bed)?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    }
    ensure!(monitor.log().is_empty(), "rules were changed:\n{}", monitor.log());
    // It would have told.
    shell(bed, "iptables -N BY-HAND\niptables -X BY-HAND")?;
    wait::until_ok("the monitor to tell", SETTLE, || {
        ensure!(monitor.log().contains("BY-HAND"), "{}", monitor.log());
        Ok(())
    })?;
    let events: Vec<Value> = bed.kubernetes().list("Event", "", "")?;
    let ours: Vec<_> =
        events.iter().filter(|event| event["reportingController"] == "fairlead-programmer").collect();
    ensure!(ours.is_empty(), "{ours:#?}");
    Ok(())
}

fn a_node_without_a_proxy_and_one_with_other_settings_are_told(bed: &mut Bed) -> Result<()> {
    start_proxy(bed)?;
    let alone = Shadow::launch(bed, 2, &[])?;
    wait::until_ok("the shadow to say that it is alone", SETTLE, || {
        let (status, body) = alone.get(HEALTH, "/readyz")?;
        ensure!(status == 503 && body.contains("no chain KUBE-SERVICES"), "{status} {body}");
        Ok(())
    })?;
    alone.stop()?;

    bed.kubernetes().apply_all(&[service("plain", json!({})), slice("plain", &[("10.244.2.61", THERE)])])?;
    wait::until_ok("kube-proxy's rules", SETTLE, || rule(bed, &["--to-destination 10.244.2.61:8080"]))?;
    let other = Shadow::start(bed, 1, &["--masquerade-all"])?;
    other.until("the setting to be noticed", |report| told(report, "plain", "masquerade", "a Pod here"))?;
    other.stop()
}

fn a_shadow_is_promoted_and_another_agrees_with_it(bed: &mut Bed) -> Result<()> {
    start_proxy(bed)?;
    bed.kubernetes().apply_all(&every_kind())?;
    bed.set_ingress("balanced", &["192.0.2.77".parse()?])?;
    let shadow = Shadow::start(bed, 1, &[])?;
    shadow.agrees(8, 70)?;
    shadow.stop()?;

    bed.stop_programmer(1)?;
    bed.options.programmer = Make::Ours;
    bed.start_programmer(1, &[])?;
    bed.options.programmer = Make::Genuine;
    ensure!(!bed.rules_about(1, "-m bpf")?.is_empty(), "the rules are still kube-proxy's");
    let shadow = Shadow::start(bed, 1, &[])?;
    shadow.agrees(8, 70)?;
    bed.kubernetes().apply(&slice("many", &[("10.244.1.23", HERE), ("10.244.2.24", THERE)]))?;
    shadow.until("the change to be compared", |report| {
        ensure!(report["comparisons"].as_u64() > Some(2) && divergences(report).is_empty(), "divergences");
        Ok(())
    })?;
    shadow.stop()
}

//! What can be measured: kube-proxy's names where the meaning is the same, so that dashboards and alerts keep working;
//! what kube-proxy does not have is prefixed `fairlead_`.
//!
//! Invariant: label values come from fixed sets, never from user data.

use std::{sync::atomic::AtomicU64, time::Duration};

use fairlead_daemon::metrics::Counter;
use fairlead_objects::Family as IpFamily;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{
    census::Stranded,
    drift::{Drift, Kind},
};

type Seconds = Gauge<f64, AtomicU64>;

/// Label of metrics that each family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FamilyLabels {
    ip_family: &'static str,
}

/// Labels of rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TableLabels {
    table: &'static str,
    ip_family: &'static str,
}

/// Labels of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    ip_family: &'static str,
    reason: &'static str,
}

/// Label of answers to probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabels {
    code: &'static str,
}

/// Label of what shows that another proxy is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SignLabels {
    sign: &'static str,
}

/// What shows that another proxy is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RivalSign {
    /// It answers for itself.
    Answer,
    /// It writes rules.
    Rules,
}

/// Labels of Service ports that strand traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PolicyLabels {
    traffic_policy: &'static str,
    ip_family: &'static str,
}

/// All metrics of the node agent. Clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    sync_duration: Family<FamilyLabels, Histogram>,
    full_sync_duration: Family<FamilyLabels, Histogram>,
    partial_sync_duration: Family<FamilyLabels, Histogram>,
    network_programming: Family<FamilyLabels, Histogram>,
    last_sync: Family<FamilyLabels, Seconds>,
    last_queued: Family<FamilyLabels, Seconds>,
    restore_failures: Family<FamilyLabels, Counter>,
    partial_restore_failures: Family<FamilyLabels, Counter>,
    rules: Family<TableLabels, Gauge>,
    rules_written: Family<TableLabels, Gauge>,
    no_local_endpoints: Family<PolicyLabels, Gauge>,
    failures: Family<ReasonLabels, Counter>,
    full_syncs: Family<ReasonLabels, Counter>,
    repaired_chains: Family<FamilyLabels, Counter>,
    drift: Family<ReasonLabels, Counter>,
    quarantined: Family<FamilyLabels, Gauge>,
    quarantines: Family<FamilyLabels, Counter>,
    verifications: Family<FamilyLabels, Histogram>,
    rivals: Family<SignLabels, Gauge>,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    reconcile_duration: Family<FamilyLabels, Histogram>,
    flows_deleted: Family<FamilyLabels, Counter>,
    healthz: Family<CodeLabels, Counter>,
    livez: Family<CodeLabels, Counter>,
}

/// Seconds from 1 ms, doubling, up to 16 s (upstream's buckets for syncs).
fn sync_buckets() -> Histogram {
    Histogram::new((0..15_i32).map(|exponent| 0.001 * 2_f64.powi(exponent)))
}

/// Upstream's buckets for the time from a change in the cluster to its being programmed.
fn programming_buckets() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    Histogram::new([0.0, 0.25, 0.5].into_iter().chain(seconds.map(f64::from)))
}

fn histograms(constructor: fn() -> Histogram) -> Family<FamilyLabels, Histogram> {
    Family::new_with_constructor(constructor)
}

impl Metrics {
    /// Registers all metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            sync_duration: histograms(sync_buckets),
            full_sync_duration: histograms(sync_buckets),
            partial_sync_duration: histograms(sync_buckets),
            network_programming: histograms(programming_buckets),
            last_sync: Family::default(),
            last_queued: Family::default(),
            restore_failures: Family::default(),
            partial_restore_failures: Family::default(),
            rules: Family::default(),
            rules_written: Family::default(),
            no_local_endpoints: Family::default(),
            failures: Family::default(),
            full_syncs: Family::default(),
            repaired_chains: Family::default(),
            drift: Family::default(),
            quarantined: Family::default(),
            quarantines: Family::default(),
            verifications: histograms(sync_buckets),
            rivals: Family::default(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            reconcile_duration: histograms(sync_buckets),
            flows_deleted: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
        };
        metrics.register_upstream(registry.sub_registry_with_prefix("kubeproxy"));
        metrics.register_ours(registry.sub_registry_with_prefix("fairlead"));
        metrics
    }

    /// Under upstream's exact names; some gauges end in `_total`, and stay so.
    fn register_upstream(&self, to: &mut Registry) {
        to.register(
            "sync_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds",
            self.sync_duration.clone(),
        );
        let name = "sync_full_proxy_rules_duration_seconds";
        to.register(
            name,
            "SyncProxyRules latency in seconds for full resyncs",
            self.full_sync_duration.clone(),
        );
        let name = "sync_partial_proxy_rules_duration_seconds";
        to.register(
            name,
            "SyncProxyRules latency in seconds for partial resyncs",
            self.partial_sync_duration.clone(),
        );
        let name = "network_programming_duration_seconds";
        to.register(
            name,
            "In Cluster Network Programming Latency in seconds",
            self.network_programming.clone(),
        );
        let name = "sync_proxy_rules_last_timestamp_seconds";
        to.register(name, "The last time proxy rules were successfully synced", self.last_sync.clone());
        let name = "sync_proxy_rules_last_queued_timestamp_seconds";
        to.register(name, "The last time a sync of proxy rules was queued", self.last_queued.clone());
        let name = "sync_proxy_rules_iptables_restore_failures_total";
        to.register(name, "Cumulative proxy iptables restore failures", self.restore_failures.clone());
        let name = "sync_proxy_rules_iptables_partial_restore_failures_total";
        to.register(
            name,
            "Cumulative proxy iptables partial restore failures",
            self.partial_restore_failures.clone(),
        );
        let name = "sync_proxy_rules_iptables_total";
        to.register(name, "Total number of iptables rules owned by kube-proxy", self.rules.clone());
        let name = "sync_proxy_rules_iptables_last";
        to.register(
            name,
            "Number of iptables rules written by kube-proxy in last sync",
            self.rules_written.clone(),
        );
        let name = "sync_proxy_rules_no_local_endpoints_total";
        to.register(
            name,
            "Number of services with a Local traffic policy and no endpoints",
            self.no_local_endpoints.clone(),
        );
        let name = "sync_proxy_rules_endpoint_changes_total";
        to.register(name, "Cumulative proxy rules Endpoint changes", self.endpoint_changes.clone());
        let name = "sync_proxy_rules_endpoint_changes_pending";
        to.register(name, "Pending proxy rules Endpoint changes", self.endpoint_changes_pending.clone());
        let name = "sync_proxy_rules_service_changes_total";
        to.register(name, "Cumulative proxy rules Service changes", self.service_changes.clone());
        let name = "sync_proxy_rules_service_changes_pending";
        to.register(name, "Pending proxy rules Service changes", self.service_changes_pending.clone());
        let name = "conntrack_reconciler_sync_duration_seconds";
        to.register(
            name,
            "ReconcileConntrackFlowsLatency latency in seconds",
            self.reconcile_duration.clone(),
        );
        let name = "conntrack_reconciler_deleted_entries_total";
        to.register(
            name,
            "Cumulative conntrack flows deleted by conntrack reconciler",
            self.flows_deleted.clone(),
        );
        to.register("proxy_healthz_total", "Cumulative proxy healthz HTTP status", self.healthz.clone());
        to.register("proxy_livez_total", "Cumulative proxy livez HTTP status", self.livez.clone());
    }

    fn register_ours(&self, to: &mut Registry) {
        let help = "Syncs that failed, by reason; each is repeated until it succeeds";
        to.register("sync_failures_total", help, self.failures.clone());
        to.register(
            "full_syncs_total",
            "Syncs that compared all rules with the kernel, by reason",
            self.full_syncs.clone(),
        );
        let help = "Chains that another program had changed, and that were written again";
        to.register("repaired_chains_total", help, self.repaired_chains.clone());
        let help = "Services that are left out now, because the packet filter refuses their rules";
        to.register("quarantined_services", help, self.quarantined.clone());
        let help = "Services that were left out because the packet filter refused their rules";
        to.register("quarantines_total", help, self.quarantines.clone());
        let help = "Differences between what was installed and what should have been, made by other programs, by kind";
        to.register("drift_total", help, self.drift.clone());
        let help = "Time to compare what another program may have changed, and to repair it";
        to.register("verification_duration_seconds", help, self.verifications.clone());
        let help = "1 while another proxy shows that it is at work on this node, by what shows it";
        to.register("rival_proxies", help, self.rivals.clone());
    }

    /// A sync of `family` ended after `duration`.
    pub fn observe_sync(&self, family: IpFamily, full: bool, duration: Duration) {
        let labels = labels(family);
        self.sync_duration.get_or_create(&labels).observe(duration.as_secs_f64());
        let kind = if full { &self.full_sync_duration } else { &self.partial_sync_duration };
        kind.get_or_create(&labels).observe(duration.as_secs_f64());
    }

    /// All of `family` is programmed as of `unix_time`.
    pub fn observe_success(&self, family: IpFamily, unix_time: f64) {
        self.last_sync.get_or_create(&labels(family)).set(unix_time);
    }

    /// A sync of `family` was asked for.
    pub fn observe_queued(&self, family: IpFamily, unix_time: f64) {
        self.last_queued.get_or_create(&labels(family)).set(unix_time);
    }

    /// A full sync of `family` starts.
    pub fn observe_full(&self, family: IpFamily, reason: &'static str) {
        self.full_syncs.get_or_create(&ReasonLabels { ip_family: family.as_str(), reason }).inc();
    }

    /// A sync of `family` failed; `restore` if a document was refused.
    pub fn observe_failure(&self, family: IpFamily, reason: &'static str, restore: bool, full: bool) {
        self.failures.get_or_create(&ReasonLabels { ip_family: family.as_str(), reason }).inc();
        if restore {
            self.restore_failures.get_or_create(&labels(family)).inc();
        }
        if restore && !full {
            self.partial_restore_failures.get_or_create(&labels(family)).inc();
        }
    }

    /// What others changed was found, and repaired.
    pub fn observe_drift(&self, family: IpFamily, drift: &Drift) {
        let count = |count: usize| count.try_into().unwrap_or(u64::MAX);
        for (kind, number) in &drift.counts {
            let labels = ReasonLabels { ip_family: family.as_str(), reason: kind.as_str() };
            self.drift.get_or_create(&labels).inc_by(count(*number));
        }
        let chains = drift.counts.iter().filter(|(kind, _)| **kind != Kind::Unhooked);
        let chains = chains.map(|(_, number)| count(*number)).sum();
        self.repaired_chains.get_or_create(&labels(family)).inc_by(chains);
    }

    /// A Service of `family` is left out.
    pub fn count_quarantine(&self, family: IpFamily) {
        self.quarantines.get_or_create(&labels(family)).inc();
    }

    /// How many Services of `family` are left out.
    pub fn observe_quarantine(&self, family: IpFamily, services: usize) {
        self.quarantined.get_or_create(&labels(family)).set(services.try_into().unwrap_or(i64::MAX));
    }

    /// Whether there is that sign of another proxy.
    pub fn observe_rival(&self, sign: RivalSign, present: bool) {
        let sign = match sign {
            RivalSign::Answer => "answer",
            RivalSign::Rules => "rules",
        };
        self.rivals.get_or_create(&SignLabels { sign }).set(present.into());
    }

    /// What others may have changed was compared.
    pub fn observe_verification(&self, family: IpFamily, duration: Duration) {
        self.verifications.get_or_create(&labels(family)).observe(duration.as_secs_f64());
    }

    /// How many rules of ours `table` should hold.
    pub fn observe_rules(&self, family: IpFamily, table: &'static str, owned: usize) {
        let labels = TableLabels { table, ip_family: family.as_str() };
        self.rules.get_or_create(&labels).set(owned.try_into().unwrap_or(i64::MAX));
    }

    /// How many rules the last sync wrote into `table`.
    pub fn observe_written(&self, family: IpFamily, table: &'static str, written: usize) {
        let labels = TableLabels { table, ip_family: family.as_str() };
        self.rules_written.get_or_create(&labels).set(written.try_into().unwrap_or(i64::MAX));
    }

    /// How many Service ports have a Local policy, and endpoints on other nodes only.
    pub fn observe_stranded(&self, family: IpFamily, stranded: Stranded) {
        for (traffic_policy, count) in [("internal", stranded.internal), ("external", stranded.external)] {
            let labels = PolicyLabels { traffic_policy, ip_family: family.as_str() };
            self.no_local_endpoints.get_or_create(&labels).set(count.try_into().unwrap_or(i64::MAX));
        }
    }

    /// Time from a change in the cluster to its being programmed.
    pub fn observe_programming(&self, family: IpFamily, latency: Duration) {
        self.network_programming.get_or_create(&labels(family)).observe(latency.as_secs_f64());
    }

    /// UDP flows of `family` were compared with its rules.
    pub fn observe_reconcile(&self, family: IpFamily, duration: Duration, deleted: u64) {
        self.reconcile_duration.get_or_create(&labels(family)).observe(duration.as_secs_f64());
        self.flows_deleted.get_or_create(&labels(family)).inc_by(deleted);
    }

    /// A slice arrived.
    pub fn count_endpoint_change(&self) {
        self.endpoint_changes.inc();
        self.endpoint_changes_pending.inc();
    }

    /// A Service arrived.
    pub fn count_service_change(&self) {
        self.service_changes.inc();
        self.service_changes_pending.inc();
    }

    /// A sync took all changes with it.
    pub fn changes_taken(&self) {
        self.endpoint_changes_pending.set(0);
        self.service_changes_pending.set(0);
    }

    /// A probe was answered.
    pub fn observe_probe(&self, probe: crate::health::Probe, ok: bool) {
        let counters = match probe {
            crate::health::Probe::Healthz => &self.healthz,
            crate::health::Probe::Livez => &self.livez,
        };
        counters.get_or_create(&CodeLabels { code: if ok { "200" } else { "503" } }).inc();
    }
}

fn labels(family: IpFamily) -> FamilyLabels {
    FamilyLabels { ip_family: family.as_str() }
}

//! The sync loop against an in-memory packet filter, on paused time.

use fairlead_compiler::{diff, parse};
use fairlead_daemon::{metrics::Metrics as Registry, readiness::Readiness};
use fairlead_objects::builders;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::*;
use crate::{
    conntrack::model::Model as Flows,
    events::{Notice, Subject},
    feed::Kind,
    netfilter::{Features, model::Model},
    own_node::{Kernel, basis},
    settings::testing,
};

mod flows;

struct Bench {
    model: Arc<Model>,
    flows: Arc<Flows>,
    notices: mpsc::Receiver<Notice>,
    registry: Registry,
    changes: mpsc::Sender<Change>,
    basis: watch::Sender<Option<Basis>>,
    readiness: Readiness,
    health: Arc<Mutex<Health>>,
    shutdown: CancellationToken,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn node_basis() -> Basis {
    let kernel = Kernel { features: Features::ALL, liberal_tcp: false, route_localnet: true };
    basis(Family::V4, &testing::settings(), kernel, Some(&builders::node("node-a", "192.168.0.2", "a")))
}

/// A sync loop on `model` that knows its Node, but no list yet.
fn bench(model: &Arc<Model>) -> Bench {
    let (changes, receiver) = mpsc::channel(1024);
    let (sender, basis) = watch::channel(Some(node_basis()));
    let flows = Arc::new(Flows::default());
    let readiness = Readiness::default();
    let (events, notices) = Events::new();
    let registry = Registry::new();
    let health = Arc::new(Mutex::new(Health::new(Duration::from_secs(30))));
    let lane = Lane::new(Wiring {
        family: Family::V4,
        netfilter: Arc::clone(model),
        flows: Arc::clone(&flows),
        changes: receiver,
        basis,
        addresses: |_| Ok(Vec::new()),
        sync_period: Duration::from_secs(30),
        min_sync_period: Duration::ZERO,
        sentinel: Sentinel::Off,
        events,
        signs: Signs::new().0,
        gate: readiness.gate("rules"),
        health: Arc::clone(&health),
        health_ports: watch::channel(HealthPorts::default()).0,
        metrics: registry.register(Metrics::register),
    });
    let shutdown = CancellationToken::new();
    tokio::spawn(lane.run(shutdown.clone()));
    Bench {
        model: Arc::clone(model),
        flows,
        notices,
        registry,
        changes,
        basis: sender,
        readiness,
        health,
        shutdown,
    }
}

fn service(number: u32) -> Change {
    let ip = format!("10.96.{}.{}", number / 250, number % 250 + 1);
    let spec = json!({"clusterIP": ip, "clusterIPs": [ip]});
    Change::Service(Arc::new(builders::service(&format!("svc-{number}"), spec)))
}

fn slice(number: u32, endpoints: &[&str]) -> Change {
    let endpoints: Vec<_> = endpoints.iter().map(|ip| (*ip, "node-a", true)).collect();
    Change::Slice(Arc::new(builders::slice(
        &format!("slice-{number}"),
        &format!("svc-{number}"),
        8080,
        &endpoints,
    )))
}

/// `count` Services with three endpoints each.
fn services(count: u32) -> Vec<Change> {
    let of = |number| [service(number), slice(number, &["10.0.0.1", "10.0.0.2", "10.0.0.3"])];
    (0..count).flat_map(of).collect()
}

impl Bench {
    async fn tell(&self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.changes.send(change).await.unwrap();
        }
    }

    async fn listed(&self) {
        self.tell([Change::Listed(Kind::Services), Change::Listed(Kind::EndpointSlices)]).await;
    }

    /// Programs `count` Services, and forgets the documents of that.
    async fn load(&self, count: u32) {
        self.tell(services(count)).await;
        self.listed().await;
        self.until(|| self.readiness.is_ready()).await;
        self.model.take_documents();
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_mins(5), waiting).await.expect("the condition is met in time");
    }

    async fn installed(&self) -> String {
        format!("{}{}", self.model.save("filter").await.unwrap(), self.model.save("nat").await.unwrap())
    }

    /// Whether the model holds what a fresh start would write, no more and no less.
    async fn assert_equals_fresh(&self, changes: impl IntoIterator<Item = Change>) {
        let mut state = ProxyState::new(Family::V4);
        for change in changes {
            match change {
                Change::Service(service) => state.set_service(&service),
                Change::Slice(slice) => state.set_slice(&slice),
                other => panic!("unexpected {other:?}"),
            }
        }
        let Basis { config, facts } = node_basis();
        let desired = fairlead_compiler::compile(&state, &config, &facts);
        let delta = diff(&parse(&self.installed().await).unwrap(), &desired);
        assert!(delta.is_empty(), "{delta:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_both_lists_and_the_node_are_known() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.basis.send_replace(None);
    bench.tell(services(2)).await;
    bench.tell([Change::Listed(Kind::Services)]).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(model.restores(), 0);
    bench.tell([Change::Listed(Kind::EndpointSlices)]).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(model.restores(), 0);
    assert!(!bench.readiness.is_ready());
    bench.basis.send_replace(Some(node_basis()));
    bench.until(|| bench.readiness.is_ready()).await;
    bench.assert_equals_fresh(services(2)).await;
}

#[tokio::test(start_paused = true)]
async fn change_of_one_service_is_one_document_with_its_chains_only() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.load(100).await;
    bench.tell([slice(7, &["10.0.0.9", "10.0.0.8", "10.0.0.7"])]).await;
    bench.until(|| model.restores() > 0).await;
    let documents = model.take_documents();
    assert_eq!(documents.len(), 1);
    let declared: Vec<_> = documents[0].lines().filter(|line| line.starts_with(':')).collect();
    assert_eq!(declared.len(), 1, "{}", documents[0]);
    assert!(!documents[0].contains("*filter"), "{}", documents[0]);
}

#[tokio::test(start_paused = true)]
async fn change_of_nothing_that_matters_is_not_programmed() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.load(3).await;
    bench.tell([service(1), slice(1, &["10.0.0.1", "10.0.0.2", "10.0.0.3"])]).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(model.restores(), 0);
}

#[tokio::test(start_paused = true)]
async fn failed_sync_is_repeated_after_a_growing_delay_and_loses_no_change() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.load(3).await;
    model.refuse(4);
    let start = Instant::now();
    bench.tell([slice(1, &["10.0.1.1"])]).await;
    sleep(Duration::from_millis(50)).await;
    bench.tell([slice(2, &["10.0.2.1"])]).await;
    bench.until(|| model.restores() > 0).await;
    let waited = start.elapsed().as_millis();
    // The third time at once, without the Services that changed; that fails, too, so it is not their fault.
    assert!((1100..1300).contains(&waited), "100 + 200 + 0 + 800 ms, not {waited}");
    let expected = services(3).into_iter().chain([slice(1, &["10.0.1.1"]), slice(2, &["10.0.2.1"])]);
    bench.until(|| bench.health.lock().answer(crate::health::Probe::Livez, Timestamp::now()).ok()).await;
    bench.assert_equals_fresh(expected).await;
}

#[tokio::test(start_paused = true)]
async fn chain_that_was_lost_is_found_by_the_full_sync_after_the_failure() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.load(40).await;
    let nat = model.save("nat").await.unwrap();
    let lost = nat.lines().find_map(|line| line.strip_prefix(":KUBE-SVC-")).unwrap();
    let lost = format!("KUBE-SVC-{}", lost.split(' ').next().unwrap());
    model.lose("nat", &lost);
    bench.tell([service(99), slice(99, &["10.0.1.1"])]).await;
    bench.until(|| model.restores() > 0).await;
    bench.assert_equals_fresh(services(40).into_iter().chain([service(99), slice(99, &["10.0.1.1"])])).await;
}

#[tokio::test(start_paused = true)]
async fn restart_on_equal_rules_writes_nothing() {
    let model = Arc::new(Model::default());
    bench(&model).load(20).await;
    let second = bench(&model);
    second.tell(services(20)).await;
    second.listed().await;
    second.until(|| second.readiness.is_ready()).await;
    assert_eq!(model.take_documents(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn restart_after_a_service_is_gone_removes_its_chains() {
    let model = Arc::new(Model::default());
    bench(&model).load(20).await;
    let second = bench(&model);
    second.tell(services(19)).await;
    second.listed().await;
    second.until(|| second.readiness.is_ready()).await;
    second.assert_equals_fresh(services(19)).await;
}

/// The model refuses jumps to chains that are not there yet, so the order of the parts is checked by their success.
#[tokio::test(start_paused = true)]
async fn large_first_load_goes_in_parts_with_built_in_chains_last() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.tell(services(1500)).await;
    bench.listed().await;
    bench.until(|| bench.readiness.is_ready()).await;
    let documents = model.take_documents();
    assert!(documents.len() > 3, "{}", documents.len());
    let hooked: Vec<_> = documents.iter().map(|document| document.contains("-I PREROUTING")).collect();
    let first = hooked.iter().position(|hooked| *hooked).unwrap();
    let last_with_rules = documents.iter().rposition(|document| document.contains("-j DNAT")).unwrap();
    assert!(first >= last_with_rules, "{hooked:?}");
    bench.assert_equals_fresh(services(1500)).await;
}

#[tokio::test(start_paused = true)]
async fn changes_that_arrive_during_a_sync_are_programmed_together() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.load(60).await;
    model.slow_down(Duration::from_secs(1));
    bench.tell([slice(0, &["10.0.1.1"])]).await;
    sleep(Duration::from_millis(100)).await;
    for number in 1..50 {
        bench.tell([slice(number, &["10.0.1.1"])]).await;
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(model.take_documents().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn outside_flush_is_repaired_within_the_sync_period() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.load(5).await;
    model.flush();
    let start = Instant::now();
    bench.until(|| model.restores() > 0).await;
    assert!(start.elapsed() <= Duration::from_secs(31), "{:?}", start.elapsed());
    sleep(Duration::from_secs(1)).await;
    bench.assert_equals_fresh(services(5)).await;
    for table in ["mangle", "nat", "filter"] {
        assert!(model.save(table).await.unwrap().contains(":KUBE-PROXY-CANARY "), "{table}");
    }
}

#[tokio::test(start_paused = true)]
async fn node_change_rewrites_only_what_depends_on_it() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.load(10).await;
    let mut changed = node_basis();
    changed.config.masquerade_bit = 3;
    bench.basis.send_replace(Some(changed));
    bench.until(|| model.restores() > 0).await;
    let document = model.take_documents().concat();
    assert!(document.contains("-A KUBE-MARK-MASQ -j MARK --or-mark 0x000008\n"), "{document}");
    assert!(!document.contains("-j DNAT"), "{document}");
}

#[tokio::test(start_paused = true)]
async fn waiting_change_makes_the_node_unhealthy_and_success_heals_it() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.load(1).await;
    model.refuse(usize::MAX);
    bench.tell([slice(0, &["10.0.1.1"])]).await;
    sleep(Duration::from_secs(1)).await;
    let probe = |seconds: u64| {
        let later = Timestamp::now() + Duration::from_secs(seconds);
        bench.health.lock().answer(crate::health::Probe::Livez, later).ok()
    };
    assert!(probe(30) && !probe(90));
    model.refuse(0);
    bench.until(|| model.restores() > 0).await;
    sleep(Duration::from_secs(1)).await;
    assert!(probe(90));
}

const BAD: &str = "10.9.9.9";

impl Bench {
    fn metric(&self, name: &str) -> String {
        let text = self.registry.encode().unwrap();
        let labelled = format!("fairlead_{name}{{ip_family=\"IPv4\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&labelled)).unwrap_or_default().to_owned()
    }
}

#[tokio::test(start_paused = true)]
async fn service_whose_rules_are_refused_is_left_out_and_all_others_are_programmed() {
    for names_line in [true, false] {
        let model = Arc::new(Model::default());
        model.refuse_text(BAD, names_line);
        let mut bench = bench(&model);
        let with_bad = services(40).into_iter().chain([slice(7, &[BAD])]);
        bench.tell(with_bad).await;
        bench.listed().await;
        bench.until(|| bench.metric("quarantined_services") == "1").await;
        sleep(Duration::from_secs(1)).await;
        let others = services(40).into_iter().filter(|change| match change {
            Change::Service(service) => &*service.key.name != "svc-7",
            Change::Slice(slice) => slice.metadata.name.as_deref() != Some("slice-7"),
            _ => true,
        });
        bench.assert_equals_fresh(others).await;
        let notice = bench.notices.try_recv().unwrap();
        let service = Subject::Service(ServiceKey::new("default", "svc-7"));
        assert_eq!((notice.subject, notice.reason), (service, "FailedToProgram"));
        assert!(bench.readiness.is_ready());
        assert!(bench.readiness.to_string().contains("default/svc-7"), "{}", bench.readiness);

        // It is tried again when it changes.
        bench.tell([slice(7, &["10.0.0.1", "10.0.0.2", "10.0.0.3"])]).await;
        bench.until(|| bench.metric("quarantined_services") == "0").await;
        sleep(Duration::from_secs(1)).await;
        bench.assert_equals_fresh(services(40)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn change_that_spoils_a_service_does_not_hold_up_changes_of_others() {
    let model = Arc::new(Model::default());
    let bench = bench(&model);
    bench.load(20).await;
    model.refuse_text(BAD, false);
    bench.tell([slice(3, &[BAD]), slice(4, &["10.0.1.4"])]).await;
    sleep(Duration::from_secs(2)).await;
    assert!(bench.installed().await.contains("10.0.1.4:8080"));
    bench.tell([slice(5, &["10.0.1.5"])]).await;
    sleep(Duration::from_millis(100)).await;
    assert!(bench.installed().await.contains("10.0.1.5:8080"));
    assert_eq!(bench.metric("quarantined_services"), "1");
}

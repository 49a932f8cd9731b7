use fairlead_compiler::{Config, Discord, compile};
use fairlead_daemon::{metrics::Metrics as Registry, readiness::Readiness};
use fairlead_objects::{Service, builders};
use serde_json::json;

use super::*;
use crate::{
    netfilter::{Features, ToolError},
    own_node::{Kernel, basis},
    settings::testing,
};

const GRACE: Duration = Duration::from_secs(10);

/// Rules to be edited while they are watched.
#[derive(Default)]
struct Text(Mutex<String>);

impl Rules for Text {
    async fn read(&self) -> Result<String, ToolError> {
        Ok(self.0.lock().clone())
    }
}

struct Bench {
    text: Arc<Text>,
    changes: mpsc::Sender<Change>,
    ledger: Arc<Mutex<Ledger>>,
    registry: Registry,
    readiness: Readiness,
    shutdown: CancellationToken,
    basis: watch::Sender<Option<Basis>>,
}

fn addresses(_: Family) -> io::Result<Vec<IpNet>> {
    let address = "192.168.0.2/24".parse();
    address.map(|address| vec![address]).map_err(io::Error::other)
}

fn known_basis() -> Basis {
    let kernel = Kernel { features: Features::ALL, liberal_tcp: false, route_localnet: true };
    let node = builders::node("node-a", "192.168.0.2", "a");
    basis(Family::V4, &testing::settings(), kernel, Some(&node))
}

fn service() -> Service {
    builders::service(
        "web",
        json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]}),
    )
}

/// What the other proxy makes of these endpoints.
fn rules(endpoints: &[&str]) -> String {
    let mut state = ProxyState::new(Family::V4);
    state.set_service(&service());
    let endpoints: Vec<_> = endpoints.iter().map(|address| (*address, "node-b", true)).collect();
    state.set_slice(&builders::slice("web-1", "web", 8080, &endpoints));
    let basis = known_basis();
    compile(&state, &Config { bpf: false, ..basis.config }, &basis.facts).render_document()
}

impl Bench {
    fn start(text: &str) -> Self {
        let (changes, receiver) = mpsc::channel(16);
        let (basis, known) = watch::channel(None);
        let (registry, readiness) = (Registry::new(), Readiness::default());
        let bench = Self {
            text: Arc::new(Text(Mutex::new(text.to_owned()))),
            changes,
            ledger: Arc::new(Mutex::new(Ledger::new(Family::V4, GRACE))),
            shutdown: CancellationToken::new(),
            registry,
            readiness,
            basis,
        };
        let lane = Lane::new(Wiring {
            family: Family::V4,
            rules: Arc::clone(&bench.text),
            changes: receiver,
            basis: known,
            addresses,
            sentinel: Sentinel::Off,
            gate: bench.readiness.gate("IPv4 comparison"),
            ledger: Arc::clone(&bench.ledger),
            metrics: bench.registry.register(Metrics::register),
        });
        tokio::spawn(lane.run(bench.shutdown.clone()));
        bench
    }

    async fn inform(&self) {
        self.tell(Change::Service(Arc::new(service()))).await;
        self.tell_endpoints(&["10.1.0.1"]).await;
        self.tell(Change::Listed(Kind::Services)).await;
        self.tell(Change::Listed(Kind::EndpointSlices)).await;
        self.basis.send_replace(Some(known_basis()));
    }

    async fn tell(&self, change: Change) {
        self.changes.send(change).await.unwrap();
    }

    async fn tell_endpoints(&self, endpoints: &[&str]) {
        let endpoints: Vec<_> = endpoints.iter().map(|address| (*address, "node-b", true)).collect();
        self.tell(Change::Slice(Arc::new(builders::slice("web-1", "web", 8080, &endpoints)))).await;
    }

    /// Time goes by itself until this holds.
    async fn until(&self, what: &str, condition: impl Fn(&Ledger) -> bool) {
        let start = Instant::now();
        while !condition(&self.ledger.lock()) {
            assert!(start.elapsed() < Duration::from_mins(10), "{what}: {:?}", self.ledger.lock());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn metric(&self, name: &str) -> String {
        let text = self.registry.encode().unwrap();
        let prefix = format!("fairlead_programmer_shadow_{name} ");
        text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or("none").to_owned()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn divergence_is_counted_after_the_grace_period_and_gone_when_it_is_mended() {
    let bench = Bench::start(&rules(&["10.1.0.2"]));
    bench.inform().await;
    bench.until("a difference is seen", |ledger| ledger.waiting() > 0).await;
    assert!(bench.readiness.is_ready());
    let seen = Instant::now();
    assert_eq!(bench.metric("divergences{ip_family=\"IPv4\",kind=\"targets\"}"), "0");
    bench.until("it counts", |ledger| ledger.count(Discord::Targets) > 0).await;
    assert!(seen.elapsed() + Duration::from_millis(200) >= GRACE, "{:?}", seen.elapsed());
    let count = bench.ledger.lock().standing().count();
    assert_eq!(bench.metric("divergences{ip_family=\"IPv4\",kind=\"targets\"}"), count.to_string());
    assert_eq!(bench.metric("divergences_total{ip_family=\"IPv4\",kind=\"targets\"}"), count.to_string());

    // The other proxy catches up with what we know already.
    *bench.text.0.lock() = rules(&["10.1.0.1"]);
    bench.until("it is mended", |ledger| ledger.standing().count() == 0).await;
    assert_eq!(bench.metric("divergences{ip_family=\"IPv4\",kind=\"targets\"}"), "0");
    assert_eq!(bench.metric("divergences_total{ip_family=\"IPv4\",kind=\"targets\"}"), count.to_string());
}

#[tokio::test(start_paused = true)]
async fn change_that_the_other_proxy_follows_in_time_is_no_divergence() {
    let bench = Bench::start(&rules(&["10.1.0.1"]));
    bench.inform().await;
    bench.until("agreement", |ledger| !ledger.pending).await;
    let before = bench.ledger.lock().comparisons;
    bench.tell_endpoints(&["10.1.0.1", "10.1.0.2"]).await;
    bench.until("the change is compared", |ledger| ledger.comparisons > before && ledger.waiting() > 0).await;
    *bench.text.0.lock() = rules(&["10.1.0.1", "10.1.0.2"]);
    bench.until("agreement", |ledger| ledger.waiting() == 0).await;
    assert_eq!(bench.metric("divergences_total{ip_family=\"IPv4\",kind=\"targets\"}"), "none");
}

#[tokio::test(start_paused = true)]
async fn what_has_not_changed_is_looked_at_and_not_compared_again() {
    let bench = Bench::start(&rules(&["10.1.0.1"]));
    bench.inform().await;
    bench.until("agreement", |ledger| !ledger.pending).await;
    let looks =
        || bench.metric("comparison_duration_seconds_count{ip_family=\"IPv4\"}").parse::<u64>().unwrap();
    let (compared, looked) = (bench.ledger.lock().comparisons, looks());
    bench.until("two more looks", |_| looks() >= looked + 2).await;
    assert_eq!(bench.ledger.lock().comparisons, compared);
}

#[tokio::test(start_paused = true)]
async fn family_without_services_needs_no_proxy() {
    let bench = Bench::start("");
    bench.tell(Change::Listed(Kind::Services)).await;
    bench.tell(Change::Listed(Kind::EndpointSlices)).await;
    bench.basis.send_replace(Some(known_basis()));
    bench.until("a look", |ledger| !ledger.pending).await;
    assert!(bench.readiness.is_ready());
    assert_eq!(bench.metric("proxy_present{ip_family=\"IPv4\"}"), "0");
    bench.tell(Change::Service(Arc::new(service()))).await;
    bench
        .until("the obstacle", |ledger| ledger.obstacle.as_ref().is_some_and(|it| it.contains("no chain")))
        .await;
}

#[tokio::test(start_paused = true)]
async fn node_without_a_proxy_is_told_and_not_ready() {
    let bench = Bench::start("");
    bench.inform().await;
    bench.until("the obstacle", |ledger| ledger.obstacle.is_some()).await;
    assert!(!bench.readiness.is_ready());
    assert!(bench.readiness.to_string().contains("no chain KUBE-SERVICES"), "{}", bench.readiness);
    assert_eq!(bench.metric("proxy_present{ip_family=\"IPv4\"}"), "0");
    *bench.text.0.lock() = rules(&["10.1.0.1"]);
    bench.until("a comparison", |ledger| ledger.comparisons > 0 && ledger.obstacle.is_none()).await;
    assert!(bench.readiness.is_ready());
    assert_eq!(bench.metric("proxy_present{ip_family=\"IPv4\"}"), "1");
}

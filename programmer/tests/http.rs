//! The servers of the node agent beside records of kube-proxy v1.36.3's (`fixtures/`): the routes with every state of the
//! record, and the program itself with an API server, from before the first answer to the last Service.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{
    env, fs,
    io::Read,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use fairlead_daemon::{metrics::Metrics as Registry, readiness::Readiness};
use fairlead_objects::{Family, NodeObject, ServiceKey, Timestamp, builders};
use fairlead_programmer::{
    census::{HealthPort, HealthPorts},
    events::Events,
    health::Health,
    health_ports::HealthPortServers,
    metrics::Metrics,
    servers,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

mod apiserver;
mod client;
mod namespace;
mod programs;

use apiserver::ApiServer;
use client::{Answer, ask, get, samples, until, until_closed};
use namespace::{in_namespace, shell};
use programs::with_programs;

const HEALTH_RECORD: &str = include_str!("fixtures/http-samples.txt");
const METRICS_RECORD: &str = include_str!("fixtures/http-metrics-server.txt");
const HEALTH: u16 = 10256;
const METRICS: u16 = 10249;
/// For health checks of Services.
const FIRST: u16 = 31001;
const SECOND: u16 = 31002;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Everything that the record was made of.
struct Servers {
    health: Arc<Mutex<Health>>,
    ports: HealthPortServers,
    port: u16,
}

impl Servers {
    /// Puts things into the state that the record calls so.
    fn set(&mut self, title: &str) {
        let node = |taints: Value| {
            builders::object::<NodeObject>(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}}))
                .into()
        };
        let mut health = self.health.lock();
        match title {
            "no node known, nothing updated yet" | "unknown path" => {}
            "healthy dual stack" => {
                health.observe_node(Some(&node(json!([]))));
                for family in Family::ALL {
                    health.updated(family, Timestamp::now());
                }
            }
            "node tainted ToBeDeletedByClusterAutoscaler" => health.observe_node(Some(&node(
                json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]),
            ))),
            "IPv4 update overdue" => {
                health.observe_node(Some(&node(json!([]))));
                health.queued(Family::V4, Timestamp::now() - Duration::from_secs(61));
            }
            "recovered" => health.updated(Family::V4, Timestamp::now()),
            other => {
                drop(health);
                let endpoints = if other.contains("3 local") { 3 } else { 0 };
                let wanted = HealthPort { port: self.port, endpoints };
                let services = [(ServiceKey::new("ns1", "svc1"), wanted)].into();
                assert!(
                    self.ports
                        .reconcile(&HealthPorts { addresses: vec![Ipv4Addr::LOCALHOST.into()], services })
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_answers_are_those_of_the_record_in_every_state() {
    let health = Arc::new(Mutex::new(Health::new(Duration::from_secs(30))));
    let metrics = Registry::new().register(Metrics::register);
    let routes = servers::health_routes(&health, &metrics, Readiness::default());
    let (address, shutdown) =
        (SocketAddr::new(IpAddr::from([127, 0, 0, 1]), free_port()), CancellationToken::new());
    let server =
        tokio::spawn(servers::serve(address, "--healthz-bind-address", routes, true, shutdown.clone()));
    let (events, _notices) = Events::new();
    let ports = HealthPortServers::new(Arc::clone(&health), events);
    let mut servers = Servers { health, ports, port: free_port() };
    until(address.port(), "/livez", |_| true).await;
    let samples = samples(HEALTH_RECORD);
    assert_eq!(samples.len(), 13);
    for sample in samples {
        servers.set(&sample.title);
        let port = if sample.port == Some(39256) { address.port() } else { servers.port };
        let answer = ask(port, &sample.method, &sample.path, "").unwrap();
        assert_eq!(
            answer.without_times(),
            sample.answer.without_times(),
            "{}, {}",
            sample.title,
            sample.path
        );
    }
    shutdown.cancel();
    server.await.unwrap().unwrap();
}

/// The program, running. Ends when it goes, and tells its log if the test fails.
struct Program(Child);

impl Program {
    fn start(api: &ApiServer, flags: &[&str]) -> Self {
        Self::with(
            &[&[format!("--master={}", api.url()).as_str(), "--hostname-override=node-a"], flags].concat(),
        )
    }

    fn with(flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead-programmer"));
        Self(command.args(flags).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits until it ends by itself; its log.
    async fn end(mut self) -> (Option<i32>, String) {
        let status = tokio::task::spawn_blocking(move || {
            let mut log = String::new();
            self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
            (self.0.wait().unwrap().code(), log)
        });
        status.await.unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
        let mut log = String::new();
        if let (true, Some(mut from)) = (std::thread::panicking(), self.0.stderr.take()) {
            drop(from.read_to_string(&mut log));
            eprintln!("{log}");
        }
    }
}

fn node(taints: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}, "spec": {"taints": taints},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.2"}]}})
}

/// A Service that load balancers ask about at `port`.
fn service(name: &str, last: u8, port: u16) -> Value {
    let ip = format!("10.96.0.{last}");
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "ns1"}, "spec": {
        "type": "LoadBalancer", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
        "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": u16::from(last) + 30_000}]}})
}

/// Endpoints on this node: the last bytes of their addresses, and whether they are terminating.
fn slice(service: &str, endpoints: &[(u8, bool)]) -> Value {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(last, terminating)| {
            json!({"addresses": [format!("10.0.0.{last}")], "nodeName": "node-a",
                "conditions": {"ready": !terminating, "serving": true, "terminating": terminating}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-1"), "namespace": "ns1",
            "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

fn parsed(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap()
}

fn is_ok(answer: &Answer) -> bool {
    answer.status == "200 OK"
}

fn is_unavailable(answer: &Answer) -> bool {
    answer.status == "503 Service Unavailable"
}

#[test]
fn metrics_server_answers_as_kube_proxys() {
    in_namespace("metrics_server_answers_as_kube_proxys", async || {
        shell("ip link set lo up");
        let api = ApiServer::start().await;
        let program = Program::start(&api, &["--masquerade-all"]);
        until(METRICS, "/healthz", is_ok).await;
        for sample in samples(METRICS_RECORD) {
            let answer = ask(METRICS, &sample.method, &sample.path, &sample.header).unwrap().without_times();
            let mut expected = sample.answer;
            if expected.body == "..." {
                expected.body.clone_from(&answer.body);
            }
            assert_eq!(answer, expected, "{} {} {}", sample.method, sample.path, sample.header);
        }
        the_process_tells_about_itself();
        drop(program);
        let gates = "--feature-gates=ComponentFlagz=false,ComponentStatusz=false";
        let _program = Program::start(&api, &[gates]);
        until(METRICS, "/healthz", is_ok).await;
        for path in ["/flagz", "/statusz"] {
            assert_eq!(get(METRICS, path).unwrap().status, "404 Not Found");
        }
    });
}

/// What the record does not hold, because it is another for each process.
fn the_process_tells_about_itself() {
    let configz = parsed(&get(METRICS, "/configz").unwrap());
    assert_eq!(configz["kubeproxy.config.k8s.io"]["iptables"]["masqueradeAll"], true);
    let flagz = get(METRICS, "/flagz").unwrap().body;
    assert!(
        flagz.contains("\nmasquerade-all=true\n") && flagz.contains("\nproxy-mode=iptables\n"),
        "{flagz}"
    );
    let object = |page: &str, kind: &str| {
        let accept = format!("Accept: application/json;v=v1beta1;g=config.k8s.io;as={kind}");
        let object = parsed(&ask(METRICS, "GET", page, &accept).unwrap());
        assert_eq!((&object["apiVersion"], &object["kind"]), (&"config.k8s.io/v1beta1".into(), &kind.into()));
        object
    };
    assert_eq!(object("/flagz", "Flagz")["flags"]["hostname-override"], "node-a");
    let paths = json!(["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"]);
    assert_eq!(object("/statusz", "Statusz")["paths"], paths);
    // The record ends after the counters were set to 0.
    assert_eq!(get(METRICS, "/metrics/slis").unwrap().body, "");
    assert!(get(METRICS, "/healthz").is_some());
    let slis = get(METRICS, "/metrics/slis").unwrap().body;
    assert!(
        slis.contains("healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 1\n"),
        "{slis}"
    );
    let metrics = get(METRICS, "/metrics").unwrap();
    let content_type = "content-type: text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
    assert!(metrics.headers.iter().any(|header| header == content_type), "{:?}", metrics.headers);
}

#[test]
fn health_follows_the_node_the_rules_and_the_endpoints() {
    with_programs("health_follows_the_node_the_rules_and_the_endpoints", async |programs| {
        shell("ip link set lo up");
        let api = ApiServer::start().await;
        let _program = Program::start(&api, &["--iptables-sync-period=1s"]);
        the_node_counts(&api).await;

        api.put(service("web", 1, FIRST));
        api.put(slice("web", &[(1, false), (2, false), (3, true)]));
        let two = until(FIRST, "/", is_ok).await;
        assert!(two.headers.contains(&"x-load-balancing-endpoint-weight: 2".to_owned()), "{two:?}");
        api.put(slice("web", &[(1, true)]));
        assert_eq!(parsed(&until(FIRST, "/", is_unavailable).await)["localEndpoints"], 0);

        // What waits for twice the sync period is too late.
        programs.broken(true);
        api.put(slice("web", &[(4, false)]));
        let late = until(HEALTH, "/livez", is_unavailable).await;
        assert_eq!(parsed(&late)["status"]["IPv4"]["healthy"], false);
        assert_eq!(parsed(&get(HEALTH, "/healthz").unwrap())["nodeEligible"], true);
        assert_eq!(parsed(&get(FIRST, "/").unwrap())["serviceProxyHealthy"], false);
        programs.broken(false);
        assert_eq!(parsed(&until(FIRST, "/", is_ok).await)["localEndpoints"], 1);
        until(HEALTH, "/healthz", is_ok).await;

        let taken = TcpListener::bind(("0.0.0.0", SECOND)).unwrap();
        api.put(service("second", 2, SECOND));
        api.put(slice("second", &[(5, false)]));
        let event = api.event("FailedToStartServiceHealthcheck").await;
        assert_eq!((&event["type"], &event["regarding"]["name"]), (&"Warning".into(), &"second".into()));
        assert_eq!(event["action"], "Listen");
        drop(taken);
        // Each sync tries again.
        api.put(slice("second", &[(6, false)]));
        until(SECOND, "/", is_ok).await;
        api.delete("Service", "web");
        until_closed(FIRST).await;
        assert!(get(SECOND, "/").is_some_and(|answer| is_ok(&answer)));
    });
}

/// From before anything is known of it to its return.
async fn the_node_counts(api: &ApiServer) {
    let unknown = until(HEALTH, "/healthz", is_unavailable).await;
    let body = parsed(&unknown);
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&false.into(), &true.into()), "{body}");
    assert!(get(HEALTH, "/livez").is_some_and(|answer| is_ok(&answer)));
    api.put(node(&json!([])));
    api.answer();
    let healthy = parsed(&until(HEALTH, "/healthz", is_ok).await);
    assert_eq!(healthy["status"]["IPv4"]["healthy"], true, "{healthy}");
    until(HEALTH, "/readyz", is_ok).await;

    api.put(node(&json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}])));
    let tainted = until(HEALTH, "/healthz", is_unavailable).await;
    assert_eq!(parsed(&tainted)["healthy"], true);
    assert!(get(HEALTH, "/livez").is_some_and(|answer| is_ok(&answer)));
    api.put(node(&json!([{"key": "DeletionCandidateOfClusterAutoscaler", "effect": "PreferNoSchedule"}])));
    until(HEALTH, "/healthz", is_ok).await;

    api.delete("Node", "node-a");
    until(HEALTH, "/healthz", is_unavailable).await;
    assert!(get(HEALTH, "/livez").is_some_and(|answer| is_ok(&answer)));
    let mut deleting = node(&json!([]));
    deleting["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    api.put(deleting);
    until(HEALTH, "/livez", is_ok).await;
    assert!(get(HEALTH, "/healthz").is_some_and(|answer| is_unavailable(&answer)));
    api.put(node(&json!([])));
    until(HEALTH, "/healthz", is_ok).await;
}

#[test]
fn taken_address_ends_the_program_with_an_event_if_it_must() {
    in_namespace("taken_address_ends_the_program_with_an_event_if_it_must", async || {
        shell("ip link set lo up");
        for (port, reason) in
            [(HEALTH, "FailedToStartProxierHealthcheck"), (METRICS, "FailedToStartMetricServer")]
        {
            let api = ApiServer::start().await;
            api.answer();
            let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
            let program = Program::start(&api, &["--bind-address-hard-fail"]);
            let event = api.event(reason).await;
            assert_eq!((&event["type"], &event["regarding"]["name"]), (&"Warning".into(), &"node-a".into()));
            assert_eq!(event["action"], "StartKubeProxy");
            assert!(event["note"].as_str().unwrap().contains(&port.to_string()), "{event}");
            assert_eq!(program.end().await.0, Some(1));
        }
    });
}

#[test]
fn file_names_the_kubeconfig_and_wins_over_flags() {
    in_namespace("file_names_the_kubeconfig_and_wins_over_flags", async || {
        shell("ip link set lo up");
        let api = ApiServer::start().await;
        api.answer();
        api.put(node(&json!([])));
        let folder = env::temp_dir().join(format!("fairlead-kubeconfig-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (kubeconfig, file) = (folder.join("kubeconfig"), folder.join("file"));
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": api.url()}}], "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
        fs::write(&kubeconfig, config.to_string()).unwrap();
        let configuration = json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration", "clientConnection": {"kubeconfig": kubeconfig, "qps": -1},
            "hostnameOverride": "node-a", "logging": {"format": "json"}});
        fs::write(&file, configuration.to_string()).unwrap();
        let given = format!("--config={}", file.display());
        let program = Program::with(&[&given, "--kubeconfig=/nonexistent"]);
        assert_eq!(api.event("Starting").await["regarding"]["name"], "node-a");
        until(HEALTH, "/readyz", is_ok).await;
        let configz = parsed(&get(METRICS, "/configz").unwrap());
        assert_eq!(configz["kubeproxy.config.k8s.io"]["clientConnection"]["qps"], -1.0);
        // A file that says something else ends it, to be started again.
        fs::write(&file, configuration.to_string().replace("node-a", "node-b")).unwrap();
        let (code, log) = program.end().await;
        assert_eq!(code, Some(1), "{log}");
        let first = log.lines().next().unwrap();
        let line: Value = serde_json::from_str(first).unwrap();
        assert!(line["message"].as_str().unwrap().contains("--kubeconfig"), "{log}");
        // An address in a flag wins over the one in the kubeconfig; flags that nobody reads do not count.
        fs::write(&kubeconfig, config.to_string().replace(&api.url(), "http://127.0.0.1:1")).unwrap();
        let _program = Program::with(&[&given, &format!("--master={}", api.url())]);
        until(HEALTH, "/readyz", is_ok).await;
        fs::remove_dir_all(folder).unwrap();
    });
}

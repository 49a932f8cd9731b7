//! The field that proxies work on: a cluster with one node, Services with hand-made slices, and clients.
//!
//! Every Service has two endpoints, `old` or `new` ones; a change makes one of the other. Some Services lead to a `sink`, whose port is
//! the bench's own: there the packets of a flow are timed, without any wake-up.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed, From, Options, PodSpec, Port,
    netns::Netns,
    pki,
    plan::{self, Families},
    programs::Variant,
    wait,
};
use serde_json::{Value, json};

use super::{
    contestants::{Contestant, Mode},
    holds::Guard,
    usage::Watch,
};
use crate::report::Samples;

const PORT: u16 = 8080;
const SINK_PORT: u16 = 9999;
const OLD: [&str; 2] = ["old-1", "old-2"];
const NEW: [&str; 2] = ["new-1", "new-2"];
const SINK: &str = "sink";
const CLIENT: &str = "client";
/// Every so manieth Service leads to the sink.
const SINK_EVERY: usize = 25;
const PACKETS: usize = 1_000;
/// Sockets that are made at once: to make one goes through the client's namespace, which the next packet would pay for.
const BATCH: usize = 100;
/// A lost packet is sent again after this.
const PATIENCE: Duration = Duration::from_millis(2);
/// Services that are asked before the first answer is read.
const ASKED_AT_ONCE: usize = 64;
/// After a wrong answer, which comes at once: each time is a new flow.
const PAUSE: Duration = Duration::from_millis(1);
const DEADLINE: Duration = Duration::from_mins(4);

/// Times of packets, from the client to the endpoint.
#[derive(Debug, Default)]
pub(crate) struct Packets {
    /// The first of a flow, to a Service.
    pub(crate) service: Samples,
    /// The first of a flow, to the endpoint itself.
    pub(crate) no_service: Samples,
    /// The second of a flow, to a Service.
    pub(crate) next: Samples,
}

/// A Service under test.
struct Subject {
    name: String,
    address: SocketAddr,
    renewed: bool,
}

/// See the module.
pub(crate) struct Field {
    bed: Bed,
    subjects: Vec<Subject>,
    sinks: Vec<SocketAddr>,
}

impl Field {
    /// A cluster with so many Services, and nobody who programs its node.
    pub(crate) fn build(services: usize) -> Result<Self> {
        let options = Options { nodes: 1, families: Families::V4, ..Options::from_env()? };
        let mut bed = Bed::start(options)?;
        for name in OLD.into_iter().chain(NEW) {
            bed.add_pod(PodSpec::new(name, "server").port(Port::udp(PORT)))?;
        }
        bed.add_pod(PodSpec::new(SINK, "sink"))?;
        bed.add_pod(PodSpec::new(CLIENT, "client"))?;
        let objects = (0..services).map(|i| service(&name(i))).collect::<Vec<_>>();
        bed.kubernetes().create_all(&objects)?;
        let slices = (0..services).map(|i| slice(&bed, i)).collect::<Result<Vec<_>>>()?;
        bed.kubernetes().create_all(&slices)?;
        let mut field = Self { bed, subjects: Vec::new(), sinks: Vec::new() };
        let found: Vec<Value> = field.bed.kubernetes().list("Service", "default", "bench=proxies")?;
        for object in &found {
            let text = |pointer| object.pointer(pointer).and_then(Value::as_str).context("a Service");
            let ip: IpAddr = text("/spec/clusterIP")?.parse()?;
            let (name, address) = (text("/metadata/name")?.to_owned(), SocketAddr::new(ip, 80));
            if name.ends_with(SINK) {
                field.sinks.push(address);
            } else {
                field.subjects.push(Subject { name, address, renewed: false });
            }
        }
        ensure!(found.len() == services, "{} Services", found.len());
        Ok(field)
    }

    /// How many Services there are.
    pub(crate) fn services(&self) -> usize {
        self.subjects.len() + self.sinks.len()
    }

    /// Starts a program on the node.
    pub(crate) fn start(&mut self, contestant: &Contestant) -> Result<Watch> {
        let Contestant { make, variant, mode, .. } = *contestant;
        (self.bed.options.programmer, self.bed.options.variant) = (make, variant);
        let flag = match mode {
            Mode::Default => None,
            Mode::Shortest => Some("--iptables-min-sync-period=1ms".to_owned()),
            Mode::Nftables => Some("--proxy-mode=nftables".to_owned()),
            Mode::NftablesShortest => Some(format!("--config={}", self.nftables_configuration()?)),
        };
        self.bed.start_programmer(1, flag.as_deref().as_slice())?;
        let pid = self.bed.programmer(1)?.process().id();
        let lock = self.bed.dir().join(format!("xtables-{}.lock", self.bed.node(1)?.name));
        let guard = if variant == Variant::Legacy { Guard::File(lock) } else { Guard::Children(pid) };
        Ok(Watch::on(pid, guard))
    }

    /// With a file, kube-proxy takes nothing else from flags.
    fn nftables_configuration(&self) -> Result<String> {
        let configuration = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
            "clientConnection": {"kubeconfig": self.bed.kubeconfig_of(pki::PROXY)},
            "clusterCIDR": plan::cluster_networks(Families::V4), "hostnameOverride": self.bed.node(1)?.name,
            "conntrack": {"maxPerCore": 0, "min": 0}, "nftables": {"minSyncPeriod": "1ms"},
        });
        let path = self.bed.dir().join("kube-proxy-nftables.json");
        fs::write(&path, configuration.to_string())?;
        Ok(path.display().to_string())
    }

    /// Ends it, and removes what it wrote.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.bed.stop_programmer(1)?;
        self.bed.clean_up(1).map(drop)
    }

    /// Waits until every Service leads to one of its endpoints.
    pub(crate) fn await_every_service(&self) -> Result<()> {
        self.client()?.run(|| await_answers(&self.subjects.iter().collect::<Vec<_>>()))?
    }

    /// Changes the endpoints of a Service, and says how long it took until they were asked.
    pub(crate) fn change_one(&mut self, n: usize) -> Result<Duration> {
        let n = n % self.subjects.len();
        let began = Instant::now();
        self.renew(n)?;
        self.client()?.run(|| await_answers(&[&self.subjects[n]]))??;
        Ok(began.elapsed())
    }

    /// Changes so many Services at once, and says how long it took until the last was as it should be.
    pub(crate) fn change_many(&mut self, count: usize) -> Result<Duration> {
        let began = Instant::now();
        let stride = (self.subjects.len() / count).max(1);
        let chosen: Vec<usize> = (0..count).map(|n| n * stride % self.subjects.len()).collect();
        for n in &chosen {
            self.renew(*n)?;
        }
        let chosen: Vec<_> = chosen.iter().map(|n| &self.subjects[*n]).collect();
        self.client()?.run(|| await_answers(&chosen))??;
        Ok(began.elapsed())
    }

    /// Sends the first two packets of many flows.
    pub(crate) fn packets(&self) -> Result<Packets> {
        let direct = SocketAddr::new(self.address(SINK)?.into(), SINK_PORT);
        let [service, next] = self.send(|n| self.sinks[n * 37 % self.sinks.len()])?;
        let [no_service, _] = self.send(|_| direct)?;
        Ok(Packets { service, no_service, next })
    }

    fn send(&self, target: impl Fn(usize) -> SocketAddr) -> Result<[Samples; 2]> {
        let sink = self.bed.namespace(From::Pod(SINK))?;
        let receiver = sink.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SINK_PORT)))??;
        receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut samples = [Samples::default(), Samples::default()];
        for batch in 0..PACKETS / BATCH {
            let senders =
                self.client()?.run(|| (0..BATCH).map(|_| sender()).collect::<Result<Vec<_>>>())??;
            for (n, sender) in senders.iter().enumerate() {
                let target = target(batch * BATCH + n);
                for packets in &mut samples {
                    let mut buffer = [0; 16];
                    let began = Instant::now();
                    sender.send_to(b"ping", target)?;
                    let (_, from) = receiver.recv_from(&mut buffer)?;
                    packets.push(began.elapsed());
                    // With the answer the flow is established.
                    receiver.send_to(b"pong", from)?;
                    sender.recv(&mut buffer)?;
                }
            }
        }
        Ok(samples)
    }

    fn renew(&mut self, n: usize) -> Result<()> {
        let subject = &self.subjects[n];
        let to = if subject.renewed { OLD } else { NEW };
        let patch = json!({"endpoints": endpoints(&self.bed, &to)?});
        self.bed.kubernetes().merge("EndpointSlice", "default", &subject.name, patch)?;
        self.subjects[n].renewed = !self.subjects[n].renewed;
        Ok(())
    }

    fn client(&self) -> Result<&Arc<Netns>> {
        self.bed.namespace(From::Pod(CLIENT))
    }

    fn address(&self, pod: &str) -> Result<Ipv4Addr> {
        Ok(self.bed.pod(pod)?.addresses.v4)
    }
}

/// A socket of a new flow, in the namespace of the moment.
fn sender() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}

/// Asks Services until one of the endpoints of the moment has answered for each. A part of them is asked at once, from a
/// port that is new each time.
fn await_answers(subjects: &[&Subject]) -> Result<()> {
    let began = Instant::now();
    let mut pending: HashMap<SocketAddr, &Subject> = subjects.iter().map(|it| (it.address, *it)).collect();
    while let Some((address, subject)) = pending.iter().next() {
        ensure!(began.elapsed() < DEADLINE, "{} at {address} does not lead where it should", subject.name);
        let part: Vec<SocketAddr> = pending.keys().take(ASKED_AT_ONCE).copied().collect();
        let answers = ask(&part)?;
        let wrong = answers.len();
        let right = answers.iter().filter(|(from, text)| {
            pending.get(from).is_some_and(|subject| subject.is_right(text)) && pending.remove(from).is_some()
        });
        if wrong > right.count() {
            wait::watch(PAUSE);
        }
    }
    Ok(())
}

/// What Services answer, and which; those that do not answer at once are left out.
fn ask(targets: &[SocketAddr]) -> Result<Vec<(SocketAddr, String)>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    for target in targets {
        // Refused at once, where nobody is programmed yet: the same as no answer.
        drop(socket.send_to(b"who\n", target));
    }
    let mut answers = Vec::new();
    let mut buffer = [0; 256];
    while answers.len() < targets.len() {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { break };
        answers.push((from, String::from_utf8_lossy(&buffer[..length]).into_owned()));
    }
    Ok(answers)
}

impl Subject {
    /// Whether this is the answer of one of its endpoints of the moment.
    fn is_right(&self, answer: &str) -> bool {
        let wanted = if self.renewed { NEW } else { OLD };
        wanted.iter().any(|server| answer.starts_with(&format!("{server} ")))
    }
}

fn name(i: usize) -> String {
    if i.is_multiple_of(SINK_EVERY) { format!("service-{i}-{SINK}") } else { format!("service-{i}") }
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"bench": "proxies"}},
           "spec": {"ports": [{"port": 80, "protocol": "UDP", "targetPort": PORT}]}})
}

fn slice(bed: &Bed, i: usize) -> Result<Value> {
    let (pods, port) = if i.is_multiple_of(SINK_EVERY) { ([SINK; 2], SINK_PORT) } else { (OLD, PORT) };
    let mut pods = pods.to_vec();
    pods.dedup();
    Ok(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name(i), "labels": {"kubernetes.io/service-name": name(i)}},
        "addressType": "IPv4", "endpoints": endpoints(bed, &pods)?,
        "ports": [{"name": "", "port": port, "protocol": "UDP"}]
    }))
}

fn endpoints(bed: &Bed, pods: &[&str]) -> Result<Value> {
    let node = &bed.node(1)?.name;
    pods.iter()
        .map(|pod| Ok(json!({"addresses": [bed.pod(pod)?.addresses.v4], "nodeName": node})))
        .collect::<Result<Vec<Value>>>()
        .map(Value::Array)
}

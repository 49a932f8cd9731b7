//! The compiler against the genuine kube-proxy: the same random Services, slices and node; the rules that each installs
//! in a real kernel; and every packet that may tell a difference, sent through both kernels and traced through both
//! sets of rules.
//!
//! ```text
//!              API server ──> kube-proxy ──> a node of the bed ──read──> tracer ─┐
//!  world ────>     │                             ^ packets ── fates ─────────────┼─ the same?
//!              API server ──> compiler ────> a namespace ────────read──> tracer ─┤
//!                                                ^ packets ── fates ─────────────┘
//! ```
//!
//! Ours is compiled from the objects that the API server has, as changes to what it was before, and restored by the same
//! documents that the programmer writes. Both nodes have the same addresses, and links that this process holds
//! ([`crate::tun`]).
//!
//! Invariant: what is compared follows from the seed alone, but for what the kernels' chance decides; a difference is
//! told with all that is needed to see it again.

mod agreement;
mod comparison;
mod counts;
mod kernel;
mod marker;
mod packets;
mod place;
mod services;
mod shapes;
mod side;
mod slices;
mod world;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fairlead_compiler::{Config, Dump, Host, NodeFacts};
use fairlead_objects::{EndpointSlice, Service, ServiceKey, ServiceObject};
use serde_json::Value;

use self::{
    kernel::{Both, FAMILIES, Kernel, Reply, of},
    marker::Marker,
    packets::{Frontends, Question},
    place::Place,
    side::Side,
    world::{Doomed, Step, World},
    writer::{Writer, delete_all},
};
use crate::{
    Bed,
    programs::Variant,
    record::Record,
    tun::{Harness, Setup},
};

/// Seconds for which a client has to be remembered to be asked about it.
const LASTING: u32 = 60;

/// How both are set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Flags for kube-proxy.
    pub flags: &'static [&'static str],
    /// The same for the compiler, which has kube-proxy's defaults and the bed's Pod network.
    pub config: fn(&mut Config),
    /// Which iptables both write to. kube-proxy has a node of the bed for each, so that one's rules are never in the
    /// other's way.
    pub variant: Variant,
    /// What is done to show that it would be noticed.
    pub fault: Fault,
}

/// Something wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// Words for iptables, which changes our node's rules of IPv4 after they were read.
    Kernel(&'static [&'static str]),
    /// The tracer is told other rules than both nodes have.
    Tracer(fn(&mut Dump)),
}

/// How many moments are compared, and where they come from.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Seed of the random choices: `FAIRLEAD_SEED`.
    pub seed: u64,
    /// Number of moments: `FAIRLEAD_STATES`.
    pub states: usize,
}

impl Extent {
    /// From the environment, else so many moments from this seed.
    pub fn from_env(seed: u64, states: usize) -> Result<Self> {
        let number = |name: &str, default: u64| match std::env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name}={text}: expected a number")),
            Err(_) => Ok(default),
        };
        let asked = number("FAIRLEAD_STATES", u64::try_from(states)?)?;
        Ok(Self { seed: number("FAIRLEAD_SEED", seed)?, states: usize::try_from(asked)? })
    }
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Moments.
    pub states: usize,
    /// Packets, sent and traced through both.
    pub packets: usize,
    /// Packets that a Service did something with.
    pub handled: usize,
    /// Packets of which many were sent, to count how often each endpoint gets one.
    pub counted: usize,
    /// Longest that kube-proxy took to catch up.
    pub slowest: Duration,
}

/// Runs kube-proxy and the compiler side by side through a series of random moments, until they differ.
pub fn run(bed: &mut Bed, settings: Settings, extent: Extent) -> Result<Report> {
    let Extent { seed, states } = extent;
    beside(bed, settings, |run| run.random(extent))
        .with_context(|| format!("again with FAIRLEAD_SEED={seed} FAIRLEAD_STATES={states}"))
}

/// The same with objects of shapes that nobody expects: they come, and they go.
pub fn run_odd_shapes(bed: &mut Bed, settings: Settings) -> Result<Report> {
    beside(bed, settings, odd_shapes)
}

fn odd_shapes(run: &mut Run<'_>) -> Result<Report> {
    let mut report = Report::default();
    let arrival = shapes::arrive();
    run.compare(&arrival, &mut report).context("when they come")?;
    run.compare(&shapes::leave(&arrival), &mut report).context("when they go")?;
    Ok(report)
}

/// Does `job` while kube-proxy runs.
fn beside(
    bed: &mut Bed,
    settings: Settings,
    job: impl FnOnce(&mut Run<'_>) -> Result<Report>,
) -> Result<Report> {
    let number = match settings.variant {
        Variant::Nft => 1,
        Variant::Legacy => 2,
    };
    bed.options.variant = settings.variant;
    // A case that failed may have left it running.
    drop(bed.stop_programmer(number));
    clear(bed)?;
    let node = bed.node(number)?.clone();
    let genuine = Harness::attach(bed.node_netns(number)?, &node, &links())?;
    let record = Record::open()?;
    let lock = |name: &str| record.dir().join(format!("xtables-{name}.lock"));
    let genuine = Kernel::new("kube-proxy", genuine, settings.variant, lock("read"));
    genuine.clear()?;
    let flags = [&["--iptables-min-sync-period=1ms"], settings.flags].concat();
    bed.start_programmer(number, &flags)?;
    let ours = Harness::create(&record, "ours", &node, &links())?;
    let config = side::config(FAMILIES[0], settings.config);
    let place = Place {
        routes_loopback: config.localhost_node_ports_active(FAMILIES[0]),
        variant: settings.variant,
        node,
    };
    if place.routes_loopback {
        ours.netns().sysctl(&[("ipv4/conf/all/route_localnet", "1")])?;
    }
    let ours = Kernel::new("our", ours, place.variant, lock("ours"));
    let report = job(&mut Run::new(bed, settings, place, genuine, ours)?)?;
    bed.stop_programmer(number)?;
    Ok(report)
}

fn links() -> Setup {
    Setup { pods: packets::PODS.to_owned(), world: packets::WORLD.to_owned() }
}

/// Removes what an earlier run left in the namespaces of the world.
fn clear(bed: &Bed) -> Result<()> {
    for namespace in world::NAMESPACES {
        let object = crate::kubernetes::namespace(namespace);
        bed.kubernetes().apply(&object)?;
        for kind in ["Service", "EndpointSlice"] {
            let objects: Vec<Value> = bed.kubernetes().list(kind, namespace, "")?;
            let names = objects.iter().filter_map(|object| object.pointer("/metadata/name")?.as_str());
            let doomed = names.filter(|name| *name != "kubernetes").map(|name| Doomed {
                kind,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            });
            delete_all(bed.kubernetes(), &doomed.collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

/// What the API server has at a moment.
struct Moment {
    services: BTreeMap<ServiceKey, Service>,
    slices: Vec<EndpointSlice>,
}

struct Run<'a> {
    bed: &'a Bed,
    settings: Settings,
    place: Place,
    facts: Both<NodeFacts>,
    hosts: Both<Host>,
    genuine: Kernel,
    ours: Kernel,
    sides: Both<Side>,
    writer: Writer,
    /// The Services of the moment before: their frontends must be gone, or somebody else's.
    before: BTreeMap<ServiceKey, Service>,
}

impl<'a> Run<'a> {
    fn new(
        bed: &'a Bed,
        settings: Settings,
        place: Place,
        genuine: Kernel,
        mut ours: Kernel,
    ) -> Result<Self> {
        let [v4, v6] = FAMILIES;
        let facts = [place.facts(v4)?, place.facts(v6)?];
        let mut side = |facts: &NodeFacts| Side::new(&mut ours, facts.clone(), settings.config);
        let sides = [side(&facts[0])?, side(&facts[1])?];
        let hosts = facts.each_ref().map(Host::from);
        let (writer, before) = (Writer::default(), BTreeMap::new());
        Ok(Self { bed, settings, place, facts, hosts, genuine, ours, sides, writer, before })
    }

    fn random(&mut self, extent: Extent) -> Result<Report> {
        let mut world = World::new(extent.seed);
        let mut report = Report::default();
        for state in 0..extent.states {
            self.compare(&world.step(), &mut report).with_context(|| format!("state {state}"))?;
        }
        ensure!(report.handled * 4 > report.packets, "most packets met no Service: {report:?}");
        ensure!(report.counted > 0, "nothing was up to chance: {report:?}");
        Ok(report)
    }

    /// Takes a step on both sides, and compares what comes of the packets to the Services that it touches.
    fn compare(&mut self, step: &Step, report: &mut Report) -> Result<()> {
        self.writer.write(self.bed.kubernetes(), step)?;
        let marker = Marker::next();
        marker.write(self.bed.kubernetes(), report.states == 0)?;
        let (moment, waited) = self.catch_up(marker)?;
        report.slowest = report.slowest.max(waited);
        self.break_something()?;
        let asked = self.questions(step, &moment);
        let questions: Vec<Question> = asked.iter().flat_map(|(_, questions)| questions).cloned().collect();
        let (genuine, ours) = self.ask(&questions)?;
        let mut replies = genuine.iter().zip(&ours);
        for (key, questions) in &asked {
            for (question, (theirs, own)) in questions.iter().zip(&mut replies) {
                let host = of(&self.hosts, question.family());
                comparison::compare(question, host, (&self.genuine, theirs), (&self.ours, own))
                    .with_context(|| moment.about(key))?;
                report.handled += usize::from(theirs.meets_service());
            }
        }
        report.counted += self.count(&questions, &genuine, report.states)?;
        for (family, side) in FAMILIES.into_iter().zip(&self.sides) {
            side.shadow(self.genuine.installed(family))?;
        }
        report.packets += questions.len();
        self.before = moment.services;
        report.states += 1;
        Ok(())
    }

    /// Has both sides' rules made from what the API server has, and read. Tells how long kube-proxy took.
    fn catch_up(&mut self, marker: Marker) -> Result<(Moment, Duration)> {
        let Self { bed, genuine, ours, sides, .. } = self;
        let began = Instant::now();
        std::thread::scope(|scope| {
            let theirs = scope.spawn(|| -> Result<Duration> {
                marker.await_in(genuine.harness())?;
                let waited = began.elapsed();
                for family in FAMILIES {
                    genuine.read(family)?;
                }
                Ok(waited)
            });
            let follow = || -> Result<Moment> {
                let moment = Moment::read(bed)?;
                for side in sides {
                    side.follow(ours, &moment.services, &moment.slices)?;
                }
                Ok(moment)
            };
            let moment = follow();
            let waited = theirs.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((moment?, waited.with_context(|| bed.log_tails())?))
        })
    }

    /// What the settings say to show that it is noticed.
    fn break_something(&mut self) -> Result<()> {
        match self.settings.fault {
            Fault::None => {}
            Fault::Kernel(words) => {
                let program = self.place.variant.program("iptables");
                self.ours.harness().netns().output(Command::new(program).args(words))?;
            }
            Fault::Tracer(change) => {
                self.genuine.pretend(change);
                self.ours.pretend(change);
            }
        }
        Ok(())
    }

    /// All questions about the Services that a step touches.
    fn questions(&self, step: &Step, moment: &Moment) -> Vec<(ServiceKey, Vec<Question>)> {
        let touched = step.touched.iter();
        let touched: BTreeSet<ServiceKey> =
            touched.map(|(namespace, name)| ServiceKey::new(namespace.as_str(), name.as_str())).collect();
        let mut asked = Vec::new();
        for facts in &self.facts {
            let (old, new) = (Frontends::of(&self.before, facts), Frontends::of(&moment.services, facts));
            for key in &touched {
                let own = moment.slices_of(key);
                let affinity = moment.services.get(key).and_then(|service| service.client_ip_affinity);
                let sticks = affinity.is_some_and(|seconds| seconds >= LASTING);
                let frontends: BTreeSet<_> = old.at(key).chain(new.at(key)).collect();
                let frontends = frontends.into_iter().filter(|frontend| !new.is_disputed(frontend));
                let questions = frontends.flat_map(|frontend| {
                    // What it had may be somebody else's now, who forgets his clients.
                    let sticks = sticks && new.at(key).any(|own| own == frontend);
                    packets::questions(frontend, &own, facts, &self.place, sticks)
                });
                asked.push((key.clone(), questions.collect()));
            }
        }
        asked
    }

    /// Has both kernels count how often endpoints get a connection, for one of the questions whose answer is up to chance:
    /// another in each moment. Tells how many were counted.
    fn count(&mut self, questions: &[Question], replies: &[Reply], moment: usize) -> Result<usize> {
        let all = questions.iter().zip(replies);
        let all: Vec<_> =
            all.filter(|(question, reply)| counts::is_chance(question, &reply.traced)).collect();
        let Some((question, reply)) = all.get(moment % all.len().max(1)) else { return Ok(0) };
        let count = |kernel: &mut Kernel| counts::count(kernel.harness(), question, &reply.traced);
        std::thread::scope(|scope| {
            let theirs = scope.spawn(|| count(&mut self.genuine).context("kube-proxy"));
            let own = count(&mut self.ours).context("ours");
            theirs.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            own
        })?;
        Ok(1)
    }

    /// Both kernels at once.
    fn ask(&mut self, questions: &[Question]) -> Result<(Vec<Reply>, Vec<Reply>)> {
        let Self { genuine, ours, hosts, .. } = self;
        let hosts: &Both<Host> = hosts;
        std::thread::scope(|scope| {
            let theirs = scope.spawn(|| genuine.ask(questions, hosts));
            let own = ours.ask(questions, hosts);
            let theirs = theirs.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((theirs?, own?))
        })
    }
}

impl Moment {
    fn read(bed: &Bed) -> Result<Self> {
        let services: Vec<ServiceObject> = bed.kubernetes().list("Service", "", "")?;
        let services = services.into_iter().map(Service::from);
        Ok(Self {
            services: services.map(|service| (service.key.clone(), service)).collect(),
            slices: bed.kubernetes().list("EndpointSlice", "", "")?,
        })
    }

    fn slices_of(&self, key: &ServiceKey) -> Vec<&EndpointSlice> {
        self.slices.iter().filter(|slice| slice.service_key().as_ref() == Some(key)).collect()
    }

    /// A Service and its slices, for whoever reads about a difference.
    fn about(&self, key: &ServiceKey) -> String {
        let slices = self.slices_of(key);
        let slices: Vec<String> =
            slices.iter().filter_map(|slice| serde_json::to_string(slice).ok()).collect();
        format!("about {key}\n{:#?}\nslices\n{}", self.services.get(key), slices.join("\n"))
    }
}

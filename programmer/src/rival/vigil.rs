//! Another proxy that comes while we work: a kube-proxy that `kubeadm upgrade` or an operator brings back.
//!
//! It is known by two signs. It answers on a metrics address, where that is not our own (kube-proxy's is the same unless one
//! of them is told otherwise, and then we have the port). And it writes: what the sync loop repairs has chains that no rules
//! of ours have, and every kube-proxy's.
//!
//! Whoever is found is told of, not given way to: a node that nobody programs, because somebody answers on a port, is worse
//! than one with two that do, and which of them has to go only its operator knows.
//!
//! Invariant: each appearance is told once, and its end once.

use std::{collections::BTreeSet, fmt, net::SocketAddr, sync::Arc, time::Duration};

use fairlead_compiler::ChainName;
use fairlead_daemon::readiness::Gate;
use fairlead_objects::Family;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tracing::{info, warn};

use super::{any, places};
use crate::{
    events::{Events, Notice, Subject},
    metrics::{Metrics, RivalSign},
};

/// What sync loops saw of others.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When another program had last written as kube-proxy does, and what.
    written: Option<(Instant, Family, ChainName)>,
}

impl Seen {
    /// The last chain that only another proxy writes.
    pub fn chain(&self) -> Option<&ChainName> {
        self.written.as_ref().map(|(_, _, chain)| chain)
    }
}

/// Where sync loops tell what others did. Clones tell the same.
#[derive(Clone, Debug)]
pub struct Signs(Arc<watch::Sender<Seen>>);

impl Signs {
    /// Nothing seen yet.
    pub fn new() -> (Self, watch::Receiver<Seen>) {
        let (sender, receiver) = watch::channel(Seen::default());
        (Self(Arc::new(sender)), receiver)
    }

    /// Others changed rules of `family`; `chain` is one that only another proxy writes, if they wrote such.
    pub fn changed(&self, family: Family, chain: Option<&ChainName>) {
        self.0.send_modify(|seen| {
            if let Some(chain) = chain {
                seen.written = Some((Instant::now(), family, chain.clone()));
            }
        });
    }
}

/// How often it looks, and for how long a sign stands for what it was a sign of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Without a reason.
    pub(crate) look: Duration,
    /// Between looks, whatever others do.
    pub(crate) rest: Duration,
    /// Whoever does not answer any more is gone by the next look.
    pub(crate) answer: Duration,
    /// kube-proxy writes when a Service changes, and everything once an hour.
    pub(crate) writing: Duration,
}

impl Pace {
    pub(crate) const USUAL: Self = Self {
        look: Duration::from_secs(30),
        rest: Duration::from_secs(1),
        answer: Duration::from_secs(15),
        writing: Duration::from_mins(65),
    };
}

/// What shows that there is another.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sign {
    Answers(SocketAddr, &'static str),
    Writes(Family, ChainName),
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answers(place, mode) => write!(f, "http://{place}/proxyMode answers {mode}"),
            Self::Writes(family, chain) => {
                write!(f, "{family} chain {chain} was written, as it does and we do not")
            }
        }
    }
}

/// Looks for other proxies as long as we work.
#[derive(Debug)]
pub(crate) struct Vigil {
    places: BTreeSet<SocketAddr>,
    pace: Pace,
    answered: Option<(Instant, SocketAddr, &'static str)>,
    /// It was told that there is one, and not yet that it is gone.
    told: bool,
    gate: Gate,
    events: Events,
    metrics: Metrics,
}

impl Vigil {
    /// `ours` is where we serve metrics; `gate` says what is wrong, and stays open.
    pub(crate) fn new(
        ours: Option<SocketAddr>,
        pace: Pace,
        gate: Gate,
        events: Events,
        metrics: Metrics,
    ) -> Self {
        metrics.observe_rival(RivalSign::Answer, false);
        metrics.observe_rival(RivalSign::Rules, false);
        Self { places: places(ours), pace, answered: None, told: false, gate, events, metrics }
    }

    /// Looks now and then, and when others changed rules. Never ends: drop it.
    pub(crate) async fn keep(mut self, mut seen: watch::Receiver<Seen>) {
        let mut due = interval_at(Instant::now() + self.pace.look, self.pace.look);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = due.tick() => {}
                Ok(()) = seen.changed() => {}
            }
            let written = seen.borrow_and_update().written.clone();
            if let Some((place, mode)) = any(&self.places).await {
                self.answered = Some((Instant::now(), place, mode));
            }
            self.tell(&self.signs(written));
            sleep(self.pace.rest).await;
        }
    }

    /// The signs that stand now.
    fn signs(&self, written: Option<(Instant, Family, ChainName)>) -> Vec<Sign> {
        let answers = self.answered.filter(|(at, ..)| at.elapsed() < self.pace.answer);
        let writes = written.filter(|(at, ..)| at.elapsed() < self.pace.writing);
        let answers = answers.map(|(_, place, mode)| Sign::Answers(place, mode));
        answers.into_iter().chain(writes.map(|(_, family, chain)| Sign::Writes(family, chain))).collect()
    }

    fn tell(&mut self, signs: &[Sign]) {
        let (answers, writes): (Vec<_>, Vec<_>) =
            signs.iter().partition(|sign| matches!(sign, Sign::Answers(..)));
        self.metrics.observe_rival(RivalSign::Answer, !answers.is_empty());
        self.metrics.observe_rival(RivalSign::Rules, !writes.is_empty());
        match (signs.is_empty(), self.told) {
            (false, false) => {
                let signs: Vec<_> = signs.iter().map(ToString::to_string).collect();
                self.appeared(&signs.join(", "));
            }
            (true, true) => self.disappeared(),
            _ => {}
        }
    }

    fn appeared(&mut self, signs: &str) {
        let text = format!(
            "kube-proxy or another fairlead-programmer runs on this node, too ({signs}): both write the same rules, and undo \
             each other's work; take one of them off this node"
        );
        warn!("{text}");
        self.gate.trouble(text.as_str());
        self.notify(Subject::NodeInTrouble, "AnotherProxyRuns", text);
        self.told = true;
    }

    fn disappeared(&mut self) {
        let text = "the other proxy of this node is gone";
        info!("{text}");
        self.gate.well();
        self.notify(Subject::Node, "AnotherProxyGone", text.to_owned());
        self.told = false;
    }

    fn notify(&self, subject: Subject, reason: &'static str, note: String) {
        self.events.tell(Notice { subject, reason, action: "LookForProxies", note });
    }
}

#[cfg(test)]
mod tests {
    use fairlead_daemon::{metrics::Metrics as Registry, readiness::Readiness};
    use tokio::{net::TcpListener, sync::mpsc, time::timeout};

    use super::*;
    use crate::rival::testing::{serve, server};

    /// A vigil over one address, hasty.
    struct Bench {
        signs: Signs,
        notices: mpsc::Receiver<Notice>,
        registry: Registry,
        readiness: Readiness,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    const HASTY: Pace = Pace {
        look: Duration::from_millis(5),
        rest: Duration::from_millis(1),
        answer: Duration::from_millis(100),
        writing: Duration::from_millis(100),
    };

    impl Bench {
        fn start(address: Option<SocketAddr>, pace: Pace) -> Self {
            let registry = Registry::new();
            let readiness = Readiness::default();
            let gate = readiness.gate("other proxies");
            gate.open();
            let (events, notices) = Events::new();
            let (signs, seen) = Signs::new();
            let mut vigil = Vigil::new(None, pace, gate, events, registry.register(Metrics::register));
            // Not the usual address: something may be there on this machine.
            vigil.places = address.into_iter().collect();
            let task = tokio::spawn(vigil.keep(seen));
            Self { signs, notices, registry, readiness, task }
        }

        async fn notice(&mut self) -> Notice {
            timeout(Duration::from_secs(30), self.notices.recv()).await.expect("a notice in time").unwrap()
        }

        fn value(&self, sign: &str) -> String {
            let name = format!("fairlead_rival_proxies{{sign=\"{sign}\"}} ");
            let text = self.registry.encode().unwrap();
            text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().to_owned()
        }
    }

    #[tokio::test]
    async fn proxy_that_answers_later_is_told_of_once_and_its_end_once() {
        // Not where questions come from, whose port could otherwise be this one.
        let address = TcpListener::bind("127.0.0.2:0").await.unwrap().local_addr().unwrap();
        let mut bench = Bench::start(Some(address), HASTY);
        for mode in ["iptables", "nftables"] {
            let (_, end) = serve(TcpListener::bind(address).await.unwrap(), mode);
            let Notice { subject, reason, note, .. } = bench.notice().await;
            assert_eq!((subject, reason), (Subject::NodeInTrouble, "AnotherProxyRuns"));
            assert!(note.contains(&format!("http://{address}/proxyMode answers {mode}")), "{note}");
            assert_eq!((bench.value("answer"), bench.value("rules")), ("1".into(), "0".into()));
            assert!(bench.readiness.is_ready(), "it goes on writing");
            let page = bench.readiness.to_string();
            assert!(page.starts_with("[+]other proxies was ok, now: kube-proxy or another"), "{page}");
            drop(end);
            let Notice { subject, reason, .. } = bench.notice().await;
            assert_eq!((subject, reason), (Subject::Node, "AnotherProxyGone"), "nothing is told in between");
            assert_eq!(bench.value("answer"), "0");
            assert_eq!(bench.readiness.to_string(), "[+]other proxies ok\n");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn proxy_that_only_writes_is_known_by_what_it_wrote_and_gone_after_an_hour_of_silence() {
        let mut bench = Bench::start(None, Pace::USUAL);
        bench.signs.changed(Family::V4, None);
        bench.signs.changed(Family::V6, Some(&ChainName::from("KUBE-SEP-THEIRS")));
        bench.signs.changed(Family::V4, None);
        let note = bench.notice().await.note;
        assert!(note.contains("IPv6 chain KUBE-SEP-THEIRS was written"), "{note}");
        assert_eq!(bench.value("rules"), "1");
        sleep(Duration::from_hours(1)).await;
        assert_eq!(bench.value("rules"), "1");
        sleep(Duration::from_mins(6)).await;
        assert_eq!((bench.notice().await.reason, bench.value("rules")), ("AnotherProxyGone", "0".into()));
    }

    #[tokio::test]
    async fn change_of_rules_by_others_is_a_reason_to_look_at_once() {
        let (address, _end) = server("iptables").await;
        let mut bench = Bench::start(Some(address), Pace { look: Duration::from_hours(1), ..HASTY });
        bench.signs.changed(Family::V4, None);
        assert_eq!(bench.notice().await.reason, "AnotherProxyRuns");
    }
}

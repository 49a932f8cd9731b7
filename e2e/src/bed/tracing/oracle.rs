//! Holds what was seen against what the tracer says.
//!
//! Invariant: what was seen either agrees and is counted, or is an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::PoisonError,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    super::Bed,
    Agreement, Asked, Asker, Sight,
    flows::{self, Flow},
    forecast::{End, Forecast, Way},
    history::History,
    memory::{Memory, Recalled},
    route::{Start, Verdicts, source_towards},
    world::World,
};
use crate::probe::{Outcome, Span};

/// The kernel forgets a flow of datagrams that nobody answers after 30 s.
const FLOW_LASTS: Duration = Duration::from_secs(25);

/// Flows of datagrams, by client, its port and the target: where they were led, and when last.
pub(super) type Flows = BTreeMap<(String, u16, SocketAddr), (End, Instant)>;

/// A forecast for clients remembered in some way, and how often each of its ways was taken.
struct Case {
    verdicts: Verdicts,
    forecast: Forecast,
    counts: Vec<u64>,
}

/// Answers for one target.
struct Oracle<'a> {
    bed: &'a Bed,
    start: Start,
    history: &'a History,
    worlds: &'a [World],
    cases: Vec<Case>,
}

impl Sight {
    fn is(&self, way: &Way) -> bool {
        let listens = matches!(way.end, End::Answered { .. } | End::Host { .. });
        match self {
            Self::Outcome(outcome) => way.end.is(outcome),
            Self::Flow { flow, open } => way.flow == Some(*flow) && (listens || !open),
            Self::Open => listens,
            Self::Closed => !listens,
        }
    }
}

impl Bed {
    /// Fails when the tracer does not find what was seen. Returns the ends that what was seen last may mean.
    pub(in crate::bed) fn check_trace(
        &self,
        asker: &Asker<'_>,
        history: &History,
        all: &[Asked],
    ) -> Result<Vec<End>> {
        let worlds = self.worlds(history)?;
        let mut memory = self.tracer.memory.lock().unwrap_or_else(PoisonError::into_inner);
        self.sync(&mut memory, history, &worlds)?;
        let mut last = Vec::new();
        for (target, seen) in all {
            let Some(mut oracle) = self.oracle(asker, *target, history, &worlds)? else {
                self.check_unreachable(*target, seen)?;
                continue;
            };
            last = oracle.check(seen, &mut memory).with_context(|| {
                format!("the tracer disagrees with the kernel on {target}/{}", asker.protocol)
            })?;
            self.count(oracle.start, history, seen.len());
        }
        let began = all.iter().filter_map(|(_, seen)| Some(seen.first()?.1.from)).min();
        self.check_lists(&memory, history, began)?;
        Ok(last)
    }

    /// As [`Bed::check_trace`], for a datagram of a flow that may have been led somewhere already.
    pub(in crate::bed) fn check_flow(
        &self,
        asker: &Asker<'_>,
        history: &History,
        ports: (u16, SocketAddr),
        (outcome, span): (&Outcome, Span),
    ) -> Result<()> {
        let (port, target) = ports;
        let worlds = self.worlds(history)?;
        let mut memory = self.tracer.memory.lock().unwrap_or_else(PoisonError::into_inner);
        self.sync(&mut memory, history, &worlds)?;
        let Some(mut oracle) = self.oracle(asker, target, history, &worlds)? else {
            return self.check_unreachable(target, &[(Sight::Outcome(outcome.clone()), span)]);
        };
        let key = (asker.client.name().to_owned(), port, target);
        let mut flows = self.tracer.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            flows.get(&key).filter(|(_, last)| last.elapsed() < FLOW_LASTS).map(|(end, _)| end.clone());
        if let Some(end) = known {
            if end.is(outcome) || (self.is_gone(&end) && End::Lost.is(outcome)) {
                flows.insert(key, (end, Instant::now()));
                self.count(oracle.start, history, 1);
                return Ok(());
            }
            let possible = oracle.is_possible(&end, &memory, span)?;
            ensure!(
                !possible,
                "the flow to {target} left `{end}` for `{outcome}`, though the rules lead there"
            );
        }
        let seen = [(Sight::Outcome(outcome.clone()), span)];
        let ends = oracle.check(&seen, &mut memory).with_context(|| {
            format!("the tracer disagrees with the kernel on a flow to {target}/{}", asker.protocol)
        })?;
        // A packet that rules refuse or drop begins no flow.
        match ends.into_iter().find(|end| oracle.begins_flow(end)) {
            Some(end) => drop(flows.insert(key, (end, Instant::now()))),
            None => drop(flows.remove(&key)),
        }
        self.count(oracle.start, history, 1);
        Ok(())
    }

    /// What happens on an open connection: whoever was there first stays there for as long as there is somebody.
    pub(in crate::bed) fn check_open(&self, ends: &mut Vec<End>, outcome: &Outcome) -> Result<()> {
        let possible: Vec<End> = ends.iter().filter(|end| end.is(outcome)).cloned().collect();
        if possible.is_empty() {
            let excused = |end: &End| {
                matches!(end, End::Host { .. })
                    || (self.is_gone(end) && !matches!(outcome, Outcome::Answered(_)))
            };
            let all: Vec<String> = ends.iter().map(End::to_string).collect();
            ensure!(ends.iter().all(excused), "the connection to {all:?} brought: {outcome}");
        } else {
            *ends = possible;
        }
        self.agreed(|agreement| agreement.requests += 1);
        Ok(())
    }

    /// The ways of a client's connections to a target, by its ends, as the first node knows them; none if they meet no
    /// node.
    pub(in crate::bed) fn flows(
        &self,
        asker: &Asker<'_>,
        target: SocketAddr,
    ) -> Result<BTreeMap<SocketAddr, Flow>> {
        let Some(start) = Self::beginning(asker, target)? else { return Ok(BTreeMap::new()) };
        let Some(node) = self.first_node(start) else { return Ok(BTreeMap::new()) };
        let entries = flows::read(self.node_netns(node)?, asker.protocol, target)?;
        let own = entries.into_iter().filter(|entry| entry.source.ip() == start.source);
        Ok(own.map(|entry| (entry.source, entry.flow)).collect())
    }

    fn beginning(asker: &Asker<'_>, target: SocketAddr) -> Result<Option<Start>> {
        let source: Option<IpAddr> = source_towards(asker.client, target.ip())?;
        let Asker { origin, protocol, .. } = *asker;
        Ok(source.map(|source| Start { origin, source, target, protocol }))
    }

    fn oracle<'a>(
        &'a self,
        asker: &Asker<'_>,
        target: SocketAddr,
        history: &'a History,
        worlds: &'a [World],
    ) -> Result<Option<Oracle<'a>>> {
        let start = Self::beginning(asker, target)?;
        Ok(start.map(|start| Oracle { bed: self, start, history, worlds, cases: Vec::new() }))
    }

    /// A client without a route sends nothing.
    fn check_unreachable(&self, target: SocketAddr, seen: &[(Sight, Span)]) -> Result<()> {
        for (sight, _) in seen {
            let unreachable = matches!(sight, Sight::Outcome(Outcome::Unreachable(_)));
            ensure!(unreachable, "the client has no route to {target}, yet: {sight:?}");
        }
        self.agreed(|agreement| agreement.direct += seen.len());
        Ok(())
    }

    /// Takes over which clients the nodes remember. They may not forget one before its time, unless the rules about it
    /// went. (A test that takes an endpoint away and gives it back has to ask in between.)
    fn sync(&self, memory: &mut Memory, history: &History, worlds: &[World]) -> Result<()> {
        let rules = worlds.first().filter(|_| !history.is_changing());
        for (node, parsed) in rules.into_iter().flatten() {
            for (list, seconds) in &parsed.recalls {
                if let Some((_, _, client)) = memory.forgotten(*node, list, *seconds, &history.lists) {
                    bail!("node {node} forgot {client} in {list} before {seconds} s had passed");
                }
            }
        }
        memory.sync(&history.lists, self.tracer.began);
        Ok(())
    }

    /// Fails when a node did not remember a client that the tracer saw it remember.
    fn check_lists(&self, memory: &Memory, history: &History, began: Option<Instant>) -> Result<()> {
        let Some(began) = began.filter(|_| !history.is_changing()) else { return Ok(()) };
        if memory.fresh(began).next().is_none() {
            return Ok(());
        }
        let lists = self.lists(history)?;
        for place in memory.fresh(began) {
            let (node, list, client) = place;
            ensure!(lists.contains(place), "node {node} should remember {client} in {list}, and does not");
        }
        Ok(())
    }

    fn count(&self, start: Start, history: &History, requests: usize) {
        let meets_node = self.first_node(start).is_some();
        self.agreed(|agreement| {
            *(if meets_node { &mut agreement.requests } else { &mut agreement.direct }) += requests;
            if meets_node && history.is_changing() {
                agreement.changing += requests;
            }
        });
    }

    fn agreed(&self, add: impl FnOnce(&mut Agreement)) {
        add(&mut self.tracer.agreement.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Oracle<'_> {
    fn check(&mut self, seen: &[(Sight, Span)], memory: &mut Memory) -> Result<Vec<End>> {
        let mut last = Vec::new();
        let exact = !self.history.is_changing();
        for (sight, span) in seen {
            let case = self.case(memory, *span)?;
            let taken = case.forecast.ways.iter().position(|way| sight.is(way));
            let Some(place) = taken else { bail!("got {sight}; traced: {}", case.forecast) };
            if let Some(count) = case.counts.get_mut(place) {
                *count += 1;
            }
            let ways = || case.forecast.ways.iter().filter(|way| sight.is(way));
            let lists: BTreeSet<_> = ways().map(|way| &way.lists).collect();
            let sure = exact && lists.len() == 1;
            for lists in lists {
                memory.put(lists, *span, sure);
            }
            last = ways().map(|way| way.end.clone()).collect();
        }
        for Case { forecast, counts, .. } in &self.cases {
            forecast.check_shares(counts).with_context(|| format!("traced: {forecast}"))?;
        }
        Ok(last)
    }

    /// Whether a packet of now could come to this end by every state of the rules.
    fn is_possible(&self, end: &End, memory: &Memory, span: Span) -> Result<bool> {
        let verdicts = self.verdicts(memory, span);
        for world in self.worlds {
            let forecast = self.bed.forecast(self.start, world, &verdicts)?;
            if forecast.ways.iter().all(|way| way.end != *end) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn begins_flow(&self, end: &End) -> bool {
        let ways = self.cases.iter().flat_map(|case| &case.forecast.ways);
        ways.filter(|way| way.end == *end).any(|way| way.flow.is_some())
    }

    /// The forecast for a packet of that time.
    fn case(&mut self, memory: &Memory, span: Span) -> Result<&mut Case> {
        let verdicts = self.verdicts(memory, span);
        let known = self.cases.iter().position(|case| case.verdicts == verdicts);
        let place = known.unwrap_or(self.cases.len());
        if known.is_none() {
            let forecast = self.forecast(&verdicts)?;
            let counts = vec![0; forecast.ways.len()];
            self.cases.push(Case { verdicts, forecast, counts });
        }
        self.cases.get_mut(place).context("no case")
    }

    fn forecast(&self, verdicts: &Verdicts) -> Result<Forecast> {
        let mut all = self.worlds.iter().map(|world| self.bed.forecast(self.start, world, verdicts));
        let mut forecast = all.next().context("no rules")??;
        for other in all {
            forecast.or(other?);
        }
        if self.history.missed && self.history.is_changing() && self.bed.first_node(self.start).is_some() {
            forecast.or_nothing();
        }
        Ok(forecast)
    }

    /// What rules find on their lists. While rules change, lists may go with them.
    fn verdicts(&self, memory: &Memory, span: Span) -> Verdicts {
        let mut verdicts = Verdicts::new();
        for (node, parsed) in self.worlds.iter().flatten() {
            for (list, seconds) in &parsed.recalls {
                for place in memory.places(*node, list) {
                    let recalled = match memory.recall(place, *seconds, span) {
                        Recalled::Yes if self.history.is_changing() => Recalled::Maybe,
                        other => other,
                    };
                    let known = verdicts.entry(place.clone()).or_insert(recalled);
                    if *known != recalled {
                        *known = Recalled::Maybe;
                    }
                }
            }
        }
        verdicts
    }
}

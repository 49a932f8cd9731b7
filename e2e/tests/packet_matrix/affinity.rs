//! Services that remember their clients (`sessionAffinity: ClientIP`): who is led where the next time, by real packets, held
//! against a memory that was written from the specification.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use fairlead_compiler::{Affinity, Dump, Match, Table};
use fairlead_e2e::{
    tun::{Entry, Kind},
    wait,
};
use fairlead_objects::{Family, Protocol};

use crate::{
    LEGACY, MANY, NFT, as_root, check_told, in_families,
    judge::{Judge, ending, is_unclear, otherwise, shares},
    memory::{Memory, Span},
    node::{Make, Node, node},
    oracle::{Ending, PLAIN},
    questions::{Client, Frontend, PROTOCOLS, Question, node_addresses, questions},
    shapes::{Endpoint, Ranges, Shape, shapes},
};

/// Longer than any test.
const LONG: u32 = 10_800;
/// Clients among whom chance alone never leads all to one endpoint.
const CLIENTS: u16 = 48;
const REMOTE: Endpoint = Endpoint::ready(3, 5);
const TWO: &[Endpoint] = &[Endpoint::ready(1, 5), Endpoint::ready(2, 5)];
const THREE: &[Endpoint] = &[Endpoint::ready(1, 5), Endpoint::ready(2, 5), REMOTE];

/// Each state in which it matters who is chosen, with every policy.
fn remembering() -> Vec<Shape> {
    let states = [
        "two local and two remote ready",
        "local and remote terminating",
        "local terminating, remote ready",
        "hints for zones",
        "processes and Pods of both nodes",
    ];
    let chosen = |shape: &Shape| states.contains(&shape.state) && shape.ranges == Ranges::Open;
    shapes().into_iter().filter(chosen).map(|shape| Shape { affinity: Some(LONG), ..shape }).collect()
}

fn shape(endpoints: &'static [Endpoint], seconds: u32) -> Shape {
    Shape {
        number: 1,
        state: "these",
        endpoints,
        external_local: false,
        internal_local: false,
        ranges: Ranges::Open,
        affinity: Some(seconds),
    }
}

/// Somebody outside.
fn client(family: Family, number: u16) -> Client {
    let source = match family {
        Family::V4 => Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 1, 0).to_bits() + u32::from(number)).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 1, number).into(),
    };
    Client { what: "outside", entry: Entry::World, source }
}

/// All clients, each by one of the frontends, and in the next round by the next.
fn crowd(shape: Shape, family: Family, protocols: &[Protocol], round: usize) -> Vec<Question> {
    let [node, gateway] = node_addresses(family);
    let frontends = [
        Frontend::ClusterIp,
        Frontend::NodePort(node),
        Frontend::External,
        Frontend::LoadBalancer,
        Frontend::NodePort(gateway),
    ];
    let turns = (0..CLIENTS).zip(frontends.into_iter().cycle().skip(round % frontends.len()));
    turns
        .flat_map(|(number, frontend)| {
            protocols.iter().map(move |protocol| Question {
                shape,
                client: client(family, number),
                frontend,
                family,
                protocol: *protocol,
                kind: Kind::First,
            })
        })
        .collect()
}

/// Asks all of this in its order; tells where each was led.
fn ask(node: &mut Node, memory: &mut Memory, questions: &[Question]) -> Result<Vec<Ending>> {
    let probes: Vec<_> = questions.iter().map(Question::probe).collect();
    let began = Instant::now();
    let fates = node.harness.send_all(&probes)?;
    let asked = Span { began, ended: Instant::now() };
    let mut endings = Vec::with_capacity(questions.len());
    for (question, fate) in questions.iter().zip(fates) {
        let possible = node.site.expect(question);
        let expected = memory.narrow(question, possible.clone(), asked);
        let tell = || format!("{question}\n  expected: {expected:?} of {possible:?}\n  kernel: {fate}");
        let seen = ending(&node.site, question, &fate).with_context(tell)?;
        let other = otherwise(seen);
        let fits = if expected.contains_key(&seen) {
            seen
        } else {
            let unclear = is_unclear(question, seen, &fate) && expected.contains_key(&other);
            ensure!(unclear, "{}\nit was led elsewhere than before, or than it may be", tell());
            other
        };
        memory.note(question, fits, asked);
        endings.push(fits);
    }
    Ok(endings)
}

/// Of one protocol.
fn of(endings: &[Ending], questions: &[Question], protocol: Protocol) -> Vec<SocketAddr> {
    let own = questions.iter().zip(endings).filter(|(question, _)| question.protocol == protocol);
    own.filter_map(|(_, ending)| match ending {
        Ending::Endpoint { address, .. } => Some(*address),
        _ => None,
    })
    .collect()
}

fn everybody(make: Make, shapes: &[Shape]) -> Result<()> {
    let recalled = follow(&mut node(PLAIN, make, shapes)?, shapes)?;
    println!("{:?}, bpf {}: {recalled} recalled", make.variant, make.bpf);
    ensure!(recalled > 0, "nobody was recalled");
    Ok(())
}

/// Everybody asks three times. Tells how often it was not up to chance who answers.
fn follow(node: &mut Node, shapes: &[Shape]) -> Result<usize> {
    let mut memory = Memory::default();
    for (shape, family) in in_families(shapes) {
        let all = questions(shape, family, false);
        let expected: Vec<_> = all.iter().map(|question| node.site.expect(question)).collect();
        // Its lists are empty.
        Judge::new(node).trace(&all, &expected)?;
        let back: Vec<Question> = all.iter().rev().copied().collect();
        for order in [&all, &back, &all] {
            ask(node, &mut memory, order)?;
        }
        node.harness.forget_connections()?;
    }
    Ok(memory.recalled)
}

/// Every client at every frontend, again and again: with all policies, past them by the short circuit, and over the lists
/// that the frontends of a port share.
#[test]
fn clients_are_led_where_their_service_remembers_them() -> Result<()> {
    as_root(|| {
        let all = remembering();
        let few: Vec<Shape> =
            all.iter().copied().filter(|shape| shape.external_local != shape.internal_local).collect();
        everybody(NFT, &all)?;
        everybody(LEGACY, &few)?;
        everybody(Make { bpf: false, ..NFT }, &few)
    })
}

/// What other clients have, and what else changes, is nothing to those who stay.
#[test]
fn clients_stay_until_their_endpoint_goes() -> Result<()> {
    as_root(|| [NFT, LEGACY].into_iter().try_for_each(come_and_go))
}

fn come_and_go(make: Make) -> Result<()> {
    let (three, two) = (shape(THREE, LONG), shape(TWO, LONG));
    let mut node = node(PLAIN, make, &[three])?;
    let mut memory = [Memory::default(), Memory::default()];
    let mut round = 0;
    let mut all_ask = |node: &mut Node, shape: Shape| -> Result<()> {
        for _ in 0..2 {
            for (family, memory) in Family::ALL.into_iter().zip(&mut memory) {
                if shape.endpoints.len() == TWO.len() {
                    memory.forget(REMOTE.address(family));
                }
                let questions = crowd(shape, family, &PROTOCOLS, round);
                let endings = ask(node, memory, &questions)?;
                let [tcp, udp, sctp] = PROTOCOLS.map(|protocol| of(&endings, &questions, protocol));
                let used: BTreeSet<_> = tcp.iter().map(SocketAddr::ip).collect();
                ensure!(used.len() == shape.endpoints.len(), "all clients share {used:?}");
                ensure!(tcp != udp && udp != sctp, "all ports share their memory");
            }
            round += 1;
        }
        Ok(())
    };
    all_ask(&mut node, three).context("of three endpoints")?;
    node.update(make, &[two])?;
    all_ask(&mut node, two).context("one of them gone")?;
    // Whoever had it has another by now, which comes first, so that nobody goes back.
    node.update(make, &[Shape { affinity: Some(LONG * 2), ..three }])?;
    let back = Shape { affinity: Some(LONG * 2), ..three };
    for (family, memory) in Family::ALL.into_iter().zip(&mut memory) {
        ask(&mut node, memory, &crowd(back, family, &PROTOCOLS, 0)).context("and back again")?;
    }
    Ok(())
}

/// Each connection begins the time anew.
#[test]
fn clients_are_forgotten_when_they_stay_away_for_as_long_as_the_timeout() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(1);
    as_root(|| {
        let shape = shape(TWO, 1);
        let mut nodes = Vec::new();
        for make in [NFT, LEGACY] {
            nodes.push((node(PLAIN, make, &[shape])?, Memory::default(), Vec::new()));
        }
        let both = |round: usize| {
            let questions =
                Family::ALL.into_iter().flat_map(|family| crowd(shape, family, &[Protocol::Tcp], round));
            questions.collect::<Vec<Question>>()
        };
        let (began, mut round) = (Instant::now(), 0);
        while began.elapsed() < TIMEOUT * 3 / 2 {
            for (node, memory, last) in &mut nodes {
                *last = ask(node, memory, &both(round)).context("while they ask all the time")?;
            }
            round += 1;
            wait::watch(TIMEOUT / 20);
        }
        wait::watch(TIMEOUT * 6 / 5);
        for (node, memory, last) in &mut nodes {
            let now = ask(node, memory, &both(round)).context("after a while")?;
            ensure!(memory.recalled > usize::from(CLIENTS), "the machine stalled");
            ensure!(now != *last, "nobody was forgotten");
        }
        Ok(())
    })
}

/// Those who come for the first time.
#[test]
fn new_clients_are_shared_equally() -> Result<()> {
    as_root(|| {
        let shape = shape(THREE, LONG);
        for make in [NFT, LEGACY] {
            let mut node = node(PLAIN, make, &[shape])?;
            for (family, protocol) in Family::ALL.into_iter().zip(PROTOCOLS) {
                let question = |number: usize| -> Result<Question> {
                    let client = client(family, number.try_into()?);
                    let frontend = Frontend::ClusterIp;
                    Ok(Question { shape, client, frontend, family, protocol, kind: Kind::First })
                };
                shares(&mut node, &(0..MANY).map(question).collect::<Result<Vec<_>>>()?)?;
            }
        }
        Ok(())
    })
}

/// What the other cases say is worth no more than this: the rules that lead clients back are missing when they are read, or
/// go afterwards.
#[test]
fn a_service_that_forgets_its_clients_is_noticed() -> Result<()> {
    as_root(|| {
        let shapes = remembering();
        let told = everybody(Make { spoil: |line| !line.contains("--rcheck"), ..NFT }, &shapes);
        check_told(told, &["the tracer differs in affinity", "clients are remembered for"])?;
        let mut node = node(PLAIN, NFT, &shapes)?;
        node.damage(without_recalls)?;
        let told = follow(&mut node, &shapes).map(drop);
        check_told(told, &["it was led elsewhere than before", "clients are remembered for", "kernel: "])
    })
}

fn without_recalls(dump: &Dump) -> String {
    let chains = dump.tables.get(&Table::Nat).into_iter().flatten();
    let recalls =
        |condition: &Match| matches!(condition, Match::Affinity { action: Affinity::Recall { .. }, .. });
    let lines: Vec<String> = chains
        .flat_map(|(name, chain)| {
            let count = chain.rules.iter().filter(|rule| rule.matches.iter().any(recalls)).count();
            // They stand together, so the next one takes the place of one that goes.
            let place = chain.rules.iter().position(|rule| rule.matches.iter().any(recalls)).unwrap_or(0);
            std::iter::repeat_n(format!("-D {} {}\n", name.as_str(), place + 1), count)
        })
        .collect();
    format!("*nat\n{}COMMIT\n", lines.concat())
}

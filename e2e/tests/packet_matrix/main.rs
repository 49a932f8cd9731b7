//! Every client against every frontend, policy and state of endpoints, in all protocols, both families and both
//! variants of iptables: real packets through real kernels, held against an oracle that was written from the
//! specification, and against the tracer.

mod affinity;
mod bad_input;
mod judge;
mod memory;
mod node;
mod oracle;
mod questions;
mod shapes;

use anyhow::{Context as _, Result, ensure};
use fairlead_compiler::{Dump, Match, Table};
use fairlead_e2e::{programs::Variant, suite, tun::Kind};
use fairlead_objects::Family;

use crate::{
    judge::{Judge, Tally, astray, shares},
    node::{Fault, Make, Node, SOUND, Spoil, node},
    oracle::{Detector, Firewall, PLAIN, Site},
    questions::{PROTOCOLS, Question, questions},
    shapes::{Ranges, Shape, shapes},
};

const NFT: Make = Make { variant: Variant::Nft, bpf: true, spoil: SOUND };
const LEGACY: Make = Make { variant: Variant::Legacy, ..NFT };
/// Packets of which shares are taken.
const MANY: usize = 400;

/// Runs a test that needs root, or says that it does not run.
fn as_root(test: impl FnOnce() -> Result<()>) -> Result<()> {
    match suite::refuse() {
        None => test(),
        Some(_) if std::env::var("CI").is_ok_and(|value| value == "true") => {
            anyhow::bail!("these tests need root")
        }
        Some(_) => Ok(()),
    }
}

/// Asks everything of these Services at a site.
fn matrix(site: Site, make: Make, shapes: &[Shape]) -> Result<()> {
    let tally = ask(&mut node(site, make, shapes)?, shapes)?;
    println!("{:?}: {tally:?}", make.variant);
    ensure!(tally.handled > 0 && tally.replies > 0, "no packet met a Service");
    Ok(())
}

fn ask(node: &mut Node, shapes: &[Shape]) -> Result<Tally> {
    let given = node.site.given;
    let mut judge = Judge::new(node);
    for (shape, family) in in_families(shapes) {
        judge.ask(&questions(shape, family, given))?;
    }
    Ok(judge.tally)
}

fn in_families(shapes: &[Shape]) -> impl Iterator<Item = (Shape, Family)> + '_ {
    shapes.iter().flat_map(|shape| Family::ALL.map(|family| (*shape, family)))
}

/// The same by both variants of iptables.
fn by_both(site: Site, bpf: bool, shapes: &[Shape]) -> Result<()> {
    as_root(|| {
        for make in [NFT, LEGACY] {
            matrix(site, Make { bpf, ..make }, shapes)?;
        }
        Ok(())
    })
}

/// Enough Services for what does not depend on how endpoints are chosen: nobody, somebody elsewhere, somebody here and
/// elsewhere, nodes themselves; with source ranges, too.
fn few() -> Vec<Shape> {
    let states = ["none", "one remote ready", "local and remote ready", "processes and Pods of both nodes"];
    let chosen = |shape: &Shape| match shape.ranges {
        Ranges::Open => shape.external_local == shape.internal_local,
        ranges => [Ranges::Some, Ranges::Node].contains(&ranges),
    };
    shapes().into_iter().filter(|shape| states.contains(&shape.state) && chosen(shape)).collect()
}

#[test]
fn everybody_gets_what_the_specification_says_on_nft() -> Result<()> {
    as_root(|| matrix(PLAIN, NFT, &shapes()))
}

#[test]
fn everybody_gets_what_the_specification_says_on_legacy() -> Result<()> {
    as_root(|| matrix(PLAIN, LEGACY, &shapes()))
}

#[test]
fn pods_are_told_by_their_bridge_without_bpf() -> Result<()> {
    by_both(Site { detector: Detector::Link, ..PLAIN }, false, &few())
}

#[test]
fn pods_are_strangers_without_detector() -> Result<()> {
    by_both(Site { detector: Detector::None, ..PLAIN }, true, &few())
}

#[test]
fn everything_to_cluster_ips_is_masqueraded_and_node_ports_are_at_few_addresses() -> Result<()> {
    let node_ports = &["172.30.0.0/24", "fd00:30::/64"];
    by_both(Site { masquerade_all: true, node_ports, ..PLAIN }, true, &few())
}

#[test]
fn load_balancer_address_may_be_the_nodes_own() -> Result<()> {
    by_both(Site { given: true, ..PLAIN }, true, &few())
}

#[test]
fn what_is_masqueraded_passes_a_firewall_that_accepts_nothing() -> Result<()> {
    by_both(Site { firewall: Firewall::Closed, ..PLAIN }, true, &few())
}

#[test]
fn hairpins_pass_a_firewall_that_accepts_nothing_without_bpf() -> Result<()> {
    by_both(Site { firewall: Firewall::Closed, ..PLAIN }, false, &few())
}

#[test]
fn all_service_traffic_passes_a_firewall_that_accepts_pods() -> Result<()> {
    by_both(Site { firewall: Firewall::PodsOnly, ..PLAIN }, true, &few())
}

#[test]
fn one_family_is_left_alone_on_a_node_of_the_other() -> Result<()> {
    by_both(Site { families: &[Family::V4], ..PLAIN }, true, &few())?;
    by_both(Site { families: &[Family::V6], ..PLAIN }, true, &few())
}

/// They meet no rule that chooses endpoints, and leave with no source but their own.
#[test]
fn packets_of_no_connection_are_dropped_or_left_alone() -> Result<()> {
    as_root(|| {
        let shapes = few();
        for make in [NFT, LEGACY] {
            for liberal in [false, true] {
                let mut node = node(Site { liberal, ..PLAIN }, make, &shapes)?;
                let mut judge = Judge::new(&mut node);
                for (shape, family) in in_families(&shapes) {
                    let all = questions(shape, family, false);
                    let strays = all
                        .iter()
                        .flat_map(|question| [Kind::Stray, Kind::Damaged].map(|kind| astray(question, kind)));
                    let strays: Vec<Question> = strays.filter(Question::is_invalid).collect();
                    judge.ask(&strays)?;
                }
                println!("{:?}, liberal {liberal}: {:?}", make.variant, judge.tally);
                ensure!(liberal == (judge.tally.handled == 0), "{:?}", judge.tally);
            }
        }
        Ok(())
    })
}

/// Of every frontend of Services whose endpoints are here and elsewhere.
#[test]
fn endpoints_get_equal_shares() -> Result<()> {
    as_root(|| {
        let states =
            ["local and remote ready", "two local and two remote ready", "processes and Pods of both nodes"];
        let chosen = |shape: &Shape| {
            let same = shape.external_local == shape.internal_local;
            states.contains(&shape.state) && shape.ranges == Ranges::Open && same
        };
        let chosen: Vec<Shape> = shapes().into_iter().filter(chosen).collect();
        for make in [NFT, LEGACY] {
            let mut node = node(PLAIN, make, &chosen)?;
            for ((shape, family), protocol) in in_families(&chosen).zip(PROTOCOLS.into_iter().cycle()) {
                let asked = |question: &Question| {
                    let who = ["a Pod on this node", "outside"].contains(&question.client.what);
                    who && question.protocol == protocol
                };
                for question in questions(shape, family, false).into_iter().filter(asked) {
                    shares(&mut node, &vec![question; MANY])?;
                }
            }
        }
        Ok(())
    })
}

/// What the other cases say is worth no more than this: each kind of rule that is missing is told, with the combination
/// and what was expected, done and traced.
#[test]
fn missing_rules_are_noticed_and_told() -> Result<()> {
    let spoils: [(Spoil, [&str; 2]); 4] = [
        (|line| !line.contains("-j MASQUERADE"), ["masqueraded: true", "this node asks"]),
        (
            |line| !line.contains("\"pod traffic for "),
            ["externalTrafficPolicy Local", "a Pod on this node asks"],
        ),
        (|line| !line.contains("has no endpoints"), ["expected: {Refused: 1}", "endpoints: none"]),
        (|line| !line.contains("has no local endpoints"), ["expected: {Silence: 1}", "one remote ready"]),
    ];
    as_root(|| {
        for (number, (spoil, parts)) in spoils.into_iter().enumerate() {
            let told = matrix(PLAIN, Make { spoil, ..NFT }, &few());
            check_told(told, &[parts.as_slice(), &["the tracer differs in", "kernel: "]].concat())
                .with_context(|| format!("fault {number}"))?;
        }
        Ok(())
    })
}

/// The same for rules that the tracer takes to be there, because they were read before.
#[test]
fn rules_that_the_kernel_alone_lacks_are_noticed_and_told() -> Result<()> {
    const UNREFUSED: &str = "*filter\n:KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\nCOMMIT\n";
    let faults: [(Fault, [&str; 2]); 4] = [
        (
            |_| "*nat\n:KUBE-POSTROUTING - [0:0]\nCOMMIT\n".to_owned(),
            ["masqueraded: true", "masqueraded: false"],
        ),
        (without_short_circuits, ["a Pod on this node asks", "externalTrafficPolicy Local"]),
        (|_| UNREFUSED.to_owned(), ["expected: {Refused: 1}", "that is Untouched"]),
        (
            |_| "*nat\n-I KUBE-SERVICES -p tcp -j KUBE-MARK-MASQ\nCOMMIT\n".to_owned(),
            ["expected: {Refused: 1}", "another source"],
        ),
    ];
    as_root(|| {
        for (number, (fault, parts)) in faults.into_iter().enumerate() {
            let (shapes, mut node) = (few(), node(PLAIN, NFT, &few())?);
            node.damage(fault)?;
            let told = ask(&mut node, &shapes).map(drop);
            check_told(told, &[parts.as_slice(), &["kernel: ", "tracer: "]].concat())
                .with_context(|| format!("fault {number}"))?;
        }
        Ok(())
    })
}

fn check_told(result: Result<()>, parts: &[&str]) -> Result<()> {
    let told = result.map_or_else(|error| format!("{error:#}"), |()| "nothing".to_owned());
    for part in parts {
        ensure!(told.contains(part), "{part:?} is missing in {told}");
    }
    Ok(())
}

/// Removes the first rules of external chains that are for Pods.
fn without_short_circuits(dump: &Dump) -> String {
    let chains = dump.tables.get(&Table::Nat).into_iter().flatten();
    let circuits = chains.filter(|(name, chain)| {
        let first = chain.rules.first().is_some_and(|rule| {
            rule.matches.iter().any(|condition| matches!(condition, Match::Source { negated: false, .. }))
        });
        name.as_str().starts_with("KUBE-EXT-") && first
    });
    let lines: Vec<String> = circuits.map(|(name, _)| format!("-D {} 1\n", name.as_str())).collect();
    format!("*nat\n{}COMMIT\n", lines.concat())
}

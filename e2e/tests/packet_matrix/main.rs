//! Every client against every frontend, policy and state of endpoints, in all protocols, both families and both
//! variants of iptables: real packets through real kernels, held against an oracle that was written from the
//! specification, and against the tracer.

mod judge;
mod node;
mod oracle;
mod questions;
mod shapes;

use anyhow::{Result, ensure};
use fairlead_e2e::{programs::Variant, suite, tun::Kind};
use fairlead_objects::Family;

use crate::{
    judge::{Judge, Tally, astray, shares},
    node::{Make, SOUND, Spoil, node},
    oracle::{Detector, Firewall, PLAIN, Site},
    questions::{PROTOCOLS, Question, questions},
    shapes::{Ranges, Shape, shapes},
};

const NFT: Make = Make { variant: Variant::Nft, bpf: true, spoil: SOUND };
const LEGACY: Make = Make { variant: Variant::Legacy, ..NFT };
/// Packets of which shares are taken.
const MANY: u32 = 600;

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
fn matrix(site: Site, make: Make, shapes: &[Shape]) -> Result<Tally> {
    let mut node = node(site, make, shapes)?;
    let mut judge = Judge::new(&mut node);
    for shape in shapes {
        for family in Family::ALL {
            judge.ask(&questions(*shape, family, site.given))?;
        }
    }
    let tally = judge.tally;
    println!("{:?}: {tally:?}", make.variant);
    ensure!(tally.handled > 0 || site.families.is_empty(), "no packet met a Service");
    Ok(tally)
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
/// elsewhere; with source ranges, too.
fn few() -> Vec<Shape> {
    let states = ["none", "one remote ready", "local and remote ready"];
    shapes().into_iter().filter(|shape| states.contains(&shape.state)).collect()
}

#[test]
fn everybody_gets_what_the_specification_says_on_nft() -> Result<()> {
    as_root(|| matrix(PLAIN, NFT, &shapes()).map(drop))
}

#[test]
fn everybody_gets_what_the_specification_says_on_legacy() -> Result<()> {
    as_root(|| matrix(PLAIN, LEGACY, &shapes()).map(drop))
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
                for (shape, family) in shapes.iter().flat_map(|shape| Family::ALL.map(|family| (shape, family))) {
                    let all = questions(*shape, family, false);
                    let strays = all.iter().flat_map(|question| {
                        [Kind::Stray, Kind::Damaged].map(|kind| astray(question, kind))
                    });
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

/// From everybody, at every frontend of a Service whose endpoints are here and elsewhere.
#[test]
fn endpoints_get_equal_shares() -> Result<()> {
    as_root(|| {
        let states = ["local and remote ready", "two local and two remote ready"];
        let chosen = |shape: &Shape| states.contains(&shape.state) && shape.ranges == Ranges::Open;
        let chosen: Vec<Shape> = shapes().into_iter().filter(chosen).collect();
        for make in [NFT, LEGACY] {
            let mut node = node(PLAIN, make, &chosen)?;
            for (shape, family) in chosen.iter().flat_map(|shape| Family::ALL.map(|family| (shape, family))) {
                let all = questions(*shape, family, false).into_iter();
                let who = ["a Pod on this node", "outside"];
                for (question, protocol) in all.zip(PROTOCOLS.into_iter().cycle()) {
                    let asked = who.contains(&question.client.what) && question.protocol == protocol;
                    if asked && node.site.expect(&question).len() > 1 {
                        shares(&mut node, &question, MANY)?;
                    }
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
        (|line| !line.contains("\"pod traffic for "), ["externalTrafficPolicy Local", "a Pod on this node asks"]),
        (|line| !line.contains("has no endpoints"), ["expected: {Refused: 1}", "endpoints: none"]),
        (|line| !line.contains("has no local endpoints"), ["expected: {Silence: 1}", "one remote ready"]),
    ];
    as_root(|| {
        for (number, (spoil, parts)) in spoils.into_iter().enumerate() {
            let told = matrix(PLAIN, Make { spoil, ..NFT }, &few());
            let told = told.map_or_else(|error| format!("{error:#}"), |_| "nothing".to_owned());
            for part in parts.into_iter().chain(["tracer"]) {
                ensure!(told.contains(part), "fault {number}: {part:?} is missing in {told}");
            }
        }
        Ok(())
    })
}

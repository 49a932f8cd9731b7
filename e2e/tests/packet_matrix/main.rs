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
    questions::{Frontend, PROTOCOLS, Question, questions},
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

#[test]
fn everybody_gets_what_the_specification_says_on_nft() -> Result<()> {
    as_root(|| matrix(PLAIN, NFT, &shapes()).map(drop))
}

#[test]
fn everybody_gets_what_the_specification_says_on_legacy() -> Result<()> {
    as_root(|| matrix(PLAIN, LEGACY, &shapes()).map(drop))
}

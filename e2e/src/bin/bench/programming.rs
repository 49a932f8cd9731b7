//! How long it takes until the kernel has the rules: everything, and one changed Service.

use std::time::Instant;

use anyhow::Result;
use fairlead_compiler::{Delta, Rulebook, render};

use crate::{
    SIZES,
    report::{Samples, heading, row, text},
    router::{Router, Variant},
    workload::{ENDPOINTS, OTHER_ENDPOINT, config, facts, slice_of, state},
};

const CHANGES: usize = 40;

/// Loads everything and then changes one endpoint at a time, for both variants of iptables.
pub(crate) fn measure() -> Result<()> {
    heading(
        "From a changed slice to the kernel, through `iptables-restore`",
        &["iptables", "Services", "full load", "one change p50", "one change p99"],
    );
    for variant in Variant::ALL {
        for count in SIZES {
            let (full, samples) = changes(variant, count)?;
            let [p50, p99] = samples.cells();
            row(&[variant.name().to_owned(), count.to_string(), full, p50, p99]);
        }
    }
    Ok(())
}

fn changes(variant: Variant, count: usize) -> Result<(String, Samples)> {
    let router = Router::build(variant)?;
    let mut state = state(count);
    let mut rulebook = Rulebook::new(config(), facts());
    let dirty = state.take_dirty();
    rulebook.refresh(&state, &dirty);
    drop(rulebook.take_changes());
    let full = router.load(Delta::everything(rulebook.ruleset()))?;
    let mut samples = Samples::default();
    for change in 0..CHANGES {
        let slice = slice_of(change * 37 % count, &[OTHER_ENDPOINT, ENDPOINTS[1]]);
        let began = Instant::now();
        state.set_slice(&slice);
        let dirty = state.take_dirty();
        rulebook.refresh(&state, &dirty);
        router.restore(&render(&rulebook.take_changes()))?;
        samples.push(began.elapsed());
    }
    Ok((text(full), samples))
}

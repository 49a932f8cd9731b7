//! How long it takes to compile and to render.

use std::{convert::Infallible, hint::black_box, time::Instant};

use anyhow::Result;
use fairlead_compiler::{Delta, Rulebook, compile, render};

use crate::{
    SIZES,
    report::{Samples, heading, row, text},
    workload::{ENDPOINTS, OTHER_ENDPOINT, config, facts, slice_of, state},
};

const FULL_RUNS: usize = 5;
const CHANGES: usize = 500;

/// Compiles everything, renders everything, and compiles and renders one changed Service.
pub(crate) fn measure() -> Result<()> {
    heading(
        "Compile and render, 2 endpoints a Service",
        &["Services", "compile all", "render all", "document", "one change p50", "one change p99"],
    );
    for count in SIZES {
        let state = state(count);
        let compiled = Samples::of(FULL_RUNS, || {
            black_box(compile(&state, &config(), &facts()));
            Ok::<(), Infallible>(())
        })?;
        let everything = Delta::everything(&compile(&state, &config(), &facts()));
        let began = Instant::now();
        let document = render(&everything);
        let rendered = began.elapsed();
        let [p50, p99] = changes(count).cells();
        row(&[
            count.to_string(),
            text(compiled.percentile(50)),
            text(rendered),
            format!("{} KiB", document.len() / 1024),
            p50,
            p99,
        ]);
    }
    Ok(())
}

/// One endpoint of one Service is replaced, over and over: from the slice to the document.
fn changes(count: usize) -> Samples {
    let mut state = state(count);
    let mut rulebook = Rulebook::new(config(), facts());
    let dirty = state.take_dirty();
    rulebook.refresh(&state, &dirty);
    drop(rulebook.take_changes());
    let mut samples = Samples::default();
    for change in 0..CHANGES {
        let i = change * 37 % count;
        let first = if (change * 37 / count).is_multiple_of(2) { OTHER_ENDPOINT } else { ENDPOINTS[0] };
        let slice = slice_of(i, &[first, ENDPOINTS[1]]);
        let began = Instant::now();
        state.set_slice(&slice);
        let dirty = state.take_dirty();
        rulebook.refresh(&state, &dirty);
        black_box(render(&rulebook.take_changes()));
        samples.push(began.elapsed());
    }
    samples
}

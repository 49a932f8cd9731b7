//! The results as a picture: a panel for each thing that was measured, a line for each contestant.
//!
//! Both axes are logarithmic: contestants differ by factors, and so do the numbers of Services.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result};
use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, IntoFont, IntoLogRange, PathElement,
        RGBColor, Rectangle, SVGBackend, Text, WHITE,
    },
};

use super::{
    contestants::{CONTESTANTS, Contestant, Mode},
    results::{Outcome, make_folder},
};

const SIZE: (u32, u32) = (1_200, 900);
const LEGEND: u32 = 90;
const ROWS_AND_COLUMNS: (usize, usize) = (2, 3);
const FONT: &str = "sans-serif";
/// One colour for each contestant that is not a variant of another: orange and red tones are kube-proxy's.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0x2c, 0xa0, 0x2c),
];

/// What a panel shows: its title, and the value of an outcome in the unit that the title names.
type Panel = (&'static str, fn(&Outcome) -> f64);

const PANELS: [Panel; 6] = [
    ("Start until every Service answers, s", |it| it.start.as_secs_f64()),
    ("One change, p99, ms", |it| milliseconds(it.one_change_p99)),
    ("100 changes, ms", |it| milliseconds(it.burst)),
    ("First packet of a flow to a Service, p50, us", |it| milliseconds(it.service_p50) * 1e3),
    ("CPU a change, ms", |it| milliseconds(it.cpu_a_change)),
    ("Peak RSS with children, MiB", |it| mebibytes(it.peak_rss)),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[allow(clippy::cast_precision_loss, reason = "a picture needs three digits")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

#[allow(clippy::cast_precision_loss, reason = "a picture needs three digits")]
fn services(outcome: &Outcome) -> f64 {
    outcome.services as f64
}

/// Draws all outcomes.
pub(crate) fn draw(path: &Path, outcomes: &[Outcome]) -> Result<()> {
    make_folder(path)?;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (panels, legend) = root.split_vertically(SIZE.1 - LEGEND);
    let mut lines: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        lines.entry(&outcome.program).or_default().push(outcome);
    }
    for (area, panel) in panels.split_evenly(ROWS_AND_COLUMNS).iter().zip(PANELS) {
        draw_panel(area, panel, &lines)?;
    }
    draw_legend(&legend)?;
    root.present().with_context(|| format!("writing {}", path.display()))
}

fn draw_panel(area: &Area<'_>, (title, value): Panel, lines: &BTreeMap<&str, Vec<&Outcome>>) -> Result<()> {
    // There is no place for zero: CPU time is counted in steps.
    let shown = |outcome: &&&Outcome| value(outcome) > 0.0;
    let all = || lines.values().flatten().filter(shown);
    if all().next().is_none() {
        return Ok(());
    }
    let across = range(all().map(|outcome| services(outcome)));
    let up = range(all().map(|outcome| value(outcome)));
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 15))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(55)
        .build_cartesian_2d(across.log_scale(), up.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(4)
        .x_desc("Services")
        .x_label_formatter(&|value| number(*value))
        .y_label_formatter(&|value| number(*value))
        .draw()?;
    for (contestant, colour) in coloured() {
        let Some(outcomes) = lines.get(contestant.name) else { continue };
        let outcomes = outcomes.iter().filter(shown);
        let points: Vec<_> = outcomes.map(|outcome| (services(outcome), value(outcome))).collect();
        let style = if is_variation(contestant) { colour.mix(0.4) } else { colour.to_rgba() };
        chart.draw_series([PathElement::new(points.clone(), style.stroke_width(2))])?;
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, style.filled())))?;
    }
    Ok(())
}

/// Somewhat more than all values, so that nothing is drawn on the edge.
fn range(values: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let most = values.fold(0.0, f64::max).max(least);
    least / 1.5..most * 1.5
}

/// With no more digits than needed.
fn number(value: f64) -> String {
    if value >= 1.0 { format!("{value:.0}") } else { format!("{value}") }
}

/// The same program and rules with another period: a paler line.
fn is_variation(contestant: &Contestant) -> bool {
    matches!(contestant.mode, Mode::Shortest | Mode::NftablesShortest)
}

fn coloured() -> impl Iterator<Item = (&'static Contestant, RGBColor)> {
    let mut colours = COLOURS.into_iter();
    let mut colour = WHITE;
    CONTESTANTS.iter().map(move |contestant| {
        if !is_variation(contestant) {
            colour = colours.next().unwrap_or(colour);
        }
        (contestant, colour)
    })
}

/// Names in two columns, each with its line.
fn draw_legend(area: &Area<'_>) -> Result<()> {
    let font = (FONT, 13).into_font();
    for (place, (contestant, colour)) in (0_i32..).zip(coloured()) {
        let (x, y) = (60 + place % 3 * 380, 8 + place / 3 * 26);
        let style = if is_variation(contestant) { colour.mix(0.4) } else { colour.to_rgba() };
        area.draw(&Rectangle::new([(x, y + 5), (x + 24, y + 8)], style.filled()))?;
        area.draw(&Text::new(contestant.name, (x + 32, y), font.clone()))?;
    }
    Ok(())
}

//! The report's pictures: deviations of components with the steps, bits of components, and what the loss feels of each layer.

use std::ops::Range;
use std::path::Path;

use codec::fit::{ENTROPY_TIER, Spectrum as Components};
use codec::{BitGroup, Plan};
use plotters::coord::CoordTranslate;
use plotters::coord::combinators::LogCoord;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::super::Layer;
use super::Found;
use super::numbers::step;
use crate::plot::{self, COLORS, Canvas, Drawn, FAMILY, Picture};

/// Tiers whose steps are drawn.
const STEPS: [u8; 3] = [8, 32, 128];
/// Tiers of kvtc-paper whose bits are drawn.
const PAPER: [u8; 2] = [16, 32];
const KEYS: RGBColor = COLORS[0];
const VALUES: RGBColor = COLORS[1];
const FAINT: RGBColor = COLORS[4];

/// Writes all pictures into `dir`, each as SVG and as PNG.
///
/// # Errors
/// When something cannot be drawn or written.
pub(super) fn write(found: &Found<'_>, dir: &Path) -> anyhow::Result<()> {
    let measured = &found.fitted.measured;
    let (keys, values) = (&measured.keys, &measured.values);
    let steps = measured.uniform.iter().filter(|cost| STEPS.contains(&cost.steps.tier));
    let steps = steps.map(|cost| (cost.steps.tier, step(cost.steps.keys))).collect();
    let paths = |name: &str| [dir.join(format!("{name}.svg")), dir.join(format!("{name}.png"))];
    let [svg, png] = paths("spectrum");
    plot::write(&Spectrum { keys, values, steps }, &svg, &png)?;
    let [svg, png] = paths("bits");
    plot::write(&Bits { keys, values, plan: &found.fitted.plan }, &svg, &png)?;
    let [svg, png] = paths("layers");
    plot::write(&Layers(&found.seen.layers), &svg, &png)
}

/// Components from 1 on, so that a logarithmic axis holds them.
fn from_one<T: Copy + Into<f64>>(values: &[T]) -> impl Iterator<Item = (f64, f64)> {
    values.iter().enumerate().map(|(i, &value)| ((i + 1) as f64, value.into()))
}

fn ticks(value: f64) -> String {
    let digits = if value < 0.1 { 3 } else { 2 };
    let text = format!("{value:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

struct Spectrum<'a> {
    keys: &'a Components,
    values: &'a Components,
    steps: Vec<(u8, f64)>,
}

impl Spectrum<'_> {
    /// What is far below the finest step drawn says nothing.
    fn range(&self) -> Range<f64> {
        let all = || self.keys.sigma.iter().chain(&self.values.sigma).map(|sigma| f64::from(*sigma));
        let steps = || self.steps.iter().map(|(_, step)| *step);
        let finest = steps().fold(f64::MAX, f64::min);
        let least = all().filter(|sigma| *sigma > 0.0).fold(finest, f64::min);
        let most = all().chain(steps()).fold(0.0, f64::max);
        least.max(finest / 100.0) / 1.3..most * 1.5
    }
}

impl Picture for Spectrum<'_> {
    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Drawn<B> {
        let (range, last) = (self.range(), self.keys.sigma.len().max(self.values.sigma.len()).max(2) as f64);
        let mut chart = ChartBuilder::on(canvas)
            .margin(16)
            .margin_right(120)
            .caption("Spectrum: deviations of components, and steps with one for all tokens", (FAMILY, 22))
            .x_label_area_size(48)
            .y_label_area_size(72)
            .build_cartesian_2d((1.0..last).log_scale(), range.clone().log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .label_style((FAMILY, 15))
            .x_desc("component, strongest first")
            .y_desc("standard deviation, features weighted")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| ticks(*y))
            .draw()?;
        for (tier, step) in &self.steps {
            chart.draw_series(LineSeries::new([(1.0, *step), (last, *step)], FAINT.stroke_width(1)))?;
            let (x, y) = chart.backend_coord(&(last, *step));
            let style = (FAMILY, 15).into_font().color(&FAINT);
            canvas.draw(&Text::new(format!("step, tier {tier}"), (x + 6, y - 8), style))?;
        }
        for (name, side, color) in [("keys", self.keys, KEYS), ("values", self.values, VALUES)] {
            let points = from_one(&side.sigma).filter(|(_, sigma)| *sigma >= range.start);
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        }
        legend(&mut chart)
    }
}

struct Bits<'a> {
    keys: &'a Components,
    values: &'a Components,
    plan: &'a Plan,
}

type Panel<'a, B> = ChartContext<'a, B, Cartesian2d<LogCoord<f64>, RangedCoordf64>>;

impl Picture for Bits<'_> {
    const SIZE: (u32, u32) = (960, 1040);

    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Drawn<B> {
        let papers = PAPER.iter().filter_map(|&tier| Some((tier, self.plan.paper_allocation(tier)?)));
        let papers: Vec<_> = papers.collect();
        let panels = canvas.split_evenly((1 + papers.len(), 1));
        let last = self.plan.layout().features().max(2) as f64;
        let most = self.keys.entropy.iter().chain(&self.values.entropy).fold(1.0f32, |a, &b| a.max(b));
        let title =
            format!("kvtc at tier {ENTROPY_TIER}, all tokens alike: entropy of a component's symbols");
        let entropies = [from_one(&self.keys.entropy).collect(), from_one(&self.values.entropy).collect()];
        panel(&panels[0], &title, (last, f64::from(most) * 1.1), (2, entropies))?;
        for ((tier, (keys, values)), panel_of) in papers.into_iter().zip(&panels[1..]) {
            let title = format!(
                "kvtc-paper at tier {tier}: bits of a component, shifts and scales of groups left out"
            );
            let most = keys.iter().chain(values).map(|group| group.kind.bits()).max().unwrap_or(1);
            // Keys are wider, so that values on top of them do not hide them.
            let corners = (6, [allocated(keys, last), allocated(values, last)]);
            panel(panel_of, &title, (last, most as f64 * 1.1), corners)?;
        }
        Ok(())
    }
}

/// Corners of the bits of components from 1 to `last`.
fn allocated(groups: &[BitGroup], last: f64) -> Vec<(f64, f64)> {
    let corners = groups.iter().flat_map(|group| {
        let bits = group.kind.bits() as f64;
        [((group.first + 1) as f64, bits), ((group.first + group.size + 1) as f64, bits)]
    });
    let mut corners: Vec<_> = corners.map(|(x, bits)| (x.min(last), bits)).collect();
    let end = corners.last().map_or(1.0, |(x, _)| *x);
    corners.extend([(end, 0.0), (last, 0.0)]);
    corners
}

fn panel<B: DrawingBackend>(
    area: &Canvas<B>,
    title: &str,
    (last, most): (f64, f64),
    (key_width, [keys, values]): (u32, [Vec<(f64, f64)>; 2]),
) -> Drawn<B> {
    let mut chart: Panel<'_, B> = ChartBuilder::on(area)
        .margin(12)
        .caption(title, (FAMILY, 18))
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d((1.0..last).log_scale(), 0.0..most)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .label_style((FAMILY, 15))
        .x_desc("component, strongest first")
        .y_desc("bits a token")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| ticks(*y))
        .draw()?;
    for (name, points, color, width) in [("keys", keys, KEYS, key_width), ("values", values, VALUES, 2)] {
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(width)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(width)));
    }
    legend(&mut chart)
}

fn legend<'a, B: DrawingBackend + 'a, C: CoordTranslate>(chart: &mut ChartContext<'a, B, C>) -> Drawn<B> {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font((FAMILY, 16))
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()
}

struct Layers<'a>(&'a [Layer]);

impl Picture for Layers<'_> {
    const SIZE: (u32, u32) = (960, 800);

    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Drawn<B> {
        let (upper, lower) = canvas.split_vertically(Self::SIZE.1 / 2);
        let trace = self.0.iter().map(|layer| layer.trace);
        bars(
            &upper,
            "Fisher trace: what the loss feels of an error of one unit in a layer's cache",
            trace.collect(),
        )?;
        let felt = self.0.iter().map(|layer| layer.felt);
        bars(&lower, "Fisher times variance: what it feels of losing the layer", felt.collect())
    }
}

/// Two bars a layer, as shares of all of them.
fn bars<B: DrawingBackend>(area: &Canvas<B>, title: &str, layers: Vec<[f64; 2]>) -> Drawn<B> {
    let all = layers.iter().flatten().sum::<f64>().max(f64::MIN_POSITIVE);
    let most = layers.iter().flatten().fold(0.0, |most: f64, share| most.max(100.0 * share / all));
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(title, (FAMILY, 18))
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d(-0.5..layers.len() as f64 - 0.5, 0.0..most * 1.3)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .label_style((FAMILY, 15))
        .x_labels(layers.len().min(17))
        .x_desc("layer")
        .y_desc("share, %")
        .x_label_formatter(&|x| ticks(*x))
        .y_label_formatter(&|y| ticks(*y))
        .draw()?;
    for (side, (name, color, left)) in [("keys", KEYS, -0.4), ("values", VALUES, 0.0)].into_iter().enumerate()
    {
        let bar = |(layer, shares): (usize, &[f64; 2])| {
            let (x, height) = (layer as f64 + left, 100.0 * shares[side] / all);
            Rectangle::new([(x, 0.0), (x + 0.4, height)], color.filled())
        };
        chart
            .draw_series(layers.iter().enumerate().map(bar))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 20, y + 5)], color.filled()));
    }
    legend(&mut chart)
}

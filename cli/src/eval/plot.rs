//! The rate-distortion picture of a sweep: KL against the whole ratio, one curve per codec, as SVG and PNG.

use std::path::Path;

use anyhow::ensure;
use plotters::prelude::*;

use super::score::Score;
use crate::plot::{self, COLORS, Canvas, Drawn, FAMILY, Picture};

/// One codec's points: whole ratio, KL, label.
struct Curve {
    codec: &'static str,
    points: Vec<(f64, f64, String)>,
}

/// Writes the picture to both paths.
///
/// # Errors
/// When no score has a KL above 0, or a file cannot be written.
pub(super) fn write(scores: &[Score], svg: &Path, png: &Path) -> anyhow::Result<()> {
    let curves = curves(scores);
    ensure!(!curves.is_empty(), "nothing to draw: no KL above 0 was measured (--text)");
    plot::write(&Curves(curves), svg, png)
}

struct Curves(Vec<Curve>);

/// Scores by codec; a KL of 0 has no place on a logarithmic axis.
fn curves(scores: &[Score]) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for score in scores {
        let Some(kl) = score.kl.filter(|kl| *kl > 0.0) else { continue };
        let label = score.tier.map_or_else(|| score.codec.to_owned(), |tier| tier.to_string());
        let point = (score.whole_ratio, kl, label);
        match curves.iter_mut().find(|curve| curve.codec == score.codec) {
            Some(curve) => curve.points.push(point),
            None => curves.push(Curve { codec: score.codec, points: vec![point] }),
        }
    }
    for curve in &mut curves {
        curve.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    curves
}

/// Smallest and largest of a coordinate, with a margin that looks alike on a logarithmic axis.
fn range(curves: &[Curve], of: fn(&(f64, f64, String)) -> f64) -> std::ops::Range<f64> {
    let values = || curves.iter().flat_map(|curve| &curve.points).map(of);
    let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
    low / 1.4..high * 1.4
}

impl Picture for Curves {
    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Drawn<B> {
        let mut chart = ChartBuilder::on(canvas)
            .margin(16)
            .caption("Quality against bytes: right and down is better", (FAMILY, 22))
            .x_label_area_size(48)
            .y_label_area_size(72)
            .build_cartesian_2d(range(&self.0, |p| p.0).log_scale(), range(&self.0, |p| p.1).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .label_style((FAMILY, 15))
            .x_desc("whole ratio: raw bytes over every byte on the wire")
            .x_labels(6)
            .y_desc("KL of the next 64 tokens, nats")
            .x_label_formatter(&|x| format!("{x:.0}\u{d7}"))
            .y_label_formatter(&|y| format!("{y:.4}"))
            .draw()?;
        for (curve, color) in self.0.iter().zip(COLORS.iter().cycle()) {
            let line = curve.points.iter().map(|(x, y, _)| (*x, *y));
            chart
                .draw_series(LineSeries::new(line.clone(), color.stroke_width(2)))?
                .label(curve.codec)
                .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
            chart.draw_series(line.map(|at| Circle::new(at, 4, color.filled())))?;
            let labels = curve.points.iter().map(|(x, y, label)| {
                EmptyElement::at((*x, *y)) + Text::new(label.clone(), (8, 6), (FAMILY, 14))
            });
            chart.draw_series(labels)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font((FAMILY, 16))
            .background_style(WHITE)
            .border_style(BLACK)
            .draw()?;
        Ok(())
    }
}

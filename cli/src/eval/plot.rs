//! The rate-distortion picture of a sweep: KL against the whole ratio, one curve per codec, as SVG and PNG.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, anyhow, ensure};
use plotters::prelude::*;
use plotters::style::register_font;

use super::score::Score;

/// Width and height, in pixels.
const SIZE: (u32, u32) = (960, 640);
/// The family under which the font that comes along is known to the drawing; an SVG's viewer takes its own.
const FAMILY: &str = "sans-serif";
const FONT: &[u8] = include_bytes!("font/roboto-ascii.ttf");
/// Colours that stay apart for colour-blind eyes (Okabe and Ito).
const COLORS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 86, 86),
];

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
    register_font(FAMILY, FontStyle::Normal, FONT)
        .map_err(|_| anyhow!("the font cannot be read; this is a bug"))?;
    let failed = |reason: String| anyhow!("cannot draw: {reason}");
    let mut text = String::new();
    draw(SVGBackend::with_string(&mut text, SIZE), &curves).map_err(failed)?;
    std::fs::write(svg, text).with_context(|| format!("cannot write {}", svg.display()))?;
    let mut pixels = vec![0; (SIZE.0 * SIZE.1 * 3) as usize];
    draw(BitMapBackend::with_buffer(&mut pixels, SIZE), &curves).map_err(failed)?;
    write_png(&pixels, png).with_context(|| format!("cannot write {}", png.display()))
}

fn write_png(pixels: &[u8], path: &Path) -> anyhow::Result<()> {
    let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    Ok(writer.finish()?)
}

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

fn draw<B: DrawingBackend>(backend: B, curves: &[Curve]) -> Result<(), String> {
    let failed = |error: DrawingAreaErrorKind<B::ErrorType>| error.to_string();
    let root = backend.into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .caption("Quality against bytes: right and down is better", (FAMILY, 22))
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d(range(curves, |p| p.0).log_scale(), range(curves, |p| p.1).log_scale())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .label_style((FAMILY, 15))
        .x_desc("whole ratio: raw bytes over every byte on the wire")
        .y_desc("KL of the next 64 tokens, nats")
        .x_label_formatter(&|x| format!("{x:.0}\u{d7}"))
        .y_label_formatter(&|y| format!("{y:.4}"))
        .draw()
        .map_err(failed)?;
    for (curve, color) in curves.iter().zip(COLORS.iter().cycle()) {
        let line = curve.points.iter().map(|(x, y, _)| (*x, *y));
        chart
            .draw_series(LineSeries::new(line.clone(), color.stroke_width(2)))
            .map_err(failed)?
            .label(curve.codec)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        chart.draw_series(line.map(|at| Circle::new(at, 4, color.filled()))).map_err(failed)?;
        let labels = curve
            .points
            .iter()
            .map(|(x, y, label)| EmptyElement::at((*x, *y)) + Text::new(label.clone(), (8, 6), (FAMILY, 14)));
        chart.draw_series(labels).map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font((FAMILY, 16))
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()
        .map_err(failed)?;
    root.present().map_err(failed)
}

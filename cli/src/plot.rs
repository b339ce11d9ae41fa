//! Pictures as SVG and PNG alike, with a font that comes along: no display and no font of the system is needed.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

/// The family under which the font that comes along is known to the drawing; an SVG's viewer takes its own. It has ASCII and the sign of multiplication.
pub(crate) const FAMILY: &str = "sans-serif";
const FONT: &[u8] = include_bytes!("font/roboto-ascii.ttf");
/// Colours that stay apart for colour-blind eyes (Okabe and Ito).
pub(crate) const COLORS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 86, 86),
];

/// Where a picture is drawn.
pub(crate) type Canvas<B> = DrawingArea<B, Shift>;
/// What a drawing comes to.
pub(crate) type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// What can be drawn on a white canvas.
pub(crate) trait Picture {
    /// Width and height, in pixels.
    const SIZE: (u32, u32) = (960, 640);

    /// Draws it.
    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Drawn<B>;
}

/// Writes the picture to both paths.
///
/// # Errors
/// When it cannot be drawn, or a file cannot be written.
pub(crate) fn write<P: Picture>(picture: &P, svg: &Path, png: &Path) -> anyhow::Result<()> {
    register_font(FAMILY, FontStyle::Normal, FONT)
        .map_err(|_| anyhow!("the font cannot be read; this is a bug"))?;
    let mut text = String::new();
    draw(picture, SVGBackend::with_string(&mut text, P::SIZE))?;
    std::fs::write(svg, text).with_context(|| format!("cannot write {}", svg.display()))?;
    let mut pixels = vec![0; (P::SIZE.0 * P::SIZE.1 * 3) as usize];
    draw(picture, BitMapBackend::with_buffer(&mut pixels, P::SIZE))?;
    write_png(&pixels, P::SIZE, png).with_context(|| format!("cannot write {}", png.display()))
}

fn draw<P: Picture, B: DrawingBackend>(picture: &P, backend: B) -> anyhow::Result<()> {
    let canvas = backend.into_drawing_area();
    let drawn = canvas.fill(&WHITE).and_then(|()| picture.draw(&canvas)).and_then(|()| canvas.present());
    drawn.map_err(|error| anyhow!("cannot draw: {error}"))
}

fn write_png(pixels: &[u8], size: (u32, u32), path: &Path) -> anyhow::Result<()> {
    let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), size.0, size.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    Ok(writer.finish()?)
}

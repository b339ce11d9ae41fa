//! Writes the golden files of the current format version into a folder: `cargo run -p codec --example write_golden FOLDER`.
//! Only for a new version, codec or part of a plan; files that are there never change.

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use codec::{CodecKind, Decoder, Plan, fit::Balance};
use common::{Predictable, Source};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::args_os().nth(1).ok_or("name a folder to write to")?);
    let source = Source::golden();
    let plan = source.plan(Some((0..32).map(|i| 1.0 + i as f32 / 32.0).collect()), Balance::OneStep);
    let block = source.block(2, 40, 22);
    let encoder = source.encoder(&plan, 24, 160);
    let shifts: Vec<i8> = (0..40).map(|i| i % 16 - 8).collect();
    let chunks = [
        ("v1.raw", source.raw_encoder(160).encode(&block)?),
        ("v1.lossless", source.plain_encoder(CodecKind::Lossless, 160).encode(&block)?),
        ("v1.fp8", source.plain_encoder(CodecKind::Fp8, 160).encode(&block)?),
        ("v1.kvtc", encoder.encode(&block)?),
        ("v1.shifted", encoder.encode_with_shifts(&block, Some(&shifts))?),
    ];
    std::fs::create_dir_all(&out)?;
    write_plan(&out, "v1.plan", &plan)?;
    write_chunks(&out, &source.decoder(&plan), &chunks)?;
    let source = Source::golden_paper();
    let (plan, block) = (source.paper_plan(), source.block(2, 40, 24));
    let paper = |kind| source.planned_encoder(&plan, kind, 8, 160).encode(&block);
    let chunks = [
        ("v1.paper", paper(CodecKind::KvtcPaper)?),
        ("v1.paper-window", paper(CodecKind::KvtcPaperCodedWindow)?),
    ];
    write_plan(&out, "v1.paper.plan", &plan)?;
    write_chunks(&out, &source.decoder(&plan), &chunks)?;
    let kit = Predictable::new();
    let [first, middle, shifted] = kit.chunks();
    let chunks = [("v1.predicted-first", first), ("v1.predicted", middle), ("v1.predicted-shifted", shifted)];
    write_plan(&out, "v1.predicted.plan", &kit.plan)?;
    write_chunks(&out, &kit.decoder(), &chunks)
}

/// A plan and its id.
fn write_plan(out: &Path, name: &str, plan: &Plan) -> std::io::Result<()> {
    std::fs::write(out.join(name), plan.to_bytes())?;
    std::fs::write(out.join(format!("{name}.id")), plan.id().to_string())
}

/// Chunks with what they decode to.
fn write_chunks(
    out: &Path,
    decoder: &Decoder,
    chunks: &[(&str, Vec<u8>)],
) -> Result<(), Box<dyn std::error::Error>> {
    for (name, chunk) in chunks {
        let block = decoder.decode(chunk)?;
        let cache: Vec<u8> = block.keys.iter().chain(&block.values).flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(out.join(format!("{name}.chunk")), chunk)?;
        std::fs::write(out.join(format!("{name}.cache")), cache)?;
    }
    Ok(())
}

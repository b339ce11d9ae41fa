//! One stage of kvtc at a time, in the tiles and on the threads of the real thing: for this crate's benchmarks, not for others.
//!
//! Where a stage works in place its tile is copied first. Copies between tiles and the order of symbols belong to no stage.

use std::hint::black_box;

use half::bf16;
use rayon::prelude::*;

use crate::{
    encode::Encoder,
    error::Result,
    format::{chunk::ChunkHeader, segments::Segment},
    kvtc::{self, Job, Known, Opened, Parts, Payload},
    layout::KvBlock,
    predict::Prediction,
    side::{SideContext, Tile, needed, read_symbols, tiles, write_symbols},
    stages::{
        deflate::{deflate, inflate},
        pca::{project, reconstruct},
        rope::RopeTable,
        rows::{self, Rows},
    },
    tokens::Side,
};

/// What can be run, in the encoder's order and then in the decoder's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Planes to rows, keys without RoPE.
    Gather,
    /// Computes predictions and takes them off the rows.
    Predict,
    /// Rows to coefficients.
    Project,
    /// Coefficients to symbols.
    Quantize,
    /// Symbols to bytes and escapes.
    Pack,
    /// Payload to segments.
    Deflate,
    /// Segments to payload.
    Inflate,
    /// Bytes and escapes to symbols.
    Unpack,
    /// Symbols to coefficients.
    Dequantize,
    /// Coefficients to rows.
    Reconstruct,
    /// Rows to planes, keys with RoPE.
    Scatter,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Gather,
        Self::Predict,
        Self::Project,
        Self::Quantize,
        Self::Pack,
        Self::Deflate,
        Self::Inflate,
        Self::Unpack,
        Self::Dequantize,
        Self::Reconstruct,
        Self::Scatter,
    ];
}

/// What the stages of one side work on.
#[derive(Debug, Default)]
struct SideInputs {
    /// As gathered, one per tile.
    rows: Vec<Rows>,
    coefficients: Vec<Vec<f32>>,
    symbols: Vec<i16>,
}

/// A block stopped between all stages.
#[derive(Debug)]
pub struct Stages<'a> {
    job: Job<'a>,
    header: ChunkHeader,
    payload: Payload,
    segments: Vec<Vec<u8>>,
    rope: RopeTable,
    known: Option<Known<'a>>,
    sides: [SideInputs; 2],
}

impl<'a> Stages<'a> {
    /// Runs all stages once.
    ///
    /// # Errors
    /// As [`Encoder::encode_with_shifts`], and [`InvalidArgument`](crate::Error::InvalidArgument) for an encoder of another codec.
    pub fn new(encoder: &'a Encoder, block: &'a KvBlock, shifts: Option<&'a [i8]>) -> Result<Self> {
        let (job, header) = encoder.stages_of(block, shifts)?;
        let (header, payload) = kvtc::encode(&job, header)?;
        let segments = deflate(&payload.bytes, &payload.breaks, header.segment_bytes as usize);
        let rope = RopeTable::new(job.layout, block.first_token, block.tokens);
        let known = kvtc::known_of(&job, &mut Payload::default())?;
        let mut stages = Self { job, header, payload, segments, rope, known, sides: Default::default() };
        stages.sides = [stages.inputs(Side::Keys)?, stages.inputs(Side::Values)?];
        Ok(stages)
    }

    fn inputs(&self, side: Side) -> Result<SideInputs> {
        let opened = self.opened()?;
        let (part, bytes) = &opened.sides[side as usize];
        let tiles = tiles(&opened.groups, &part.order.kept);
        let rows = self.gather(side, &tiles)?;
        let mut left: Vec<Vec<f32>> = rows.iter().map(|rows| rows.features.clone()).collect();
        if let Some(prediction) = self.prediction(side) {
            for (left, rows) in left.iter_mut().zip(&rows) {
                let tokens = left.chunks_exact_mut(self.job.layout.features()).zip(&rows.tokens);
                tokens.for_each(|(row, &token)| prediction.remove(token, row));
            }
        }
        let coefficients = left.iter_mut().zip(&tiles);
        let coefficients = coefficients
            .map(|(left, tile)| project(part.space, needed(tile, &part.order.kept), left))
            .collect();
        Ok(SideInputs { rows, coefficients, symbols: read_symbols(part.space, &part.order, bytes)? })
    }

    fn opened(&self) -> Result<Opened<'_>> {
        let profile = self.job.plan.kvtc();
        let parts = Parts::of(&self.header, profile, self.job.layout.features())?;
        Opened::of(&self.header, (profile, &parts), None, &self.payload.bytes)
    }

    fn prediction(&self, side: Side) -> Option<Prediction<'_>> {
        self.known.as_ref().map(|known| Prediction::of(known.predictor, side, &known.tokens))
    }

    fn cache(&self, side: Side) -> (&[bf16], Option<&RopeTable>) {
        match side {
            Side::Keys => (&self.job.block.keys, Some(&self.rope)),
            Side::Values => (&self.job.block.values, None),
        }
    }

    /// Runs one stage on keys and values side by side.
    ///
    /// # Errors
    /// None once [`Self::new`] has gone through.
    pub fn run(&self, stage: Stage) -> Result<()> {
        match stage {
            Stage::Deflate => {
                let segment_bytes = self.header.segment_bytes as usize;
                black_box(deflate(&self.payload.bytes, &self.payload.breaks, segment_bytes));
                Ok(())
            }
            Stage::Inflate => self.inflate(),
            _ => {
                let opened = self.opened()?;
                let (keys, values) = rayon::join(
                    || self.run_side(&opened, Side::Keys, stage),
                    || self.run_side(&opened, Side::Values, stage),
                );
                keys.and(values)
            }
        }
    }

    fn inflate(&self) -> Result<()> {
        let (segment_bytes, len) = (self.header.segment_bytes as usize, self.payload.bytes.len());
        let segments = self
            .segments
            .iter()
            .enumerate()
            .map(|(i, coded)| Segment { coded, inflated_len: segment_bytes.min(len - i * segment_bytes) });
        let mut payload = vec![0; len];
        inflate(&segments.collect::<Vec<_>>(), segment_bytes, &mut payload)?;
        black_box(payload);
        Ok(())
    }

    fn run_side(&self, opened: &Opened<'_>, side: Side, stage: Stage) -> Result<()> {
        let (part, bytes) = &opened.sides[side as usize];
        let SideInputs { rows, coefficients, symbols } = &self.sides[side as usize];
        let tiles = tiles(&opened.groups, &part.order.kept);
        let (layout, space, order, groups) =
            (self.job.layout, part.space, &part.order, opened.groups.as_slice());
        let tokens = self.job.place.tokens;
        let context = SideContext { layout, space, order, groups, rope: None, tokens, prediction: None };
        match stage {
            Stage::Gather => drop(black_box(self.gather(side, &tiles)?)),
            Stage::Predict => self.predict(side, rows),
            Stage::Project => tiles.par_iter().zip(rows).for_each(|(tile, rows)| {
                black_box(project(part.space, needed(tile, &part.order.kept), &mut rows.features.clone()));
            }),
            Stage::Quantize => tiles.par_iter().zip(coefficients).for_each(|(tile, y)| {
                black_box(context.quantize_tile(tile, y));
            }),
            Stage::Pack => drop(black_box(write_symbols(part.space, &part.order, symbols))),
            Stage::Unpack => drop(black_box(read_symbols(part.space, &part.order, bytes)?)),
            Stage::Dequantize => {
                tiles.par_iter().for_each(|tile| drop(black_box(context.dequantize_tile(tile, symbols))));
            }
            Stage::Reconstruct => coefficients.par_iter().for_each(|y| {
                black_box(reconstruct(part.space, y));
            }),
            Stage::Scatter => self.scatter(side, rows),
            Stage::Deflate | Stage::Inflate => {}
        }
        Ok(())
    }

    fn gather(&self, side: Side, tiles: &[Tile<'_>]) -> Result<Vec<Rows>> {
        let (cache, rope) = self.cache(side);
        let gather = |tile: &Tile<'_>| {
            let tokens: Vec<usize> = tile.iter().flat_map(|piece| piece.tokens).copied().collect();
            let features = rows::gather_tile(cache, self.job.place.tokens, &tokens, self.job.layout, rope)?;
            Ok(Rows { tokens, features })
        };
        tiles.par_iter().map(gather).collect()
    }

    fn predict(&self, side: Side, rows: &[Rows]) {
        let Some(prediction) = self.prediction(side) else { return };
        rows.par_iter().for_each(|rows| {
            let mut left = rows.features.clone();
            let tokens = left.chunks_exact_mut(self.job.layout.features()).zip(&rows.tokens);
            tokens.for_each(|(row, &token)| prediction.remove(token, row));
            black_box(left);
        });
    }

    fn scatter(&self, side: Side, rows: &[Rows]) {
        let (cache, rope) = self.cache(side);
        let mut out = vec![bf16::ZERO; cache.len()];
        rows::scatter(rows, self.job.layout, self.job.place.tokens, rope, &mut out);
        black_box(out);
    }
}

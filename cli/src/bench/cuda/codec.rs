//! The codec on the GPU: a cache with a spectrum like the measured one, coded from a session's pages and back, in chunks as nodes cut
//! them; beside each figure what zlib would have made of the same segments.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Context;
use codec::cuda::{CudaCodec, CudaDecoder, CudaEncoder, DeviceFeatureTable, DeviceTokenFeatures};
use codec::probe::synthetic::{HashedFeatures, Synthetic, shifts};
use codec::{CodecKind, Coding, Decoder, Encoder, KvBlock, Limits, TokenFeatures};
use gpu::{Device, KvPages, KvPool, KvShape};
use model::Config;
use node::loaded::layout;
use node::prompt::pieces;

use super::{Subject, config_of};
use crate::bench::timing::{Figures, median, seconds};
use crate::synth::{Shape, measured_plan};

/// Whose plan it is.
const FINGERPRINT: [u8; 16] = [7; 16];
/// Tokens with features of their own: enough that hardly two of a prompt are the same by chance.
const VOCABULARY: usize = 32_768;
/// Tokens that a prediction looks at, as in the embedded plan.
const CONTEXT: usize = 2;

/// A prompt's cache in pages, and both ends of the codec.
struct Bench {
    device: Device,
    synthetic: Synthetic,
    ids: Vec<u32>,
    shifts: Vec<i8>,
    blocks: Vec<KvBlock>,
    pages: KvPages,
    encoder: CudaEncoder,
    decoder: CudaDecoder,
    coding: Coding,
}

pub(crate) fn codec(subject: &Subject<'_>, tier: u8, chunk: usize) -> anyhow::Result<Figures> {
    let config = config_of(subject.shape.unwrap_or(Shape::Llama32_1b))?;
    let mut bench = Bench::new(subject, &config, (tier, chunk))?;
    let (mut encode, mut decode, mut chunks) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=subject.runs {
        let encoded = seconds(|| bench.encode())?;
        let decoded = seconds(|| bench.decode(&encoded.1))?;
        if run > 0 {
            encode.push(encoded.0);
            decode.push(decoded.0);
        }
        chunks = encoded.1;
    }
    let mut figures = Figures::default();
    let (encode, decode) = (median(encode), median(decode));
    let wire: usize = chunks.iter().map(Vec::len).sum();
    let raw = subject.tokens * bench.synthetic.plan().layout().bytes_per_token();
    figures.say("device", bench.device.name()?);
    figures.put("prompt_tokens", subject.tokens as f64);
    figures.put("chunks", chunks.len() as f64);
    figures.put("raw_bytes", raw as f64);
    figures.put("coded_bytes", wire as f64);
    figures.put("ratio", raw as f64 / wire as f64);
    figures.put("encode_ms", encode * 1e3);
    figures.put("decode_ms", decode * 1e3);
    figures.put("encode_gb_per_s", raw as f64 / 1e9 / encode);
    figures.put("decode_gb_per_s", raw as f64 / 1e9 / decode);
    figures.put("encoder_scratch_bytes", bench.encoder.scratch_bytes() as f64);
    figures.put("decoder_scratch_bytes", bench.decoder.scratch_bytes() as f64);
    bench.compare(&chunks, &mut figures)?;
    bench.stages(&mut figures)?;
    Ok(figures)
}

impl Bench {
    fn new(subject: &Subject<'_>, config: &Config, (tier, chunk): (u8, usize)) -> anyhow::Result<Self> {
        let device = Device::open(subject.ordinal)?;
        let stream = device.stream()?;
        let layout = layout(config, &model::inv_freq(&config.rope, config.head_dim));
        let features = HashedFeatures { width: config.hidden_size, vocabulary: VOCABULARY };
        let known: Arc<dyn TokenFeatures> = Arc::new(features);
        let synthetic = Synthetic::new(&layout, FINGERPRINT, &measured_plan()?, Some((CONTEXT, known)), 1)?;
        let ids = synthetic.ids(subject.tokens, 2);
        let cut = pieces(subject.tokens, chunk);
        let blocks = cut.map(|piece| synthetic.block(piece.start, piece.len(), &ids, 3));
        let blocks = blocks.collect::<codec::Result<Vec<_>>>()?;
        let (layers, kv_heads, head_dim) = (config.layers, config.kv_heads, config.head_dim);
        let pool = KvPool::new(&device, &stream, KvShape { layers, kv_heads, head_dim }, subject.tokens)?;
        let table: Arc<dyn DeviceTokenFeatures> = Arc::new(DeviceFeatureTable::new(&device, &features)?);
        let plan = Some(Arc::clone(synthetic.plan()));
        let codec = CudaCodec::new(&device, layout, FINGERPRINT, plan, Some(table))?;
        let mut bench = Self {
            encoder: codec.encoder()?,
            decoder: codec.decoder(Limits::default())?,
            pages: pool.take(&stream, subject.tokens)?,
            shifts: shifts(subject.tokens, 4),
            coding: Coding { kind: CodecKind::Kvtc, tier },
            device,
            synthetic,
            ids,
            blocks,
        };
        bench.fill()?;
        Ok(bench)
    }

    /// Puts the cache into the pages as it is.
    fn fill(&mut self) -> anyhow::Result<()> {
        let layout = self.synthetic.plan().layout().clone();
        let encoder = Encoder::new(layout, FINGERPRINT, None, Coding::RAW, self.ids.len())?;
        for block in &self.blocks {
            let chunk = encoder.encode(block)?;
            self.decoder.decode(&chunk, None, self.pages.view())?;
        }
        Ok(())
    }

    fn pieces(&self) -> Vec<Range<usize>> {
        self.blocks.iter().map(|block| block.first_token..block.first_token + block.tokens).collect()
    }

    fn encode(&mut self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut chunks = Vec::new();
        for piece in self.pieces() {
            let shifts = &self.shifts[piece.clone()];
            let view = self.pages.view();
            chunks.push(self.encoder.encode(self.coding, &self.ids, view, piece, Some(shifts))?);
        }
        Ok(chunks)
    }

    fn decode(&mut self, chunks: &[Vec<u8>]) -> anyhow::Result<()> {
        for chunk in chunks {
            self.decoder.decode(chunk, Some(self.coding), self.pages.view())?;
        }
        Ok(())
    }

    /// The first chunk against the CPU's: its size, that of zlib's segments, and whether the CPU reads it.
    fn compare(&mut self, chunks: &[Vec<u8>], figures: &mut Figures) -> anyhow::Result<()> {
        let plan = self.synthetic.plan();
        let (layout, features) = (plan.layout().clone(), self.synthetic.features().context("no features")?);
        let shared = Some(Arc::clone(plan));
        let encoder = Encoder::new(layout.clone(), FINGERPRINT, shared.clone(), self.coding, self.ids.len())?;
        let encoder = encoder.predicting(Arc::clone(features), Arc::from(self.ids.as_slice()))?;
        let block = &self.blocks[0];
        let cpu = encoder.encode_with_shifts(block, Some(&self.shifts[..block.tokens]))?;
        figures.put("size_over_cpu", chunks[0].len() as f64 / cpu.len() as f64);
        figures.put("size_over_zlib_6", codec::probe::over_zlib(&chunks[0], 6)?);
        let decoder = Decoder::new(layout, FINGERPRINT, shared, Limits::default())?;
        let decoder = decoder.predicting(Arc::clone(features));
        let (ours, theirs) =
            (error(&decoder.decode(&chunks[0])?, block), error(&decoder.decode(&cpu)?, block));
        figures.put("error_over_cpu", ours / theirs);
        Ok(())
    }

    /// What one more run's stages take on the device.
    fn stages(&mut self, figures: &mut Figures) -> anyhow::Result<()> {
        self.fill()?;
        self.encoder.measure(true);
        self.decoder.measure(true);
        let chunks = self.encode()?;
        let encoding = self.encoder.stages()?;
        self.decode(&chunks)?;
        let decoding = self.decoder.stages()?;
        figures.say("last_chunk_encode_stages_ms", summary(&encoding));
        figures.say("last_chunk_decode_stages_ms", summary(&decoding));
        Ok(())
    }
}

/// Squared error of keys and values over their energies.
fn error(got: &KvBlock, exact: &KvBlock) -> f64 {
    let side = |got: &[half::bf16], exact: &[half::bf16]| {
        let pairs = got.iter().zip(exact).map(|(a, b)| (f64::from(a.to_f32()), f64::from(b.to_f32())));
        let (error, energy) =
            pairs.fold((0.0, 0.0), |(error, energy), (a, b)| (error + (a - b).powi(2), energy + b * b));
        error / energy
    };
    side(&got.keys, &exact.keys) + side(&got.values, &exact.values)
}

/// Stages added up by name, in the order in which they first came.
fn summary(stages: &[(&'static str, f32)]) -> String {
    let mut sums: Vec<(&str, f32)> = Vec::new();
    for &(name, ms) in stages {
        match sums.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += ms,
            None => sums.push((name, ms)),
        }
    }
    let words = sums.iter().map(|(name, ms)| format!("{} {ms:.3}", name.trim_end_matches("_ms")));
    words.collect::<Vec<_>>().join(", ")
}

//! Coding and decoding of a real cache, against the prompt pass that made it and against the codec's two matrix products
//! alone.

use std::sync::Arc;

use anyhow::Context;
use codec::probe::{Product, Work, ideal, multiply, sgemm};
use codec::{CodecKind, Coding, Decoder, Encoder, KvBlock, Limits, Plan};
use model::{Draws, KvCache};
use node::Loaded;
use node::compute::Received;
use node::prompt::{AFTER_CHUNK_TOKENS, Progress, PromptPass, export, pieces};
use openai::Tokenizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::Args;
use super::timing::{Figures, median, seconds};
use crate::prompts::{retrieval, text_tokens};

const CHUNK: usize = 256;
/// Rows and columns of the product that shows what the machine can do.
const SGEMM_SIZE: usize = 1024;

/// What is measured: a prompt and both ends of the codec, which codes after the prompt, with a step per token.
struct Subject {
    loaded: Loaded,
    plan: Arc<Plan>,
    tier: u8,
    tokens: Vec<u32>,
    encoder: Encoder,
    decoder: Decoder,
}

/// What becomes one chunk, and its tokens' shifts.
type Piece = (KvBlock, Vec<i8>);

/// Seconds of one run.
struct Times {
    prefill: f64,
    encode: f64,
    decode: f64,
    cold_encode: f64,
    cold_decode: f64,
    project: Work,
    reconstruct: Work,
    sgemm: f64,
    /// Bytes of symbols over their entropy, less 1.
    over_ideal: f64,
}

pub(crate) fn codec(args: &Args, tier: u8) -> anyhow::Result<Figures> {
    let subject = Subject::new(args, tier)?;
    // The first run pays for what no later one sees, and is not counted.
    let mut wire = subject.run()?.1;
    let mut runs = Vec::new();
    for _ in 0..args.runs {
        let (times, bytes) = subject.run()?;
        runs.push(times);
        wire = bytes;
    }
    Ok(subject.figures(&runs, wire))
}

impl Subject {
    fn new(args: &Args, tier: u8) -> anyhow::Result<Self> {
        let loaded = Loaded::load(&args.model, None, String::new())?;
        let plan =
            loaded.plan.clone().context("the model directory has no plan.kvtc: run `kvferry calibrate`")?;
        let tokenizer = Tokenizer::load(&args.model)?;
        let count = text_tokens(&tokenizer);
        let task = retrieval(&mut ChaCha8Rng::seed_from_u64(1), args.tokens, count);
        let tokens = tokenizer.encode(&task.prompt)?;
        let coding = Coding { kind: CodecKind::Kvtc, tier };
        let (encoder, decoder) = (loaded.encoder(coding, &tokens)?, loaded.decoder(Limits::default())?);
        Ok(Self { loaded, plan, tier, tokens, encoder, decoder })
    }

    /// Everything once, and the bytes that the cache was coded to.
    fn run(&self) -> anyhow::Result<(Times, usize)> {
        let (prefill, blocks) = self.prefill()?;
        let encode = |encoder: &Encoder| {
            let code = |(block, shifts): &Piece| encoder.encode_with_shifts(block, Some(shifts));
            seconds(|| Ok(blocks.iter().map(code).collect::<codec::Result<Vec<_>>>()?))
        };
        let decode = |decoder: &Decoder, chunks: &[Vec<u8>]| {
            seconds(|| Ok(chunks.iter().map(|c| decoder.decode(c)).collect::<codec::Result<Vec<_>>>()?))
        };
        // A copy of a plan has no rows of earlier tokens at hand.
        let cold = || self.ends(&Arc::new(Plan::clone(&self.plan)));
        let (cold_encode, chunks) = encode(&cold()?.0)?;
        let (cold_decode, _) = decode(&cold()?.1, &chunks)?;
        let (encode, chunks) = encode(&self.encoder)?;
        let (decode, _) = decode(&self.decoder, &chunks)?;
        let shifts: Vec<i8> = blocks.iter().flat_map(|(_, shifts)| shifts).copied().collect();
        let [project, reconstruct] = [Product::Project, Product::Reconstruct]
            .map(|which| multiply(&self.plan, self.tier, &shifts, which));
        let sgemm = sgemm(SGEMM_SIZE).gflops();
        let over_ideal = ideal(&self.plan, chunks.iter().map(Vec::as_slice))?.overhead();
        let times = Times {
            prefill,
            encode,
            decode,
            cold_encode,
            cold_decode,
            project,
            reconstruct,
            sgemm,
            over_ideal,
        };
        Ok((times, chunks.iter().map(Vec::len).sum()))
    }

    /// Encoder and decoder with this copy of the plan.
    fn ends(&self, plan: &Arc<Plan>) -> anyhow::Result<(Encoder, Decoder)> {
        let (layout, model) = (&self.loaded.layout, self.loaded.llama.fingerprint());
        let (coding, tokens) = (Coding { kind: CodecKind::Kvtc, tier: self.tier }, self.tokens.len());
        let encoder = Encoder::new(layout.clone(), model, Some(Arc::clone(plan)), coding, tokens)?;
        let encoder = encoder.predicting(self.loaded.token_features(), Arc::from(self.tokens.as_slice()))?;
        let decoder = Decoder::new(layout.clone(), model, Some(Arc::clone(plan)), Limits::default())?;
        Ok((encoder, decoder.predicting(self.loaded.token_features())))
    }

    fn prefill(&self) -> anyhow::Result<(f64, Vec<Piece>)> {
        let llama = &self.loaded.llama;
        let mut cache = KvCache::new(llama.config(), self.tokens.len());
        let mut pass = PromptPass::new(self.tokens.clone(), CHUNK).collecting(self.loaded.layer_weights());
        let (time, ()) = seconds(|| {
            while pass.advance(llama, &mut cache, &Draws::GREEDY)?.1 == Progress::More {}
            Ok(())
        })?;
        let shifts = pass.into_received().map(Received::shifts).transpose()?.unwrap_or_default();
        let pieces = pieces(self.tokens.len(), AFTER_CHUNK_TOKENS);
        let blocks = pieces.map(|piece| Ok((export(&cache, piece.clone())?, shifts[piece].to_vec())));
        Ok((time, blocks.collect::<model::Result<_>>()?))
    }

    fn figures(&self, runs: &[Times], wire: usize) -> Figures {
        let of = |field: fn(&Times) -> f64| median(runs.iter().map(field).collect());
        let (encode, decode, prefill) = (of(|t| t.encode), of(|t| t.decode), of(|t| t.prefill));
        let (project, reconstruct) =
            (of(|t| t.project.time.as_secs_f64()), of(|t| t.reconstruct.time.as_secs_f64()));
        let raw = self.tokens.len() * self.loaded.layout.bytes_per_token();
        let mut figures = Figures::default();
        figures.put("prompt_tokens", self.tokens.len() as f64);
        figures.put("raw_bytes", raw as f64);
        figures.put("coded_bytes", wire as f64);
        figures.put("ratio", raw as f64 / wire as f64);
        figures.put("symbols_over_ideal_code", of(|t| t.over_ideal));
        figures.put("prefill_ms", prefill * 1e3);
        figures.put("encode_ms", encode * 1e3);
        figures.put("decode_ms", decode * 1e3);
        figures.put("encode_mb_per_s", raw as f64 / 1e6 / encode);
        figures.put("decode_mb_per_s", raw as f64 / 1e6 / decode);
        figures.put("cold_encode_ms", of(|t| t.cold_encode) * 1e3);
        figures.put("cold_decode_ms", of(|t| t.cold_decode) * 1e3);
        figures.put("codec_share_of_prefill", (encode + decode) / prefill);
        figures.put("encode_product_ms", project * 1e3);
        figures.put("decode_product_ms", reconstruct * 1e3);
        figures.put("products_share_of_codec", (project + reconstruct) / (encode + decode));
        figures.put("encode_product_gflops", of(|t| t.project.gflops()));
        figures.put("decode_product_gflops", of(|t| t.reconstruct.gflops()));
        figures.put("sgemm_gflops", of(|t| t.sgemm));
        figures
    }
}

//! Coding and decoding of a real cache, against the prompt pass that made it.

use std::sync::Arc;

use anyhow::Context;
use codec::probe::{Product, multiply};
use codec::{CodecKind, Coding, Decoder, Encoder, Limits};
use node::Loaded;
use node::prompt::export;
use openai::Tokenizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::Args;
use super::model::run_prompt;
use super::timing::{Figures, median, put, seconds};
use crate::prompts::{retrieval, text_tokens};

const CHUNK: usize = 256;

pub(crate) fn codec(args: &Args, tier: u8) -> anyhow::Result<Figures> {
    let loaded = Loaded::load(&args.model, None, String::new())?;
    let plan =
        loaded.plan.clone().context("the model directory has no plan.kvtc: run `kvferry calibrate`")?;
    let tokenizer = Tokenizer::load(&args.model)?;
    let count = text_tokens(&tokenizer);
    let task = retrieval(&mut ChaCha8Rng::seed_from_u64(1), args.tokens, count);
    let tokens = tokenizer.encode(&task.prompt)?;
    let coding = Coding { kind: CodecKind::Kvtc, tier };
    let fingerprint = loaded.llama.fingerprint();
    let encoder =
        Encoder::new(loaded.layout.clone(), fingerprint, Some(Arc::clone(&plan)), coding, tokens.len())?;
    let decoder =
        Decoder::new(loaded.layout.clone(), fingerprint, Some(Arc::clone(&plan)), Limits::default())?;
    let [mut prefill, mut encode, mut decode, mut project, mut reconstruct] = [const { Vec::new() }; 5];
    let mut wire = 0;
    for run in 0..=args.runs {
        let (prefill_time, cache) = seconds(|| run_prompt(&loaded.llama, &tokens, 0))?;
        let mut blocks = Vec::new();
        for start in (0..tokens.len()).step_by(CHUNK) {
            blocks.push(export(&cache, start..(start + CHUNK).min(tokens.len()))?);
        }
        let (encode_time, chunks) =
            seconds(|| Ok(blocks.iter().map(|b| encoder.encode(b)).collect::<codec::Result<Vec<_>>>()?))?;
        let (decode_time, _) =
            seconds(|| Ok(chunks.iter().map(|c| decoder.decode(c)).collect::<codec::Result<Vec<_>>>()?))?;
        let products = |product| seconds(|| Ok(multiply(&plan, tier, tokens.len(), product)));
        let (project_time, reconstruct_time) =
            (products(Product::Project)?.0, products(Product::Reconstruct)?.0);
        wire = chunks.iter().map(Vec::len).sum::<usize>();
        if run > 0 {
            prefill.push(prefill_time);
            encode.push(encode_time);
            decode.push(decode_time);
            project.push(project_time);
            reconstruct.push(reconstruct_time);
        }
    }
    let raw = tokens.len() * loaded.layout.bytes_per_token();
    let times = [prefill, encode, decode, project, reconstruct].map(median);
    Ok(figures(tokens.len(), (raw, wire), times))
}

fn figures(
    tokens: usize,
    (raw, wire): (usize, usize),
    [prefill, encode, decode, project, reconstruct]: [f64; 5],
) -> Figures {
    let megabytes = raw as f64 / 1e6;
    let mut figures = Figures::new();
    put(&mut figures, "prompt_tokens", tokens as f64);
    put(&mut figures, "raw_bytes", raw as f64);
    put(&mut figures, "coded_bytes", wire as f64);
    put(&mut figures, "ratio", raw as f64 / wire as f64);
    put(&mut figures, "prefill_ms", prefill * 1e3);
    put(&mut figures, "encode_ms", encode * 1e3);
    put(&mut figures, "decode_ms", decode * 1e3);
    put(&mut figures, "encode_mb_per_s", megabytes / encode);
    put(&mut figures, "decode_mb_per_s", megabytes / decode);
    put(&mut figures, "codec_share_of_prefill", (encode + decode) / prefill);
    put(&mut figures, "encode_product_ms", project * 1e3);
    put(&mut figures, "decode_product_ms", reconstruct * 1e3);
    put(&mut figures, "products_share_of_codec", (project + reconstruct) / (encode + decode));
    figures
}

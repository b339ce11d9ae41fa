//! What comes after the projection, and before it on the way back: quantize, arrange, pack, deflate. Ours against the replica of
//! the seed's method, each on its own basis of the same plan, in turns on the body of the same prompt's cache.

use std::path::Path;

use anyhow::{Context, ensure};
use codec::probe::Projected;
use node::Loaded;
use node::prompt::export;
use openai::Tokenizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::Args;
use super::model::run_prompt;
use super::timing::{Figures, median, seconds};
use crate::eval::seed::{Replica, body};
use crate::prompts::{retrieval, text_tokens};

/// Seconds of every run, and coded bytes.
#[derive(Default)]
struct Measured {
    encode: Vec<f64>,
    decode: Vec<f64>,
    bytes: usize,
}

pub(crate) fn stages(args: &Args, tier: u8, plan: Option<&Path>) -> anyhow::Result<Figures> {
    let loaded = Loaded::load(&args.model, plan, String::new())?;
    let plan =
        loaded.plan.clone().context("there is no plan: run `kvferry calibrate`, or name one with --plan")?;
    let replica = Replica::new(&plan, tier)?;
    let tokenizer = Tokenizer::load(&args.model)?;
    let count = text_tokens(&tokenizer);
    let task = retrieval(&mut ChaCha8Rng::seed_from_u64(1), args.tokens, count);
    let ids = tokenizer.encode(&task.prompt)?;
    let range = body(ids.len());
    ensure!(
        !range.is_empty(),
        "a prompt of {} tokens is all sinks and window; ask for more (--tokens)",
        ids.len()
    );
    let block = export(&run_prompt(&loaded.llama, &ids, 0)?, range)?;
    let features = loaded.token_features();
    let ours = Projected::new(&plan, tier, &block, (features.as_ref(), &ids))?;
    let theirs = replica.project(&block)?;
    let (mut kvtc, mut seed) = (Measured::default(), Measured::default());
    // The first run pays for what no later one sees, and is not counted.
    for is_counted in (0..=args.runs).map(|run| run > 0) {
        let (encode, coded) = seconds(|| Ok(ours.code()))?;
        let (decode, _) = seconds(|| Ok(ours.decode(&coded)?))?;
        kvtc.add(is_counted, encode, decode, coded.bytes());
        let (encode, packed) = seconds(|| replica.pack(&theirs))?;
        let (decode, _) = seconds(|| replica.unpack(&packed))?;
        seed.add(is_counted, encode, decode, packed.bytes());
    }
    Ok(figures(ids.len(), block.tokens * loaded.layout.bytes_per_token(), kvtc, seed))
}

impl Measured {
    fn add(&mut self, is_counted: bool, encode: f64, decode: f64, bytes: usize) {
        if is_counted {
            self.encode.push(encode);
            self.decode.push(decode);
        }
        self.bytes = bytes;
    }
}

/// Speeds are those of the body's bf16 bytes.
fn figures(prompt_tokens: usize, raw: usize, kvtc: Measured, seed: Measured) -> Figures {
    let (kvtc_bytes, seed_bytes) = (kvtc.bytes as f64, seed.bytes as f64);
    let [kvtc, seed] = [kvtc, seed].map(|times| (median(times.encode), median(times.decode)));
    let (raw, mb_per_s) = (raw as f64, |seconds: f64| raw as f64 / 1e6 / seconds);
    let mut figures = Figures::default();
    figures.put("prompt_tokens", prompt_tokens as f64);
    figures.put("body_raw_bytes", raw);
    figures.put("kvtc_body_ratio", raw / kvtc_bytes);
    figures.put("seed_body_ratio", raw / seed_bytes);
    figures.put("kvtc_encode_mb_per_s", mb_per_s(kvtc.0));
    figures.put("seed_encode_mb_per_s", mb_per_s(seed.0));
    figures.put("encode_speedup", seed.0 / kvtc.0);
    figures.put("kvtc_decode_mb_per_s", mb_per_s(kvtc.1));
    figures.put("seed_decode_mb_per_s", mb_per_s(seed.1));
    figures.put("decode_speedup", seed.1 / kvtc.1);
    figures.put("both_speedup", (seed.0 + seed.1) / (kvtc.0 + kvtc.1));
    figures
}

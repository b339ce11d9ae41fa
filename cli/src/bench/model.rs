//! Prompt pass and decode steps, ours and candle-transformers', in turns on the same weights.

use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama as theirs;
use half::bf16;
use model::{Draws, KvCache, Llama, LogitsOf, Sampling, Sequence};
use node::PromptPass;
use node::prompt::Progress;

use super::Args;
use super::timing::{Figures, median, seconds};

/// Tokens of a chunk, as nodes run prompts by default.
const CHUNK: usize = 256;
/// Decode steps per measured run.
const STEPS: usize = 64;

struct Theirs {
    llama: theirs::Llama,
    config: theirs::Config,
}

impl Theirs {
    fn load(dir: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(dir.join("config.json"))?;
        let config: theirs::LlamaConfig = serde_json::from_str(&text)?;
        let config = config.into_config(false);
        let bytes = std::fs::read(dir.join("model.safetensors")).context("one weights file is expected")?;
        let vb = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)?;
        Ok(Self { llama: theirs::Llama::load(vb, &config)?, config })
    }

    fn prefill(&self, tokens: &[u32]) -> anyhow::Result<theirs::Cache> {
        let mut cache = theirs::Cache::new(true, DType::F32, &self.config, &Device::Cpu)?;
        self.forward(tokens, 0, &mut cache)?;
        Ok(cache)
    }

    fn forward(&self, tokens: &[u32], position: usize, cache: &mut theirs::Cache) -> anyhow::Result<u32> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = self.llama.forward(&input, position, cache)?.flatten_all()?;
        Ok(Sampling::GREEDY.draw(&logits.to_vec1::<f32>()?, position))
    }
}

/// Some prompt of the asked length; its content does not change the work.
pub(crate) fn prompt(vocab: usize, tokens: usize) -> Vec<u32> {
    (0..tokens).map(|i| ((i * 7919 + i * i % 613) % (vocab / 2)) as u32).collect()
}

/// Runs a whole prompt in chunks into a cache with room for `more` tokens.
pub(crate) fn run_prompt(llama: &Llama, tokens: &[u32], more: usize) -> anyhow::Result<KvCache<bf16>> {
    let mut cache = KvCache::new(llama.config(), tokens.len() + more);
    let mut pass = PromptPass::new(tokens.to_vec(), CHUNK);
    while pass.advance(llama, &mut cache, &Draws::GREEDY)?.1 == Progress::More {}
    Ok(cache)
}

pub(crate) fn prefill(args: &Args) -> anyhow::Result<Figures> {
    let (ours, theirs) = (Llama::load(&args.model)?, Theirs::load(&args.model)?);
    let tokens = prompt(ours.config().vocab_size, args.tokens);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for run in 0..=args.runs {
        let our_time = seconds(|| run_prompt(&ours, &tokens, 0))?.0;
        let their_time = seconds(|| theirs.prefill(&tokens))?.0;
        if run > 0 {
            a.push(our_time);
            b.push(their_time);
        }
    }
    Ok(compared(args, tokens.len(), median(a), tokens.len(), median(b)))
}

pub(crate) fn decode(args: &Args, batch: usize) -> anyhow::Result<Figures> {
    let (ours, theirs) = (Llama::load(&args.model)?, Theirs::load(&args.model)?);
    let tokens = prompt(ours.config().vocab_size, args.tokens);
    let filled = run_prompt(&ours, &tokens, STEPS)?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for run in 0..=args.runs {
        let mut caches = vec![filled.clone(); batch.max(1)];
        let our_time = seconds(|| steps(&ours, &mut caches))?.0;
        let mut cache = theirs.prefill(&tokens)?;
        let step = |position| theirs.forward(&[7], position, &mut cache).map(drop);
        let their_time = seconds(|| (tokens.len()..tokens.len() + STEPS).try_for_each(step))?.0;
        if run > 0 {
            a.push(our_time);
            b.push(their_time);
        }
    }
    Ok(compared(args, STEPS * batch.max(1), median(a), STEPS, median(b)))
}

fn steps(llama: &Llama, caches: &mut [KvCache<bf16>]) -> anyhow::Result<()> {
    for _ in 0..STEPS {
        let mut batch: Vec<_> =
            caches.iter_mut().map(|cache| Sequence { cache, tokens: &[7], received: None }).collect();
        llama.forward(&mut batch, LogitsOf::LastToken)?;
    }
    Ok(())
}

/// Speeds beside each other; candle-transformers steps one session at a time, so a batch compares by tokens a second.
fn compared(args: &Args, our_tokens: usize, ours: f64, their_tokens: usize, theirs: f64) -> Figures {
    let (our_speed, their_speed) = (our_tokens as f64 / ours, their_tokens as f64 / theirs);
    let mut figures = Figures::default();
    figures.put("prompt_tokens", args.tokens as f64);
    figures.put("ours_ms", ours * 1e3);
    figures.put("ours_tokens_per_s", our_speed);
    figures.put("candle_ms", theirs * 1e3);
    figures.put("candle_tokens_per_s", their_speed);
    figures.put("speedup", our_speed / their_speed);
    figures
}

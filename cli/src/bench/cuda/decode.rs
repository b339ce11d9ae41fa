//! Decode steps of a batch on the GPU, sessions at the prompt's length and growing.

use model::Draws;
use model::cuda::Step;

use super::Subject;
use crate::bench::timing::{Figures, median, seconds};

/// Decode steps per measured run.
const STEPS: usize = 64;

pub(crate) fn decode(subject: &Subject<'_>, batch: usize) -> anyhow::Result<Figures> {
    let (batch, mut ready) = (batch.max(1), subject.ready()?);
    let prompt = ready.prompt(subject.tokens);
    let (pool, mut caches) = ready.caches(batch, subject.tokens + STEPS)?;
    for cache in &mut caches {
        ready.llama.prefill(cache, &prompt, None)?;
    }
    let (prepare, ()) = seconds(|| Ok(ready.llama.prepare_steps(&pool, batch)?))?;
    let mut times = Vec::new();
    for run in 0..=subject.runs {
        let mut tokens = vec![7; batch];
        let time = seconds(|| {
            for _ in 0..STEPS {
                let steps = caches.iter_mut().zip(&tokens);
                let mut steps: Vec<_> =
                    steps.map(|(cache, &token)| Step { cache, token, draws: &Draws::GREEDY }).collect();
                tokens = ready.llama.step(&mut steps)?.iter().map(|drawn| drawn.token).collect();
            }
            Ok(())
        })?;
        if run > 0 {
            times.push(time.0);
        }
        caches.iter_mut().try_for_each(|cache| cache.set_len(prompt.len()))?;
    }
    let mut figures = ready.figures(subject)?;
    figures.put("batch", batch as f64);
    figures.put("prepare_ms", prepare * 1e3);
    let step = median(times) / STEPS as f64;
    figures.put("step_ms", step * 1e3);
    figures.put("tokens_per_s", batch as f64 / step);
    let (weights, cache) = bytes(&ready, batch, subject.tokens + STEPS / 2);
    figures.put("weight_bytes", weights as f64);
    figures.put("cache_bytes", cache as f64);
    figures.put("bytes_read_gb_per_s", (weights + cache) as f64 / 1e9 / step);
    Ok(figures)
}

/// What a step must read at least: every weight once, every session's keys and values.
fn bytes(ready: &super::Ready, batch: usize, context: usize) -> (usize, usize) {
    let c = ready.llama.config();
    let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let block = c.hidden_size * (2 * queries + 2 * keys + 3 * c.intermediate_size);
    let weights = c.layers * block + c.vocab_size * c.hidden_size;
    (2 * weights, batch * context * c.layers * 2 * keys * 2)
}

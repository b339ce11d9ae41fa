//! Times decode steps of the shape of Llama 3.2 1B on the device: `decode_speed CONTEXT BATCH...`, with greedy and with drawn tokens.
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::time::Instant;

use gpu::{Device, KvPool};
use model::{Config, CudaCache, CudaLlama, Draws, Sampling, Step};

type Failure = Box<dyn std::error::Error>;

/// Steps per batch; the median counts.
const STEPS: usize = 100;

fn main() -> Result<(), Failure> {
    let numbers: Vec<usize> =
        std::env::args().skip(1).map(|number| number.parse()).collect::<Result<_, _>>()?;
    let (context, batches) = numbers.split_first().ok_or("name a context length and batch sizes")?;
    let most = batches.iter().copied().max().ok_or("name at least one batch size")?;
    let device = Device::open(0)?;
    let name = device.name()?;
    // What a copy on the card reaches, in bytes per second.
    let bandwidth = if name.contains("H200") { 4.1e12 } else { 2.9e12 };
    println!("{name}, {context} tokens of context, bandwidth taken as {:.1} TB/s", bandwidth / 1e12);
    let mut model = CudaLlama::random(&device, Config::llama_3_2_1b(), 1, 1024)?;
    let pool = KvPool::new(&device, model.stream(), model.kv_shape(), most * (context + 256))?;
    model.prepare_steps(&pool, most)?;
    for batch in batches {
        measure(&mut model, &pool, *context, *batch, bandwidth)?;
    }
    Ok(())
}

fn measure(
    model: &mut CudaLlama,
    pool: &std::sync::Arc<KvPool>,
    context: usize,
    batch: usize,
    bandwidth: f64,
) -> Result<(), Failure> {
    let vocab = model.config().vocab_size;
    let ids: Vec<u32> = (0..context).map(|i| (i * 7919 % vocab) as u32).collect();
    let mut caches = Vec::new();
    for _ in 0..batch {
        let mut cache = CudaCache::new(pool, model.stream(), context + 250)?;
        model.prefill(&mut cache, &ids, None)?;
        caches.push(cache);
    }
    // Noise makes flat logits; this temperature gives them the peaks of a language's.
    let drawn = Sampling { temperature: 0.1, top_p: 0.95, seed: 1, ..Sampling::GREEDY };
    let mut line = format!("batch {batch:4}:");
    for draws in [Draws::GREEDY, drawn.into()] {
        let mut tokens = vec![7; batch];
        let mut times = Vec::new();
        for cache in &mut caches {
            cache.set_len(context)?;
        }
        for _ in 0..STEPS {
            let mut steps: Vec<_> = caches
                .iter_mut()
                .zip(&tokens)
                .map(|(cache, token)| Step { cache, token: *token, draws: &draws })
                .collect();
            let began = Instant::now();
            let next = model.step(&mut steps)?;
            times.push(began.elapsed().as_secs_f64());
            tokens = next.iter().map(|drawn| drawn.token).collect();
        }
        times.sort_by(f64::total_cmp);
        let median = times[STEPS / 2];
        let floor = bytes(model.config(), batch, context + STEPS / 2) / bandwidth;
        line += &format!(
            " {:.3} ms a step ({:.0} tokens/s, {:.0} % of the limit)",
            median * 1e3,
            batch as f64 / median,
            100.0 * floor / median
        );
    }
    println!("{line}");
    Ok(())
}

/// What a step must read: all weights (the head's being the embedding) and all caches.
fn bytes(c: &Config, batch: usize, context: usize) -> f64 {
    let attention = c.hidden_size * (2 * c.heads + 2 * c.kv_heads) * c.head_dim;
    let block = attention + 3 * c.hidden_size * c.intermediate_size;
    let weights = c.layers * block + c.vocab_size * c.hidden_size;
    let cache = batch * context * 2 * c.layers * c.kv_heads * c.head_dim;
    2.0 * (weights + cache) as f64
}

//! Times the prompt pass of the shape of Llama 3.2 1B, or of the model directory named by `MODEL`, on the device: `prefill_speed 4096 8192`.
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::path::Path;
use std::time::Instant;

use gpu::{Device, KvPool};
use model::{Config, CudaCache, CudaLlama, CudaReceived};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let lengths: Vec<usize> =
        std::env::args().skip(1).map(|tokens| tokens.parse()).collect::<Result<_, _>>()?;
    let longest = lengths.iter().copied().max().ok_or("name at least one number of tokens")?;
    let device = Device::open(0)?;
    println!("{}", device.name()?);
    let began = Instant::now();
    let mut model = match std::env::var_os("MODEL") {
        Some(dir) => CudaLlama::load(&device, Path::new(&dir), longest)?,
        None => CudaLlama::random(&device, Config::llama_3_2_1b(), 1, longest)?,
    };
    model.stream().synchronize()?;
    println!("loaded in {:.2} s", began.elapsed().as_secs_f64());
    let pool = KvPool::new(&device, model.stream(), model.kv_shape(), longest)?;
    for tokens in lengths {
        let vocab = model.config().vocab_size;
        let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocab) as u32).collect();
        let mut cache = CudaCache::new(&pool, model.stream(), tokens)?;
        measure(&mut model, &mut cache, &ids)?;
        let began = Instant::now();
        model.tune(tokens)?;
        println!("tuned in {:.2} s", began.elapsed().as_secs_f64());
        measure(&mut model, &mut cache, &ids)?;
    }
    Ok(())
}

fn measure(model: &mut CudaLlama, cache: &mut CudaCache, ids: &[u32]) -> Result<(), Failure> {
    let mut times = Vec::new();
    for _ in 0..12 {
        let mut received = CudaReceived::of_last(model, 128, 16, ids.len())?;
        cache.set_len(0)?;
        model.stream().synchronize()?;
        let began = Instant::now();
        model.prefill(cache, ids, Some(&mut received))?;
        model.greedy()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let first = times[0];
    times.sort_by(f64::total_cmp);
    println!(
        "{} tokens: {:.3} ms from ids to the first token (median of 12; first {first:.1})",
        ids.len(),
        times[6]
    );
    let mut received = CudaReceived::of_last(model, 128, 16, ids.len())?;
    cache.set_len(0)?;
    for (stage, ms) in model.timed_prefill(cache, ids, Some(&mut received))? {
        println!("  {:16} {ms:8.3} ms", format!("{stage:?}"));
    }
    Ok(())
}

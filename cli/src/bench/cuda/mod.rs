//! What a GPU does: prompt pass, decode steps and codec, each warmed up and measured alone, on real weights or on random ones of a real
//! model's shape.

mod codec;
mod decode;
mod prefill;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use gpu::{CudaStream, Device, KvPool};
use model::Config;
use model::cuda::{CudaCache, CudaLlama};
use node::compute::MAX_CHUNK;

use super::timing::Figures;
use crate::synth::Shape;

pub(crate) use codec::codec;
pub(crate) use decode::decode;
pub(crate) use prefill::prefill;

/// Seed of random weights.
const SEED: u64 = 7;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) ordinal: usize,
    /// Model directory, where no shape is given.
    pub(crate) model: &'a Path,
    pub(crate) shape: Option<Shape>,
    pub(crate) tokens: usize,
    pub(crate) runs: u32,
}

/// A model on the device, and how long it took to get there.
struct Ready {
    device: Device,
    llama: CudaLlama,
    load_ms: f64,
}

impl Subject<'_> {
    fn ready(&self) -> anyhow::Result<Ready> {
        let device = Device::open(self.ordinal)?;
        let started = Instant::now();
        let llama = match self.shape {
            Some(shape) => CudaLlama::random(&device, config_of(shape)?, SEED, MAX_CHUNK)?,
            None => CudaLlama::load(&device, self.model, MAX_CHUNK)?,
        };
        device.synchronize()?;
        Ok(Ready { device, llama, load_ms: started.elapsed().as_secs_f64() * 1e3 })
    }
}

impl Ready {
    /// Room for `sessions` sessions of `tokens` tokens.
    fn caches(&self, sessions: usize, tokens: usize) -> anyhow::Result<(Arc<KvPool>, Vec<CudaCache>)> {
        let stream = self.stream();
        let pages = tokens.next_multiple_of(gpu::PAGE_TOKENS);
        let pool = KvPool::new(&self.device, stream, self.llama.kv_shape(), sessions * pages)?;
        let caches = (0..sessions).map(|_| CudaCache::new(&pool, stream, tokens));
        let caches = caches.collect::<Result<_, _>>()?;
        Ok((pool, caches))
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.llama.stream()
    }

    /// Some prompt of the asked length; its content does not change the work.
    fn prompt(&self, tokens: usize) -> Vec<u32> {
        super::model::prompt(self.llama.config().vocab_size, tokens)
    }

    /// What every measurement says of itself.
    fn figures(&self, subject: &Subject<'_>) -> anyhow::Result<Figures> {
        let mut figures = Figures::default();
        figures.say("device", self.device.name()?);
        figures.put("prompt_tokens", subject.tokens as f64);
        figures.put("load_ms", self.load_ms);
        Ok(figures)
    }
}

fn config_of(shape: Shape) -> anyhow::Result<Config> {
    match shape {
        Shape::Llama32_1b => Ok(Config::llama_3_2_1b()),
        Shape::Tiny => {
            None.context("--shape tiny has heads too small for the GPU's kernels; take llama-3.2-1b")
        }
    }
}

//! The model as an engine's thread runs it.

use std::ops::Range;
use std::sync::Arc;

use model::{Drawn, Draws, Llama, LogitsOf, Sequence};

use super::cache::Cache;
use crate::prompt::{Progress, PromptPass};

/// One session's part in a step.
#[derive(Debug)]
pub struct Step<'a> {
    /// What came before; the step appends to it.
    pub cache: &'a mut Cache,
    /// The token to continue after.
    pub token: u32,
    /// How the next one is drawn.
    pub draws: &'a Draws,
}

/// The model, ready to run; belongs to one thread.
#[derive(Debug)]
pub enum Runner {
    /// On the CPU's cores.
    Host(Arc<Llama>),
    /// On a GPU, with its stream and scratch memory.
    #[cfg(feature = "cuda")]
    Device(Box<model::cuda::CudaLlama>),
}

impl Runner {
    /// Runs the pass's next chunk after what `cache` holds; the range says which tokens it was. Everything is computed on return.
    ///
    /// # Errors
    /// What the model refuses.
    ///
    /// # Panics
    /// For a cache of another machine.
    pub fn advance(
        &mut self,
        pass: &mut PromptPass,
        cache: &mut Cache,
        draws: &Draws,
    ) -> model::Result<(Range<usize>, Progress)> {
        match (self, cache) {
            (Self::Host(llama), Cache::Host(cache)) => pass.advance(llama, cache, draws),
            #[cfg(feature = "cuda")]
            (Self::Device(llama), Cache::Device(cache)) => pass.advance_on(llama, cache, draws),
            #[cfg(feature = "cuda")]
            _ => panic!("a cache of another machine; this is a bug"),
        }
    }

    /// One token for every session: runs each one's last token and draws its next, in order.
    ///
    /// # Errors
    /// What the model refuses.
    pub fn step(&mut self, batch: &mut [Step<'_>]) -> model::Result<Vec<Drawn>> {
        match self {
            Self::Host(llama) => step_on_host(llama, batch),
            #[cfg(feature = "cuda")]
            Self::Device(llama) => super::cuda::step(llama, batch),
        }
    }
}

fn step_on_host(llama: &Llama, batch: &mut [Step<'_>]) -> model::Result<Vec<Drawn>> {
    let tokens: Vec<[u32; 1]> = batch.iter().map(|step| [step.token]).collect();
    let sequences = batch.iter_mut().zip(&tokens).map(|(step, tokens)| match step.cache {
        Cache::Host(cache) => Sequence { cache, tokens, received: None },
        #[cfg(feature = "cuda")]
        Cache::Device(_) => panic!("a cache of another machine; this is a bug"),
    });
    let mut sequences: Vec<_> = sequences.collect();
    let mut logits = llama.forward(&mut sequences, LogitsOf::LastToken)?;
    let rows = logits.chunks_exact_mut(llama.config().vocab_size);
    Ok(batch.iter().zip(rows).map(|(step, row)| step.draws.draw(row, step.cache.len())).collect())
}

//! The decode step: one token for every session of a batch, each with a cache of its own length.
//!
//! A step is one recorded graph: the inputs' copy, the launches, the tokens' copy back. What differs from step to step (tokens, positions,
//! page tables, shares of attention) lies in device memory. Sessions that draw their tokens add a search for candidates; everything is waited
//! for once. Only sessions that edit their logits, or are told how likely tokens were, have these copied to the host after that.

mod attention;
mod buffers;
mod inputs;
mod linear;
mod pass;
mod rows;
mod sampled;
mod steps;

use std::sync::Arc;

use gpu::{KvPool, KvView};

use self::inputs::Row;
use self::pass::Model;
use self::sampled::{Draw, Whole};
pub(crate) use self::steps::Steps;
use super::cache::CudaCache;
use super::llama::CudaLlama;
use crate::error::{Error, Result};
use crate::sampling::{Drawn, Draws};

/// One session's part in a step.
#[derive(Debug)]
pub struct Step<'a> {
    /// What came before; the step appends to it.
    pub cache: &'a mut CudaCache,
    /// The last token, which is not in the cache yet.
    pub token: u32,
    /// How the next one is drawn.
    pub draws: &'a Draws,
}

impl CudaLlama {
    /// Sets memory aside for steps of up to `max_batch` sessions whose caches lie in `pool`. The first step of a size (1, 2, 4, ..., 32, then
    /// multiples of 32) takes longer: it records the launches of all later ones.
    ///
    /// # Errors
    /// For a pool of another shape; [`gpu::Error::OutOfMemory`].
    pub fn prepare_steps(&mut self, pool: &Arc<KvPool>, max_batch: usize) -> Result<()> {
        if pool.shape() != self.kv_shape() {
            return Err(Error::InvalidArgument("a pool of another model's shape".into()));
        }
        if max_batch == 0 || max_batch >= 1 << 16 {
            return Err(Error::InvalidArgument(format!(
                "steps of {max_batch} sessions; 1 to 65535 are possible"
            )));
        }
        self.steps = None;
        let steps = Steps::new(&self.device, &self.stream, &self.config, &self.weights, pool, max_batch)?;
        self.steps = Some(steps);
        Ok(())
    }

    /// Runs one token of every session and appends its key and value; returns each session's next token, drawn for the position after.
    ///
    /// Waits for the device. [`Self::prepare_steps`] comes first.
    ///
    /// # Errors
    /// For more sessions than prepared for, a token outside of the vocabulary, a cache of another pool or without room: no cache has changed
    /// then, and the others' step can be taken without that session. When the device fails.
    pub fn step(&mut self, batch: &mut [Step<'_>]) -> Result<Vec<Drawn>> {
        self.check_step(batch)?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let row = |step: &Step<'_>| Row {
            table: step.cache.view().table,
            token: step.token,
            position: step.cache.len(),
        };
        let rows: Vec<_> = batch.iter().map(row).collect();
        // The table is each row's own.
        let kv = KvView { table: 0, pages: 0, ..batch[0].cache.view() };
        let (model, steps) = self.step_parts()?;
        steps.run(model, &rows, kv)?;
        let drawn = draw(steps, batch)?;
        for step in batch {
            step.cache.set_len(step.cache.len() + 1)?;
        }
        Ok(drawn)
    }

    /// The logits that the last step left for its session `row`, `[vocab]`.
    ///
    /// # Errors
    /// For a row that no step can have; when the device fails.
    pub fn step_logits(&mut self, row: usize) -> Result<Vec<f32>> {
        let (_, steps) = self.step_parts()?;
        if row >= steps.most {
            return Err(Error::InvalidArgument(format!("session {row} of steps of {}", steps.most)));
        }
        Ok(steps.sampler.download(row, &steps.buffers.logits)?.to_vec())
    }

    fn step_parts(&mut self) -> Result<(Model<'_>, &mut Steps)> {
        let model = Model {
            config: &self.config,
            weights: &self.weights,
            rope: &self.rope,
            rows: &self.rows,
            gemm: &mut self.gemm,
        };
        let steps = self.steps.as_mut();
        Ok((model, steps.ok_or_else(|| Error::InvalidArgument("a step before prepare_steps".into()))?))
    }

    fn check_step(&self, batch: &[Step<'_>]) -> Result<()> {
        let Some(steps) = &self.steps else {
            return Err(Error::InvalidArgument("a step before prepare_steps".into()));
        };
        if batch.len() > steps.most {
            return Err(Error::InvalidArgument(format!(
                "a step of {} sessions, prepared for {}",
                batch.len(),
                steps.most
            )));
        }
        for step in batch {
            if !Arc::ptr_eq(step.cache.pages().pool(), &steps.pool) {
                return Err(Error::InvalidArgument("a cache of another pool than prepared for".into()));
            }
            let (wanted, capacity) = (step.cache.len() + 1, step.cache.capacity().min(self.rope.positions()));
            if wanted > capacity {
                return Err(Error::CacheFull { wanted, capacity });
            }
            let vocab = self.config.vocab_size;
            if step.token as usize >= vocab {
                return Err(Error::Token { id: step.token, vocab });
            }
        }
        Ok(())
    }
}

/// Every session's next token, from what [`Steps::run`] left.
fn draw(steps: &mut Steps, batch: &[Step<'_>]) -> Result<Vec<Drawn>> {
    let (mut sampled, mut whole) = (Vec::new(), Vec::new());
    for (row, step) in batch.iter().enumerate() {
        let (position, draws, sampling) = (step.cache.len() + 1, step.draws, *step.draws.sampling());
        match draws.is_plain() {
            true if sampling.is_greedy() => {}
            true => sampled.push(Draw { row, position, sampling }),
            false => whole.push(Whole { row, position, draws }),
        }
    }
    let (sampler, logits) = (&mut steps.sampler, &steps.buffers.logits);
    sampler.find(&sampled, logits, &steps.buffers.tokens)?;
    steps.stream.synchronize().map_err(gpu::Error::from)?;
    let likeliest = &steps.buffers.host_tokens.as_slice()?[..batch.len()];
    let mut drawn: Vec<Drawn> = likeliest.iter().map(|token| Drawn::from(*token)).collect();
    for (draw, token) in sampled.iter().zip(sampler.finish(&sampled, logits)?) {
        drawn[draw.row] = token.into();
    }
    for (draw, told) in whole.iter().zip(sampler.draw_whole(&whole, logits)?) {
        drawn[draw.row] = told;
    }
    Ok(drawn)
}

//! Draws of tokens: `kernels/candidates.cu` finds what they need of a row of logits, [`crate::sampling`] finishes them. Draws that need a
//! whole row get it, in host memory.

use std::sync::Arc;

use gpu::{Argument, CudaFunction, CudaSlice, CudaStream, Device, Kernels, Launch, Pinned};
use rayon::prelude::*;

use super::buffers::pointer;
use crate::error::Result;
use crate::sampling::{Candidates, Drawn, Draws, Sampling};

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/candidates.fatbin"));
/// Of a block.
const THREADS: usize = 256;
/// Blocks that share a row.
const PARTS: usize = 16;
/// Counts of each of two levels.
const BINS: usize = 2048;
/// Most candidates of a row.
const MOST: usize = 1024;
/// Most whole rows in host memory at once, each drawn from by a thread of its own.
const WHOLE_ROWS: usize = 16;
/// Words of one row: `struct Candidates`.
const WORDS: usize = 2 * BINS + 2 * PARTS + 2 + 2 * MOST;

/// A row to be drawn from: `struct Draw`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Draw {
    /// Of the logits.
    pub(crate) row: usize,
    /// Position that the token will have.
    pub(crate) position: usize,
    /// How it is drawn.
    pub(crate) sampling: Sampling,
}

/// A row that is drawn from, or told about, on the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whole<'a> {
    /// Of the logits.
    pub(crate) row: usize,
    /// Position that the token will have.
    pub(crate) position: usize,
    /// How it is drawn.
    pub(crate) draws: &'a Draws,
}

/// The kernels on one stream, and their buffers.
pub(crate) struct Sampler {
    stream: Arc<CudaStream>,
    count: CudaFunction,
    refine: CudaFunction,
    collect: CudaFunction,
    vocab: usize,
    draws: CudaSlice<u32>,
    host_draws: Pinned<u32>,
    found: CudaSlice<u32>,
    host_found: Pinned<u32>,
    host_rows: Pinned<f32>,
}

impl Sampler {
    /// For up to `rows` draws at once.
    pub(crate) fn new(device: &Device, stream: &Arc<CudaStream>, vocab: usize, rows: usize) -> Result<Self> {
        let kernels = Kernels::load(device, "candidates", FATBIN)?;
        Ok(Self {
            stream: Arc::clone(stream),
            count: kernels.function("candidates_count")?,
            refine: kernels.function("candidates_refine")?,
            collect: kernels.function("candidates_collect")?,
            vocab,
            draws: device.zeros(stream, "draws", rows * 2)?,
            host_draws: Pinned::zeros(device, rows * 2)?,
            found: device.zeros(stream, "candidates of draws", rows * WORDS)?,
            host_found: Pinned::zeros(device, rows * WORDS)?,
            host_rows: Pinned::zeros(device, rows.clamp(1, WHOLE_ROWS) * vocab)?,
        })
    }

    /// Queues the search for the draws' candidates in `logits` `[rows, vocab]`, of which `tokens` `[rows]` are the most likely.
    pub(crate) fn find(
        &mut self,
        draws: &[Draw],
        logits: &CudaSlice<f32>,
        tokens: &CudaSlice<u32>,
    ) -> Result<()> {
        if draws.is_empty() {
            return Ok(());
        }
        let words = self.host_draws.as_mut_slice()?.as_chunks_mut::<2>().0;
        for (words, draw) in words.iter_mut().zip(draws) {
            *words = [draw.row as u32, draw.sampling.temperature.to_bits()];
        }
        self.host_draws.copy_to(&self.stream, draws.len() * 2, &mut self.draws)?;
        let mut found = self.found.slice_mut(..draws.len() * WORDS);
        self.stream.memset_zeros(&mut found).map_err(gpu::Error::from)?;
        self.launch(&self.count, draws.len(), logits, Some(tokens))?;
        self.launch(&self.refine, draws.len(), logits, None)?;
        self.launch(&self.collect, draws.len(), logits, None)?;
        self.host_found.copy_from(&self.stream, draws.len() * WORDS, &self.found)?;
        Ok(())
    }

    fn launch(
        &self,
        function: &CudaFunction,
        rows: usize,
        logits: &CudaSlice<f32>,
        tokens: Option<&CudaSlice<u32>>,
    ) -> Result<()> {
        let vocab = self.vocab as u32;
        let launch = Launch { function, grid: (PARTS, rows), threads: THREADS, shared: 0, early: false };
        let [logits, draws, found] = [pointer(logits), pointer(&self.draws), pointer(&self.found)];
        let tokens = tokens.map(pointer);
        let mut arguments = vec![Argument::of(&logits), Argument::of(&vocab)];
        arguments.extend(tokens.as_ref().map(Argument::of));
        arguments.extend([Argument::of(&draws), Argument::of(&found)]);
        // SAFETY: these are the kernels' arguments, and the buffers have the shapes that they are written for.
        Ok(unsafe { launch.queue(&self.stream, &arguments) }?)
    }

    /// The tokens of the draws that [`Self::find`] was called with, once the stream was synchronised. Rows whose candidates leave open what is
    /// drawn are downloaded.
    pub(crate) fn finish(&mut self, draws: &[Draw], logits: &CudaSlice<f32>) -> Result<Vec<u32>> {
        let (found, vocab) = (self.host_found.as_slice()?, self.vocab);
        let told: Vec<_> = draws
            .par_iter()
            .zip(found.par_chunks(WORDS))
            .map(|(draw, words)| draw.sampling.draw_among(&candidates(words, vocab), draw.position))
            .collect();
        let mut tokens = Vec::with_capacity(draws.len());
        for (draw, told) in draws.iter().zip(told) {
            tokens.push(match told {
                Some(token) => token,
                None => draw.sampling.draw(self.download(draw.row, logits)?, draw.position),
            });
        }
        Ok(tokens)
    }

    /// Waits for one row of logits.
    pub(crate) fn download(&mut self, row: usize, logits: &CudaSlice<f32>) -> Result<&[f32]> {
        self.copy_rows(std::iter::once(row), logits)?;
        Ok(&self.host_rows.as_slice()?[..self.vocab])
    }

    /// Draws on the host, from copies of the rows; the stream must have come to an end.
    pub(crate) fn draw_whole(&mut self, draws: &[Whole<'_>], logits: &CudaSlice<f32>) -> Result<Vec<Drawn>> {
        let (vocab, at_once) = (self.vocab, self.host_rows.len() / self.vocab);
        let mut drawn = Vec::with_capacity(draws.len());
        for some in draws.chunks(at_once) {
            self.copy_rows(some.iter().map(|draw| draw.row), logits)?;
            let rows = self.host_rows.as_mut_slice()?.par_chunks_mut(vocab);
            drawn
                .par_extend(some.par_iter().zip(rows).map(|(draw, row)| draw.draws.draw(row, draw.position)));
        }
        Ok(drawn)
    }

    /// Waits for rows of logits; no more than there is room for.
    fn copy_rows(&mut self, rows: impl Iterator<Item = usize>, logits: &CudaSlice<f32>) -> Result<()> {
        let host = self.host_rows.as_mut_slice()?;
        for (row, to) in rows.zip(host.chunks_exact_mut(self.vocab)) {
            let from = logits.slice(row * self.vocab..(row + 1) * self.vocab);
            self.stream.memcpy_dtoh(&from, to).map_err(gpu::Error::from)?;
        }
        Ok(self.stream.synchronize().map_err(gpu::Error::from)?)
    }
}

/// Reads `struct Candidates`.
fn candidates(words: &[u32], vocab: usize) -> Candidates {
    let (sums, rest) = words[2 * BINS..].split_at(2 * PARTS);
    let sum = |pair: &[u32; 2]| f64::from_bits(u64::from(pair[0]) | u64::from(pair[1]) << 32);
    let (count, rest) = (rest[0] as usize, &rest[2..]);
    let (ids, logits) = rest.split_at(MOST);
    // More than there is room for is impossible; they would be useless.
    let count = if count <= MOST { count } else { 0 };
    Candidates {
        logits: ids.iter().zip(logits).take(count).map(|(id, bits)| (*id, f32::from_bits(*bits))).collect(),
        total: sums.as_chunks::<2>().0.iter().map(sum).sum(),
        vocab,
    }
}

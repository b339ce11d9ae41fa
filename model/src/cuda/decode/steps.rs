//! What steps need beside the model: kernels, buffers, and one recorded graph per number of rows.

use std::collections::HashMap;
use std::sync::Arc;

use gpu::{CudaStream, Device, Graph, KvPool, KvView};

use super::attention::DecodeAttention;
use super::buffers::Buffers;
use super::inputs::{Layout, Row};
use super::linear::LinearKernels;
use super::pass::{Model, Pass};
use super::rows::StepRows;
use super::sampled::Sampler;
use crate::config::Config;
use crate::cuda::weights::CudaWeights;
use crate::error::{Error, Result};

/// Most rows that go through the own linear kernels, which are bound by memory; above, cuBLASLt is quicker.
const FEW: usize = 8;

/// Made once for a model and a pool.
pub(crate) struct Steps {
    pub(crate) pool: Arc<KvPool>,
    /// Most sessions of a step.
    pub(crate) most: usize,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) linear: LinearKernels,
    pub(crate) attention: DecodeAttention,
    pub(crate) rows: StepRows,
    pub(crate) buffers: Buffers,
    pub(crate) sampler: Sampler,
    /// Most rows for the own linear kernels; 0 where they cannot multiply by the model's weights.
    few: usize,
    graphs: HashMap<usize, Graph>,
}

impl Steps {
    pub(crate) fn new(
        device: &Device,
        stream: &Arc<CudaStream>,
        config: &Config,
        weights: &CudaWeights,
        pool: &Arc<KvPool>,
        most: usize,
    ) -> Result<Self> {
        let linear = LinearKernels::load(device, stream)?;
        let block_fits = weights.blocks.iter().all(|block| {
            [&block.qkv, &block.output, &block.gate_up, &block.down]
                .into_iter()
                .all(|matrix| linear.fit(matrix))
        });
        let few = if block_fits && linear.fit(weights.head()) { FEW } else { 0 };
        let attention = DecodeAttention::load(device, stream, config)?;
        let layout = Layout { rows: padded(most), blocks: attention.blocks() };
        Ok(Self {
            pool: Arc::clone(pool),
            most,
            stream: Arc::clone(stream),
            rows: StepRows::load(device, stream)?,
            buffers: Buffers::new(device, stream, config, layout, layout.rows > few)?,
            sampler: Sampler::new(device, stream, config.vocab_size, layout.rows)?,
            linear,
            attention,
            few,
            graphs: HashMap::new(),
        })
    }

    /// Whether a step of so many rows goes through the own linear kernels.
    pub(crate) fn goes_by_own_kernels(&self, rows: usize) -> bool {
        rows <= self.few
    }

    /// Runs a step of `sessions` as far as logits and most likely tokens, whose copy to the host it queues as well.
    pub(crate) fn run(&mut self, model: Model<'_>, sessions: &[Row], kv: KvView) -> Result<()> {
        let layout = Layout { rows: padded(sessions.len()), blocks: self.attention.blocks() };
        if !self.graphs.contains_key(&layout.rows) {
            self.record(model, layout, kv)?;
        }
        layout.write(sessions, self.buffers.staged_inputs.as_mut_slice()?);
        let graph = self.graphs.get_mut(&layout.rows).ok_or_else(|| {
            Error::InvalidArgument(format!("no graph for a step of {} rows; this is a bug", layout.rows))
        })?;
        Ok(graph.launch()?)
    }

    fn record(&mut self, mut model: Model<'_>, layout: Layout, kv: KvView) -> Result<()> {
        // A step of nobody first: what libraries set up at a first call cannot be recorded.
        layout.write(&[], self.buffers.staged_inputs.as_mut_slice()?);
        self.queue(&mut model, layout, kv)?;
        self.stream.synchronize().map_err(gpu::Error::from)?;
        let stream = Arc::clone(&self.stream);
        let graph = Graph::record(&stream, || self.queue(&mut model, layout, kv))?;
        self.graphs.insert(layout.rows, graph);
        Ok(())
    }

    fn queue(&mut self, model: &mut Model<'_>, layout: Layout, kv: KvView) -> Result<()> {
        let b = &mut self.buffers;
        b.staged_inputs.copy_to(&self.stream, layout.words(), &mut b.inputs)?;
        let model = Model { gemm: &mut *model.gemm, ..*model };
        Pass { model, steps: &mut *self, layout, kv }.run()?;
        let b = &mut self.buffers;
        Ok(b.host_tokens.copy_from(&self.stream, layout.rows, &b.tokens)?)
    }
}

/// Rows of the graph for so many sessions: powers of two, then multiples of 32.
fn padded(sessions: usize) -> usize {
    let sessions = sessions.max(1);
    if sessions <= 32 { sessions.next_power_of_two() } else { sessions.next_multiple_of(32) }
}

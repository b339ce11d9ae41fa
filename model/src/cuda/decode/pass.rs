//! One step through the model, as launches: with the kernels of `linear` where there are few rows, with cuBLASLt where there are many.

use gpu::{Gemm, KvView};

use super::attention::Attention;
use super::buffers::pointer;
use super::inputs::Layout;
use super::linear::{Attend, Gate, Head, Residual, Rows};
use super::steps::Steps;
use crate::config::Config;
use crate::cuda::linear::linear;
use crate::cuda::rope::CudaRope;
use crate::cuda::rows::RowKernels;
use crate::cuda::weights::{CudaBlock, CudaWeights};
use crate::error::Result;

/// What a pass takes of the loaded model.
pub(crate) struct Model<'a> {
    pub(crate) config: &'a Config,
    pub(crate) weights: &'a CudaWeights,
    pub(crate) rope: &'a CudaRope,
    pub(crate) rows: &'a RowKernels,
    pub(crate) gemm: &'a mut Gemm,
}

/// A step of `rows` rows.
pub(crate) struct Pass<'a> {
    pub(crate) model: Model<'a>,
    pub(crate) steps: &'a mut Steps,
    pub(crate) layout: Layout,
    pub(crate) kv: KvView,
}

impl Pass<'_> {
    /// Queues everything between the copy of the inputs and that of the tokens.
    pub(crate) fn run(mut self) -> Result<()> {
        let few = self.steps.goes_by_own_kernels(self.layout.rows);
        let weights = self.model.weights;
        let first = weights.blocks.first().map_or(&weights.norm, |block| &block.input_norm);
        let to = self.residual(first);
        self.steps.rows.embed(self.layout.rows, self.step(), &weights.embedding, to)?;
        for (layer, block) in weights.blocks.iter().enumerate() {
            let next = weights.blocks.get(layer + 1).map_or(&weights.norm, |block| &block.input_norm);
            if few {
                self.block_of_few(layer, block, next)?;
            } else {
                self.block_of_many(layer, block)?;
            }
        }
        if few { self.head_of_few() } else { self.head_of_many() }
    }

    fn block_of_few(&self, layer: usize, block: &CudaBlock, next: &gpu::CudaSlice<f32>) -> Result<()> {
        let (linear, b) = (&self.steps.linear, &self.steps.buffers);
        linear.qkv(&block.qkv, self.normalised(), self.append(layer))?;
        self.attend(layer)?;
        linear.add(&block.output, self.plain(&b.attended), self.residual(&block.post_norm))?;
        linear.gate(&block.gate_up, self.normalised(), Gate { out: pointer(&b.gated) })?;
        linear.add(&block.down, self.plain(&b.gated), self.residual(next))
    }

    fn head_of_few(&self) -> Result<()> {
        let b = &self.steps.buffers;
        let to = Head {
            logits: pointer(&b.logits),
            best: pointer(&b.best),
            best_at: pointer(&b.best_at),
            tokens: pointer(&b.tokens),
            done: pointer(&b.done),
        };
        self.steps.linear.head(self.model.weights.head(), self.normalised(), to)
    }

    fn block_of_many(&mut self, layer: usize, block: &CudaBlock) -> Result<()> {
        let (rows, c) = (self.layout.rows, self.model.config);
        self.normalise(&block.input_norm)?;
        let stream = &self.steps.stream;
        let b = &mut self.steps.buffers;
        let normed = b.normed.slice(..rows * c.hidden_size);
        let mut qkv = b.qkv.slice_mut(..rows * block.qkv.outputs);
        linear(self.model.gemm, stream, &block.qkv, &normed, &mut qkv, false)?;
        self.steps.rows.rotate(rows, pointer(&self.steps.buffers.qkv), self.append(layer))?;
        self.attend(layer)?;
        let b = &mut self.steps.buffers;
        let attended = b.attended.slice(..rows * block.output.inputs);
        let mut x = b.x.slice_mut(..rows * c.hidden_size);
        linear(self.model.gemm, &self.steps.stream, &block.output, &attended, &mut x, true)?;
        self.normalise(&block.post_norm)?;
        self.feed_forward_of_many(block)
    }

    fn feed_forward_of_many(&mut self, block: &CudaBlock) -> Result<()> {
        let (rows, c) = (self.layout.rows, self.model.config);
        let (stream, b) = (&self.steps.stream, &mut self.steps.buffers);
        let normed = b.normed.slice(..rows * c.hidden_size);
        let mut gate_up = b.gate_up.slice_mut(..rows * block.gate_up.outputs);
        linear(self.model.gemm, stream, &block.gate_up, &normed, &mut gate_up, false)?;
        let mut gated = b.gated.slice_mut(..rows * c.intermediate_size);
        self.model.rows.swiglu(&gate_up.as_view(), c.intermediate_size, &mut gated)?;
        let mut x = b.x.slice_mut(..rows * c.hidden_size);
        linear(self.model.gemm, stream, &block.down, &gated.as_view(), &mut x, true)
    }

    fn head_of_many(&mut self) -> Result<()> {
        let (rows, c) = (self.layout.rows, self.model.config);
        self.normalise(&self.model.weights.norm)?;
        let (stream, b) = (&self.steps.stream, &mut self.steps.buffers);
        let normed = b.normed.slice(..rows * c.hidden_size);
        let mut logits = b.logits.slice_mut(..rows * c.vocab_size);
        linear(self.model.gemm, stream, self.model.weights.head(), &normed, &mut logits, false)?;
        let (logits, tokens) = (pointer(&b.logits), pointer(&b.tokens));
        self.steps.rows.argmax(rows, logits, c.vocab_size, tokens)
    }

    /// `normed` = RMSNorm of `x`.
    fn normalise(&mut self, norm: &gpu::CudaSlice<f32>) -> Result<()> {
        let (elements, c) = (self.layout.rows * self.model.config.hidden_size, self.model.config);
        let b = &mut self.steps.buffers;
        let mut normed = b.normed.slice_mut(..elements);
        self.model.rows.rms_norm(&b.x.slice(..elements), norm, c.rms_norm_eps, &mut normed)
    }

    fn attend(&self, layer: usize) -> Result<()> {
        let (b, c) = (&self.steps.buffers, self.model.config);
        let inputs = pointer(&b.inputs);
        self.steps.attention.attend(Attention {
            kv: self.kv,
            step: self.step(),
            shares: inputs + (self.layout.shares() * 4) as u64,
            count: inputs,
            queries: pointer(&b.queries),
            out: pointer(&b.attended),
            partial: pointer(&b.partial),
            arrived: pointer(&b.arrived),
            heads: c.heads as u32,
            layer: layer as u32,
            scale: std::f32::consts::LOG2_E / (c.head_dim as f32).sqrt(),
        })
    }

    fn step(&self) -> u64 {
        pointer(&self.steps.buffers.inputs) + (Layout::ROWS * 4) as u64
    }

    fn append(&self, layer: usize) -> Attend {
        Attend {
            kv: self.kv,
            step: self.step(),
            cosines: pointer(&self.model.rope.cos),
            sines: pointer(&self.model.rope.sin),
            queries: pointer(&self.steps.buffers.queries),
            heads: self.model.config.heads as u32,
            layer: layer as u32,
        }
    }

    fn residual(&self, norm: &gpu::CudaSlice<f32>) -> Residual {
        let b = &self.steps.buffers;
        Residual {
            x: pointer(&b.x),
            norm: pointer(norm),
            scaled: pointer(&b.normed),
            squares: pointer(&b.squares),
        }
    }

    /// The residual stream, to be normalised with the product.
    fn normalised(&self) -> Rows {
        let b = &self.steps.buffers;
        Rows { squares: pointer(&b.squares), ..self.plain(&b.normed) }
    }

    fn plain(&self, x: &gpu::CudaSlice<half::bf16>) -> Rows {
        let eps = self.model.config.rms_norm_eps as f32;
        Rows { x: pointer(x), squares: 0, count: self.layout.rows, eps }
    }
}
